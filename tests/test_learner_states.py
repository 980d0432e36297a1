"""What a learner may not do in silence: logits as probabilities, means over batches that weigh by batch, augmented predictions, and state that stays
behind after Ctrl-C, an error, NaN or a load. The network is tiny, so that a case takes a few hundredths of a second."""
import copy, errno, pathlib, pickle
from functools import partial
import fastai.losses, fastai.optimizer, numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from hypothesis import given, strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import DatasetType, ImageDataBunch
from malaria_fastai.learner import _OPT_FUNCS, Bfloat16, CNNLearner, CSVLogger, NLLLossFlat, cnn_learner, load_learner, named_weights, weights_hash
from malaria_fastai.transforms import get_transforms
from properties import cases

CLASSES = 'Blue', 'Red'

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('two')
    for i in range(26):
        rng,k = np.random.RandomState(i),i % 2
        x = rng.randint(0, 255, (8, 8, 3)).astype(np.uint8)
        x[..., 2*k] //= 2
        (root/CLASSES[1-k]).mkdir(exist_ok=True)
        Image.fromarray(x).save(root/CLASSES[1-k]/f'{i:02d}.png')
    return root

def bunch(root, **kw): return ImageDataBunch.from_folder(root, **{**dict(size=8, resize_method=ResizeMethod.SQUISH, bs=5, cache=False, valid_pct=.3), **kw})
@pytest.fixture(scope='module')
def data(root): return bunch(root)

def network(log=False):
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    return nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Dropout(.2), nn.Linear(64, 2), *[nn.LogSoftmax(1)]*log))

def groups(model): return [[*model[0].parameters()], [*model[1].parameters()]]
def tiny(data, tmp_path='.', loss_func='cross_entropy', log=False, opt_func=_OPT_FUNCS['adam'], **kw):
    learn = CNNLearner(data, network(log), loss_func=loss_func, opt_func=opt_func, splitter=groups, path=tmp_path, **kw)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
    learn.logger = str # says nothing, and can be pickled
    return learn

# --- logits are no probabilities ------------------------------------------------------------------------------------------------

class Doubled(nn.Module):
    "A loss of one's own, which says what makes probabilities."
    def forward(self, pred, y, reduction='mean'): return F.cross_entropy(2*pred, y, reduction=reduction)
    def activation(self, x): return (2*x).softmax(1)

W = torch.tensor([1., 5.])
LOGITS = dict(flat=fastai.losses.CrossEntropyLossFlat(), weighted=nn.CrossEntropyLoss(weight=W), function=F.cross_entropy, smooth=nn.CrossEntropyLoss(label_smoothing=.1),
    part=partial(F.cross_entropy, label_smoothing=.1), parts=partial(partial(F.cross_entropy, weight=W), label_smoothing=.1), cls=nn.CrossEntropyLoss, name='cross_entropy',
    focal=fastai.losses.FocalLoss(), focal_flat=fastai.losses.FocalLossFlat(), smoothing=fastai.losses.LabelSmoothingCrossEntropy(),
    base=fastai.losses.BaseLoss(nn.CrossEntropyLoss), smoothing_flat=fastai.losses.LabelSmoothingCrossEntropyFlat())
LOGS = dict(nll=nn.NLLLoss(), nll_flat=NLLLossFlat(), nll_function=F.nll_loss, nll_part=partial(F.nll_loss, weight=W), nll_weighted=nn.NLLLoss(weight=W), nll_name='nll')

@pytest.mark.parametrize('name', [*LOGITS, *LOGS, 'own'])
def test_probabilities_whatever_the_loss(data, name):
    "Passed, or set later: rows sum to 1, and are what the network's outputs mean; everything that predicts agrees."
    log,loss = name in LOGS,{**LOGITS, **LOGS, 'own': Doubled()}[name]
    learn,later = tiny(data, log=log, loss_func=loss),tiny(data, log=log)
    later.loss_func = loss
    out = learn.get_preds(act=lambda x: x)[0]
    expected = ((2 if name == 'own' else 1)*out).softmax(1)
    for probs in (learn.get_preds()[0], later.get_preds()[0]): assert torch.allclose(probs, expected, atol=1e-5)
    if name not in ('weighted', 'part', 'nll', 'own'): return
    probs,y,decoded,losses = learn.get_preds(with_loss=True, with_decoded=True)
    assert torch.equal(decoded, expected.argmax(1)) and torch.allclose(probs, expected, atol=1e-5)
    assert torch.allclose(learn.predict(data.valid_ds.items[0])[2], expected[0], atol=1e-5)
    assert torch.allclose(learn.TTA(beta=1.)[0], expected, atol=1e-5)
    table = learn.predict_cells(data.valid_ds.cells, 'Red')
    assert np.allclose(table.p, expected[:, 1], atol=1e-5) and np.allclose(table.loss, losses)

def test_the_exported_model_says_the_same(root, tmp_path):
    data = bunch(root, size=32)
    learn = cnn_learner(data, 'squeezenet1_1', pretrained=False, loss_func=nn.CrossEntropyLoss(weight=W), path=tmp_path)
    with learn.no_bar(): probs = learn.get_preds()[0]
    loaded = load_learner(learn.export())
    for row,item in zip(probs, data.valid_ds.items[:3]): assert torch.allclose(loaded.predict(item)[2], row, atol=1e-5)
    learn.loss_func = Doubled()
    with pytest.raises(ValueError, match='activation of its own'): learn.export()
    with pytest.raises(ValueError, match='needs log-probabilities: pass log_softmax=True'): learn.loss_func = nn.NLLLoss()
    own = cnn_learner(data, 'squeezenet1_1', pretrained=False, loss_func=nn.NLLLoss(), log_softmax=True, path=tmp_path)
    assert load_learner(own.export()).activation(torch.zeros(1)) == 1

@pytest.mark.parametrize('loss', [nn.MSELoss(), fastai.losses.MSELossFlat(), nn.MultiMarginLoss(), F.mse_loss, partial(F.mse_loss), lambda pred, y: pred.sum(), nn.KLDivLoss()])
def test_a_loss_that_nobody_knows_is_refused_at_once(data, loss):
    with pytest.raises(ValueError, match='not known. Pass a cross entropy, or say it: loss_func.activation'): tiny(data, loss_func=loss)
    learn = tiny(data)
    with pytest.raises(ValueError, match='not known'): learn.loss_func = loss
    assert learn.fit(1, 1e-3) is None # the one before is still there

def test_outputs_that_are_no_probabilities_are_refused(data):
    "A head of one's own may end in anything, so it is seen when it is first used, before a weight has moved."
    learn = tiny(data, loss_func=nn.NLLLoss())
    was = weights_hash(nn.Sequential(*learn.model)[1])
    with pytest.raises(ValueError, match='they sum to .*log-softmax'): learn.get_preds()
    with pytest.raises(ValueError, match='they sum to .*log-softmax'): learn.fit(1, 1e-3)
    assert weights_hash(learn.model[1]) == was
    assert not torch.allclose(learn.get_preds(act=lambda x: x)[0].sum(1), torch.ones(1)) # asked for as they are

# --- a mean over batches is another number --------------------------------------------------------------------------------------

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(weight=W), partial(F.cross_entropy, weight=W), fastai.losses.CrossEntropyLossFlat(weight=W), nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(weight=torch.tensor([0., 1.])), fastai.losses.FocalLossFlat(weight=W), nn.CrossEntropyLoss(weight=W, label_smoothing=.2)])
def test_validation_loss_is_that_of_the_whole_part(root, loss):
    "Batches of one class, as in validation in file order: the same number for every size of a batch, in `validate` and in the table of epochs."
    seen = []
    for val_bs in (2, 100):
        learn = tiny(bunch(root, val_bs=val_bs), loss_func=loss)
        out,y = learn.get_preds(act=lambda x: x)
        expected = float(loss(out, y))
        assert np.isclose(learn.validate()[0], expected, rtol=1e-5)
        learn.fit(1, 1e-3)
        out,y = learn.get_preds(act=lambda x: x)
        seen.append(learn.recorder.history[-1]['valid_loss'])
        assert np.isclose(seen[-1], float(loss(out, y)), rtol=1e-5)
    assert np.allclose(seen, seen[0], rtol=1e-5)

def test_the_formula_of_a_weighted_loss(root):
    learn = tiny(bunch(root, val_bs=3), loss_func=nn.CrossEntropyLoss(weight=W))
    probs,y = learn.get_preds()
    each = -probs[range(len(y)), y].log()
    assert np.isclose(learn.validate()[0], float((W[y]*each).sum()/W[y].sum()), rtol=1e-5)

# --- every prediction comes from pictures as they are ---------------------------------------------------------------------------

def test_predictions_of_the_training_part(root):
    "Drawn order, dropped pictures and augmentation belong to training alone, whatever the part is called."
    data = bunch(root, ds_tfms=get_transforms(flip_vert=True), bs=4)
    learn = tiny(data, metrics=[])
    expected,y = learn.get_preds(dl=data.cells_dl(data.train_ds.cells))
    assert len(y) == len(data.train_ds) and len(y) % 4
    for how in (dict(ds_type=DatasetType.Train), dict(ds_type=DatasetType.Fix), dict(ds_idx=0), dict(dl=data.train_dl), dict(dl=data.train_dl.new(shuffle=False)),
                dict(dl=data.train_dl.new(bs=3))):
        probs,targets = learn.get_preds(**how)
        assert torch.allclose(probs, expected, atol=1e-6) and torch.equal(targets, y), how
    loss = float(F.nll_loss(expected.log(), y))
    for of in (0, DatasetType.Train, data.train_dl, DatasetType.Fix): assert np.isclose(learn.validate(of)[0], loss, rtol=1e-4)
    assert torch.allclose(learn.TTA(beta=1., dl=data.train_dl)[0], expected, atol=1e-6)
    for call in ((), (1,), (data.valid_dl,), (DatasetType.Valid,)): assert np.isclose(learn.validate(*call)[0], learn.validate()[0])
    assert np.isclose(learn.validate(dl=data.valid_dl)[0], learn.validate(ds_idx=1)[0])

def test_pictures_of_other_classes_are_refused(data, root):
    other = bunch(root, classes=[*CLASSES][::-1])
    with pytest.raises(ValueError, match="classes"): tiny(data).get_preds(dl=other.valid_dl)
    with pytest.raises(ValueError, match="classes"): tiny(data).validate(other.valid_dl)
    for stats in (False, ([.5]*3, [.5]*3), ([.485, .456, .4], [.229, .224, .226])): # pictures of another normalisation too
        other = bunch(root, normalize=stats)
        for dl in (other.valid_dl, other.test_dl([data.valid_ds.items[0]])):
            with pytest.raises(ValueError, match="normalises otherwise"): tiny(data).get_preds(dl=dl)
        with pytest.raises(ValueError, match="normalises otherwise"): tiny(data).TTA(dl=other.valid_dl)
        assert torch.equal(tiny(data).get_preds(dl=other.train_dl)[0], tiny(data).get_preds(ds_idx=0)[0]) # made anew, as the learner's are
    assert len(tiny(data).get_preds(dl=bunch(root, bs=5).valid_dl)[0]) == len(data.valid_ds)

def test_metrics_and_callbacks_of_one_validation(data):
    seen = []
    class Seen(Callback):
        def after_batch(self): seen.append(self.iter)
    learn = tiny(data, metrics=[])
    def one(pred, y): return torch.tensor(1.)
    assert len(learn.validate(data.valid_dl, callbacks=[Seen()], metrics=[one])) == 2 and seen and not learn.metrics

# --- however a training ends ----------------------------------------------------------------------------------------------------

class Planted(Callback):
    "An error, or Ctrl-C, at one event of one batch."
    def __init__(self, event, error=KeyboardInterrupt, batch=1, order=100):
        self.batch,self.order = batch,order
        def act():
            if self.training and self.iter == batch: raise error('planted')
        setattr(self, event, act)

def gradients(learn): return [p.grad is not None and bool(p.grad.any()) for p in learn.model.parameters()]
def half(): return torch.is_autocast_enabled('cpu') or torch.is_autocast_enabled('cuda')

EVENTS = 'before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward', 'before_step', 'after_step'
@pytest.mark.parametrize('event,how', [*((event, 'fit') for event in EVENTS), ('after_backward', 'lr_find'), ('after_step', 'lr_find'), ('before_batch', 'half'), ('after_loss', 'half')])
def test_an_end_at_any_place_leaves_nothing_behind(data, event, how):
    "After it, a fit ends to the bit where a learner ends that begins with the same weights, and nothing else."
    learn = tiny(data)
    if how == 'half': learn.to_bf16()
    begun = {name: value.clone() for name,value in learn.model.state_dict().items()}
    learn.add_cb(planted := Planted(event))
    with pytest.raises(KeyboardInterrupt): learn.lr_find() if how == 'lr_find' else learn.fit(1, 1e-2)
    assert not any(gradients(learn)) and not half() and torch.autocast_increment_nesting() == 1 and torch.autocast_decrement_nesting() == 0
    learn.remove_cb(planted)
    if how == 'half': learn.remove_cb(learn.mixed_precision)
    if how == 'lr_find': assert all(torch.equal(value, begun[name]) for name,value in learn.model.state_dict().items()) and learn.stage == -1
    clean = tiny(data)
    for one in (learn, clean):
        one.model.load_state_dict(begun)
        one.stage,one.opt = 3,None
        one.fit(1, 1e-2)
    assert weights_hash(learn.model) == weights_hash(clean.model)

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, CancelFitException])
def test_half_precision_ends_with_a_prediction(data, error):
    class In(Callback):
        order = 12 # inside
        def before_batch(self): raise error('planted')
    learn = tiny(data).to_bf16()
    single = tiny(data).get_preds()[0]
    learn.add_cb(In())
    for call in (learn.get_preds, learn.validate):
        with pytest.raises(error): call()
        assert not half() and not learn.lock.locked()
    with torch.autocast('cpu', torch.bfloat16):
        with pytest.raises(BaseException): learn.get_preds()
        assert torch.is_autocast_enabled('cpu')                     # what was on before is on after
    assert torch.equal(tiny(data).get_preds()[0], single)

@pytest.mark.parametrize('event', ['before_fit', 'before_epoch', 'before_validate', 'after_pred', 'after_validate', 'after_epoch'])
def test_a_prediction_that_fails_does_not_make_the_next_one_wait(data, event):
    "fastai takes a lock before the first event, and gives it back only where that event went well."
    learn = tiny(data)
    expected,cbs = learn.get_preds()[0],[*learn.cbs]
    def planted(): raise RuntimeError('planted')
    for call in (learn.get_preds, learn.validate):
        with pytest.raises(RuntimeError, match='planted'): call(cbs=[type('Fails', (Callback,), {event: lambda self: planted()})()])
        assert not learn.lock.locked() and [*learn.cbs] == cbs
    with pytest.raises(Exception): learn.validate(cbs=[1])
    assert not learn.lock.locked() and [*learn.cbs] == cbs and torch.equal(learn.get_preds()[0], expected)

def test_a_loss_that_a_callback_held_is_given_back(data):
    learn = tiny(data, loss_func=fastai.losses.CrossEntropyLossFlat())
    loss = learn.loss_func
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=[MixUp(), Planted('after_loss')])
    assert learn.loss_func is loss
    learn.fit(1, 1e-3, cbs=MixUp())
    assert learn.loss_func is loss and learn.get_preds()[0].shape == (7, 2)

def test_gradients_that_wait_for_a_step(data):
    "The next epochs of a stage get them; a new stage begins with none, whether it was stopped or not."
    learn = tiny(data)
    learn.fit(1, 1e-2, cbs=GradientAccumulation(10))
    assert any(gradients(learn))
    left = [p.grad.clone() for p in learn.model.parameters()]
    class First(Callback):
        def before_batch(self):
            if self.iter == 0 and self.training: self.seen = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
    learn.fit(2, 1e-2, cbs=(first := First()), start_epoch=1)
    assert all(torch.equal(a, b) for a,b in zip(first.seen, left))
    learn.fit(1, 1e-2, cbs=GradientAccumulation(10))
    learn.fit(1, 1e-2, cbs=(first := First()))
    assert first.seen == [None]*len(left)

# --- a network that has diverged ------------------------------------------------------------------------------------------------

def test_training_stops_at_the_first_loss_that_is_no_number(data, tmp_path):
    learn = tiny(data, tmp_path)
    learn.save('good')
    good = weights_hash(learn.model)
    with pytest.raises(FloatingPointError, match=r'loss is (nan|inf) in epoch 0, batch \d, at the rate 1e\+30.*learn.load'): learn.fit(3, 1e30)
    assert not learn.recorder.history and not any(gradients(learn))
    learn.load('good')
    assert weights_hash(learn.model) == good
    learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.history[-1]['valid_loss']) and all(p.isfinite().all() for p in learn.model.parameters())

@pytest.mark.parametrize('batch', [0, 2])
def test_the_batch_is_named_and_its_weights_stay(data, batch):
    class Spoil(Callback):
        def after_pred(self):
            if self.training and self.iter == batch and self.epoch == 1: self.learn.pred = self.pred*float('nan')
    learn = tiny(data)
    with pytest.raises(FloatingPointError, match=f'nan in epoch 1, batch {batch}, at the rate 0.001'): learn.fit(3, 1e-3, cbs=Spoil())
    assert all(p.isfinite().all() for p in learn.model.parameters()) and len(learn.recorder.history) == 1
    with pytest.raises(FloatingPointError, match='rate'): tiny(data).fit_one_cycle(1, 1e30)

def test_validation_that_is_no_number_ends_the_training_before_anything_is_saved(data, tmp_path):
    class Spoil(Callback):
        order,saved = 2000,0
        def before_validate(self): self.learn.model[1][2].bias.data.fill_(float('nan'))
        def after_epoch(self): self.saved += 1
    learn = tiny(data)
    with pytest.raises(FloatingPointError, match='nan in the validation after epoch 0'): learn.fit(2, 1e-3, cbs=(spoil := Spoil()))
    assert not spoil.saved
    learn.spec,learn.path = cnn_learner(data, 'resnet18', pretrained=False).spec,tmp_path
    for call in (learn.get_preds, lambda: learn.predict(data.valid_ds.items[0]), learn.TTA, lambda: learn.predict_cells(data.valid_ds.cells, 'Red'),
                 lambda: learn.save('one'), learn.export): # nor is anything written
        with pytest.raises(FloatingPointError, match='no numbers'): call()
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]

def test_a_search_of_rates_ends_where_the_loss_does(data):
    learn = tiny(data)
    was = weights_hash(learn.model)
    learn.lr_find(1e-7, 1e30, num_it=40, stop_div=False)
    lrs,losses = learn.recorder.found
    assert 0 < len(lrs) < 40 and np.isfinite(losses).all() and weights_hash(learn.model) == was

# --- files of weights -----------------------------------------------------------------------------------------------------------

def averages(learn):
    "What an optimizer remembers, in the order of the weights."
    state = getattr(learn.opt, 'opt', learn.opt).state
    return [{k: v for k,v in state.get(p, {}).items() if torch.is_tensor(v)} for p in learn.model.parameters()]
def alike(a, b):
    return len(a) == len(b) and all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x,y in zip(a, b))

@pytest.mark.parametrize('opt', ['adam', 'sgd'])
def test_weights_alone_begin_the_averages_anew(data, tmp_path, opt):
    learn = tiny(data, tmp_path, opt_func=_OPT_FUNCS[opt])
    learn.fit(1, 1e-2)
    learn.save('bare', with_opt=False)
    learn.save('whole')
    kept = [{k: v.clone() for k,v in state.items()} for state in averages(learn)]
    learn.fit(1, 1e-2)
    for name,with_opt in (('bare', None), ('whole', False)):
        learn.load(name, with_opt=with_opt)
        fresh = tiny(data, tmp_path, opt_func=_OPT_FUNCS[opt]).load(name, with_opt=with_opt)
        for one in (learn, fresh):
            one.stage = 5
            one.fit(1, 1e-2)
        assert weights_hash(learn.model) == weights_hash(fresh.model)
    assert alike(averages(learn.load('whole')), kept)

@pytest.mark.parametrize('kw,fact', [(dict(classes=[*CLASSES][::-1]), 'classes: '), (dict(normalize=False), 'stats: '), (dict(normalize=([.5]*3, [.5]*3)), 'stats: ')])
def test_a_file_says_what_it_was_trained_for(data, root, tmp_path, kw, fact):
    tiny(data, tmp_path).save('one')
    other = tiny(bunch(root, **kw), tmp_path)
    other.model[1][2].weight.data += 1
    was = weights_hash(other.model)
    with pytest.raises(ValueError, match=f'one.pth was trained for other data(.|\n)*{fact}.* then, .* now'): other.load('one')
    assert weights_hash(other.model) == was
    with pytest.raises(ValueError, match=fact): tiny(data).data = other.dls

def test_files_of_others(data, tmp_path, capsys):
    "Plain PyTorch and fastai 2 read ours; theirs are read, and it is said that nothing could be compared."
    learn = tiny(data, tmp_path)
    learn.fit(1, 1e-3)
    file = learn.save('ours')
    stock = fastai.learner.Learner(data, network(), opt_func=fastai.optimizer.Adam, path=tmp_path)
    with pytest.warns(UserWarning): stock.load('ours') # another optimizer
    assert weights_hash(stock.model) == weights_hash(learn.model)
    assert set(torch.load(file, weights_only=True)) == {'model', 'opt'}
    capsys.readouterr()
    learn.load('ours')
    assert capsys.readouterr().out == ''
    torch.save(learn.model.state_dict(), tmp_path/'models'/'plain.pth')
    stock.save('stock')
    for name in ('plain', 'stock'):
        assert learn.load(name) is learn and f'{name}.pth does not say' in capsys.readouterr().out
        learn.fit(1, 1e-3)

def test_averages_of_another_optimizer_are_not_taken(data, tmp_path, capsys):
    learn = tiny(data, tmp_path, opt_func=_OPT_FUNCS['sgd'])
    learn.fit(1, 1e-3)
    learn.save('sgd')
    adam = tiny(data, tmp_path)
    with pytest.raises(ValueError, match='another optimizer'): adam.load('sgd', with_opt=True)
    adam.load('sgd')
    assert 'begin anew' in capsys.readouterr().out and weights_hash(adam.model) == weights_hash(learn.model)
    adam.fit(1, 1e-3)

def test_weights_of_another_network_change_nothing(data, tmp_path):
    "torch copies those that fit before it complains."
    learn = tiny(data, tmp_path)
    state = learn.model.state_dict()
    torch.save({**state, '1.2.weight': torch.zeros(3, 64)}, (tmp_path/'models').mkdir() or tmp_path/'models'/'other.pth')
    state = {name: value.clone() + 1 for name,value in state.items()}
    learn.model.load_state_dict(state)
    was = weights_hash(learn.model)
    with pytest.raises(RuntimeError, match='size mismatch'): learn.load('other')
    assert weights_hash(learn.model) == was

def test_averages_take_the_layout_of_the_weights(data, tmp_path):
    "Saved with channels last and loaded into channels first, and the other way: the steps that follow are the same."
    forms = torch.channels_last,torch.contiguous_format
    ends = {}
    for then in forms:
        learn = tiny(data, tmp_path)
        learn.model.to(memory_format=then)
        learn.fit(1, 1e-2)
        learn.save('one')
        for now in forms:
            other = tiny(data, tmp_path)
            other.model.to(memory_format=now)
            other.load('one')
            for p,mine in zip(other.model.parameters(), averages(other)):
                assert all(value.stride() == p.stride() for value in mine.values() if value.shape == p.shape)
            other.stage = 0
            other.fit(1, 1e-2)
            ends[then,now] = torch.cat([p.detach().flatten() for p in other.model.parameters()])
    for end in ends.values(): assert torch.allclose(end, ends[forms[0],forms[0]], atol=1e-4)

def test_what_is_frozen_stays_so_when_weights_come(data, tmp_path):
    learn = tiny(data, tmp_path)
    learn.save('start', with_opt=False)
    learn.freeze()
    trained = [p.requires_grad for p in learn.model.parameters()]
    learn.load('start')
    assert [p.requires_grad for p in learn.model.parameters()] == trained and learn.opt.frozen_idx == 1 and not all(trained)

# --- wrapped networks, copies, folders ------------------------------------------------------------------------------------------

WRAPPERS = dict(parallel=nn.DataParallel, averaged=torch.optim.swa_utils.AveragedModel, inside=lambda model: nn.Sequential(nn.DataParallel(model[0]), model[1]),
    compiled=lambda model: torch.compile(model), compiled_inside=lambda model: nn.Sequential(torch.compile(model[0]), model[1]))
@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow]*('compiled' in name)) for name in WRAPPERS])
def test_wrapped_networks_are_refused(data, tmp_path, name):
    learn = tiny(data, tmp_path)
    with pytest.raises(ValueError, match=r'take it off. To compile, call learn.model.compile\(\)'): learn.model = WRAPPERS[name](learn.model)
    with pytest.raises(ValueError, match='take it off'): weights_hash(WRAPPERS[name](learn.model))
    learn.model[0] = WRAPPERS[name](learn.model)[0] if 'inside' in name else WRAPPERS[name](learn.model[0])
    for call in (lambda: learn.save('one'), lambda: weights_hash(learn.model)):
        with pytest.raises(ValueError, match='take it off'): call()
    learn.spec = cnn_learner(data, 'resnet18', pretrained=False).spec
    with pytest.raises(ValueError, match='take it off'): learn.export()

def test_another_network_gets_another_optimizer(data):
    learn = tiny(data)
    learn.fit(1, 1e-3)
    learn.model = network()
    was = weights_hash(learn.model)
    learn.fit(1, 1e-3)
    assert weights_hash(learn.model) != was

def pickled(learn): return pickle.loads(pickle.dumps(learn))
@pytest.mark.parametrize('how', [copy.deepcopy, pickled, lambda learn: pickled(copy.deepcopy(learn))], ids=['deepcopy', 'pickle', 'both'])
@pytest.mark.parametrize('before', [0, 1])
def test_copies_train_on(data, how, before):
    learn = tiny(data, metrics=[fastai.metrics.accuracy])
    for _ in range(before): learn.fit(1, 1e-3)
    other = how(learn)
    assert other.recorder.history == learn.recorder.history and all(cb.learn is other for cb in other.cbs)
    learn.fit_one_cycle(1, 1e-3)
    other.fit_one_cycle(1, 1e-3)
    assert weights_hash(learn.model) == weights_hash(other.model)
    assert torch.equal(other.get_preds()[0], learn.get_preds()[0])

@pytest.fixture
def read_only(monkeypatch, tmp_path):
    "A folder in which nothing can be made, as Kaggle's input is."
    make = pathlib.Path.mkdir
    def refuse(self, *args, **kw):
        if 'input' in str(self): raise OSError(errno.EROFS, 'Read-only file system', str(self))
        make(self, *args, **kw)
    monkeypatch.setattr(pathlib.Path, 'mkdir', refuse)
    return tmp_path

def test_folders_that_cannot_be_written(data, read_only, tmp_path_factory):
    learn = tiny(data, read_only/'input')
    learn.lr_find(num_it=12)
    assert learn.recorder.found[0] and not (read_only/'input').exists()
    with pytest.raises(OSError, match=r"one.pth cannot be written \(Read-only file system\).*path= or model_dir=") as error: learn.save('one')
    assert error.value.errno == errno.EROFS
    other = cnn_learner(data, 'squeezenet1_1', pretrained=False, path=read_only/'input')
    with pytest.raises(OSError, match='export.pkl cannot be written.*path='): other.export()
    with pytest.raises(OSError, match='history.csv cannot be written.*path='): learn.fit(1, 1e-3, callbacks=CSVLogger())
    learn.path,learn.model_dir = read_only,'.'
    assert learn.save('one').is_file()

# --- any order of what is done to a learner -------------------------------------------------------------------------------------

def end(event, error=KeyboardInterrupt, more=(), **kw): return lambda learn: learn.fit(1, 1e-2, cbs=[Planted(event, error, **kw), *[make() for make in more]])
def stopped_search(learn):
    with learn.added_cbs([Planted('after_backward')]): learn.lr_find(num_it=6)

STEPS = dict(
    fit=lambda learn: learn.fit(1, 1e-2), cycle=lambda learn: learn.fit_one_cycle(1, 1e-2), find=lambda learn: learn.lr_find(num_it=6),
    stop=end('after_backward'), stop_later=end('after_step'), error=end('after_loss', RuntimeError, [MixUp]), half=end('before_batch', RuntimeError, [Bfloat16], order=12),
    stop_search=stopped_search, diverge=lambda learn: learn.fit(1, 1e30),
    save=lambda learn: learn.save('own'), load=lambda learn: learn.load('own'), load_bare=lambda learn: learn.load('own', with_opt=False),
    freeze=lambda learn: learn.freeze(), unfreeze=lambda learn: learn.unfreeze(),
    validate=lambda learn: learn.validate(0), predict=lambda learn: learn.predict(learn.dls.valid_ds.items[0]), tta=lambda learn: learn.TTA())

@pytest.mark.door
@cases(12)
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=8), with_opt=st.sampled_from([None, False]))
def test_any_order_of_steps_leaves_what_a_fresh_learner_would_be(data, tmp_path_factory, steps, with_opt):
    "Then both load one file, and train to the same bit; every step that fails says why."
    folder = tmp_path_factory.mktemp('order')
    learn = tiny(data, folder)
    learn.fit(1, 1e-2)
    learn.save('own')
    learn.save('file')
    for step in steps:
        try: STEPS[step](learn)
        except (KeyboardInterrupt, RuntimeError) as error: assert 'planted' in str(error)
        except FloatingPointError as error: assert 'learn.load' in str(error)
        assert not half() and len(learn.cbs) == 4 and not learn.fitting and type(learn.loss_func) is fastai.losses.CrossEntropyLossFlat
    fresh = tiny(data, folder)
    if learn.opt.frozen_idx: fresh.freeze()
    for one in (learn, fresh):
        one.load('file', with_opt=with_opt)
        one.stage = 7
        one.fit(1, 1e-2)
    assert weights_hash(learn.model) == weights_hash(fresh.model) and alike(averages(learn), averages(fresh))
    assert torch.equal(learn.get_preds()[0], fresh.get_preds()[0]) and learn.validate()[0] == fresh.validate()[0]

def test_the_rate_finder_between_two_trainings_is_silent_and_leaves_the_curve(data, recwarn):
    learn = tiny(data)
    for _ in range(2): # the second one finds a recorder that has seen both
        learn.fit(1, 1e-3)
        before = float(learn.recorder.smooth_loss.val)
        learn.lr_find(num_it=3)
        assert float(learn.recorder.smooth_loss.val) == before
    assert not [str(seen.message) for seen in recwarn if 'shadowing' in str(seen.message)]
