"The learner in the words of 2019: scores of the positive class, callbacks, optimizers and networks of one's own, plots that show."
import os,subprocess,sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as skm
import torch
from fastai import metrics as stock
from fastai import optimizer as fo
from fastai.callback import tracker
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback as StockEarly
from hypothesis import given,strategies as st
from PIL import Image
from properties import cases
from torch import nn,optim
from torchvision import models
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import DatasetType,ImageDataBunch
from malaria_fastai.datablock import ImageList
from malaria_fastai.learner import (AUROC,CNNLearner,CSVLogger,EarlyStoppingCallback,FBeta,KappaScore,MatthewsCorreff,Precision,Recall,ReduceLROnPlateauCallback,ShowGraph,
    _fitting_metric,_suggested,accuracy,cnn_learner,create_cnn,error_rate,load_learner,weights_hash)
from malaria_fastai.resume import SaveModelCallback

ROOT = Path(__file__).resolve().parent.parent

def pictures(root, classes, n=24):
    "Noise with a colour for each class; the validation part stands in file order, class by class."
    for k,name in enumerate(classes):
        (root/name).mkdir(parents=True)
        for i in range(n):
            x = np.random.RandomState(100*k + i).randint(0, 200, (16, 16, 3)).astype(np.uint8)
            x[..., k % 3] += 40
            Image.fromarray(x).save(root/name/f'{i:02d}.png')
    return root

def bunch(root, **kw): return ImageDataBunch.from_folder(root, **{**dict(valid_pct=.5, size=16, resize_method=ResizeMethod.SQUISH, bs=8, cache=False), **kw})

@pytest.fixture(scope='module')
def cells(tmp_path_factory): return bunch(pictures(tmp_path_factory.mktemp('cells'), ['Parasitized', 'Uninfected']))
@pytest.fixture(scope='module')
def three(tmp_path_factory): return bunch(pictures(tmp_path_factory.mktemp('three'), ['a', 'b', 'c']))
@pytest.fixture(scope='module')
def animals(tmp_path_factory): return bunch(pictures(tmp_path_factory.mktemp('animals'), ['cat', 'dog']))

class Flat(nn.Module):
    "A made network: a layer over all pixels."
    def __init__(self, n=2):
        super().__init__()
        self.layer = nn.Linear(3*16*16, n)
        nn.init.normal_(self.layer.weight, std=.05, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.layer.bias)
    def forward(self, x): return self.layer(x.flatten(1))

def new(data, **kw):
    learn = CNNLearner(data, Flat(data.c), **kw)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
    learn.logger = lambda *args: None
    return learn

def last(learn): return learn.recorder.to_frame().iloc[-1]

# --- scores -------------------------------------------------------------------------------------------------------------------------

BOTH = dict(recall=[Recall(), stock.Recall(), Recall('binary')], precision=[Precision(), stock.Precision()], f1=[FBeta(beta=1), stock.F1Score(), stock.FBeta(1)], f2=[FBeta(), stock.FBeta(2)],
    jaccard=[stock.Jaccard()], auc=[AUROC(), stock.RocAucBinary()], ap=[stock.APScoreBinary()], kappa=[KappaScore(), KappaScore('quadratic'), stock.CohenKappa()], mcc=[MatthewsCorreff(), stock.MatthewsCorrCoef()])
TRUE = dict(recall=lambda y, c, p: skm.recall_score(y, c), precision=lambda y, c, p: skm.precision_score(y, c), f1=lambda y, c, p: skm.f1_score(y, c), f2=lambda y, c, p: skm.fbeta_score(y, c, beta=2),
    jaccard=lambda y, c, p: skm.jaccard_score(y, c), auc=lambda y, c, p: skm.roc_auc_score(y, p), ap=lambda y, c, p: skm.average_precision_score(y, p),
    kappa=lambda y, c, p: skm.cohen_kappa_score(y, c), mcc=lambda y, c, p: skm.matthews_corrcoef(y, c))

@pytest.mark.parametrize('name', BOTH)
def test_scores_are_of_the_positive_class(cells, name):
    "Ours and fastai's own: in the column, by validate and by the predictions, the same number."
    learn = new(cells, metrics=BOTH[name])
    learn.fit(1, 1e-3)
    probs,y = learn.get_preds()
    right = TRUE[name](y == 0, probs.argmax(1) == 0, probs[:, 0])
    row = last(learn)
    columns = [o for o in row.index if o not in ('stage', 'epoch', 'train_loss', 'valid_loss', 'seconds')]
    assert len(columns) == len(set(learn.metrics.attrgot('name'))) and np.allclose([row[o] for o in columns], right, atol=1e-6), (row, right)
    assert all(o.endswith('_Parasitized') for o in columns) or name in ('kappa', 'mcc')
    assert np.allclose([*map(float, learn.validate())][1:], right, atol=1e-6)

def test_what_the_list_gives(cells):
    "Sensitivity .220 where recall of the second class is .937: the column says .220."
    learn = new(cells, metrics=[Recall(), Recall(pos_label=1), stock.Recall(pos_label=0)])
    y = torch.tensor([0]*50 + [1]*48)
    pred = torch.zeros(98, 2)
    pred[torch.arange(98), torch.tensor([0]*11 + [1]*39 + [1]*45 + [0]*3)] = 1.
    found = {}
    for metric in learn.metrics:
        metric.reset()
        metric.accumulate(SimpleNamespace(pred=pred, y=y, yb=(y,), to_detach=lambda o: o))
        found[metric.name] = round(float(metric.value), 3)
    assert found == {'recall_Parasitized': .22, 'recall_Uninfected': .938, 'recall_score_Parasitized': .22}

def test_without_a_record_the_second_class_as_in_v1(animals):
    assert [o.name for o in new(animals, metrics=[Recall(), AUROC(), stock.Precision()]).metrics] == ['recall_dog', 'auroc_dog', 'precision_score_dog']

def test_several_classes(three):
    learn = new(three, metrics=[Recall(), Precision('micro'), stock.F1Score(), AUROC(), stock.RocAucBinary(), KappaScore(weights='quadratic'), Recall(pos_label=2), stock.Recall(average='weighted')])
    learn.fit(1, 1e-3)
    probs,y = learn.get_preds()
    called,row = probs.argmax(1),last(learn)
    macro = dict(average='macro', zero_division=0)
    right = dict(recall_macro=skm.recall_score(y, called, **macro), precision_micro=skm.precision_score(y, called, average='micro'), f1_score_macro=skm.f1_score(y, called, **macro),
        auroc_macro=skm.roc_auc_score(y, probs, multi_class='ovr'), roc_auc_score_macro=skm.roc_auc_score(y, probs, multi_class='ovr'), kappa_score=skm.cohen_kappa_score(y, called, weights='quadratic'),
        recall_c=skm.recall_score(y == 2, called == 2, zero_division=0), recall_score_weighted=skm.recall_score(y, called, average='weighted'))
    assert {o: round(float(row[o]), 5) for o in right} == {k: round(float(v), 5) for k,v in right.items()}
    for words in (dict(), dict(pos_label=0), dict(pos_label=2)): # the last class is all that such a score sees
        with pytest.raises(ValueError, match='a score of two classes, not 3'): new(three, metrics=stock.APScoreBinary(**words))

def test_words_of_a_score_may_be_set_later(three):
    kappa = KappaScore()
    kappa.weights = 'quadratic'
    learn = new(three, metrics=[kappa, KappaScore()])
    learn.fit(1, 1e-3)
    probs,y = learn.get_preds()
    assert [round(float(o), 6) for o in learn.validate()[1:]] == [round(skm.cohen_kappa_score(y, probs.argmax(1), weights=o), 6) for o in ('quadratic', None)]

def test_a_class_as_a_metric(cells): assert [o.name for o in new(cells, metrics=[Precision, KappaScore]).metrics] == ['precision_Parasitized', 'kappa_score']

def test_metrics_set_again(cells):
    learn = new(cells, metrics=[Recall(), accuracy])
    learn.metrics = [*learn.metrics, Precision()]
    assert [o.name for o in learn.metrics] == ['recall_Parasitized', 'accuracy', 'precision_Parasitized']
    with pytest.raises(TypeError, match='averag'): Recall(averag='macro')

def own_auc(pred, y): return skm.roc_auc_score(y.cpu().numpy(), pred.softmax(1).cpu().numpy()[:, 1])
def own_precision(pred, y): return skm.precision_score(y.cpu(), pred.argmax(1).cpu(), pos_label=0)

def test_a_function_sees_the_whole_part(cells):
    "In file order a batch of 8 holds one class: an area is NaN there, and a mean of precisions of nothing."
    seen = []
    def rows(pred, y):
        seen.append((len(pred), y.unique().tolist()))
        return len(y)
    learn = new(cells, metrics=[own_auc, own_precision, rows])
    learn.fit(1, 1e-3)
    probs,y = learn.get_preds()
    assert {*map(str, seen)} == {'(24, [0, 1])'} and np.allclose(last(learn)[['own_auc', 'own_precision']].astype(float), [skm.roc_auc_score(y, probs[:, 1]), skm.precision_score(y, probs.argmax(1), pos_label=0)], atol=1e-5)

def test_nan_is_said_once(cells, capsys):
    def nothing(pred, y): return float('nan')
    learn = new(cells, metrics=[nothing, accuracy])
    learn.fit(3, 1e-4)
    assert capsys.readouterr().out.count('nothing: not a number in epoch 0') == 1

@pytest.mark.door
@cases(25)
@given(y=st.lists(st.integers(0, 1), min_size=2, max_size=30).filter(lambda o: len(set(o)) == 2), seed=st.integers(0, 999), bs=st.integers(1, 7), swap=st.booleans())
def test_any_batches_any_order_of_classes(y, seed, bs, swap):
    "However a part is cut into batches, and in whichever order its classes stand: the score of the positive class is one number."
    pred,y = torch.from_numpy(np.random.RandomState(seed).randn(len(y), 2)).float(),torch.tensor(y)
    classes = ['Uninfected', 'Parasitized'] if swap else ['Parasitized', 'Uninfected']
    at = classes.index('Parasitized')
    data = SimpleNamespace(classes=classes, c=2)
    right = dict(recall_Parasitized=skm.recall_score(y == at, pred.argmax(1) == at), auroc_Parasitized=skm.roc_auc_score(y == at, pred.softmax(1)[:, at]), accuracy=float((pred.argmax(1) == y).float().mean()))
    for made in (Recall(), AUROC(), accuracy):
        metric = _fitting_metric(made, data)
        metric.reset()
        for i in range(0, len(y), bs): metric.accumulate(SimpleNamespace(pred=pred[i:i+bs], y=y[i:i+bs], yb=(y[i:i+bs],), to_detach=lambda o: o))
        assert float(metric.value) == pytest.approx(right[metric.name], abs=1e-5)

def test_accuracy_can_be_formatted(cells):
    preds = new(cells).get_preds()
    assert f'{accuracy(*preds):.3f}' == f'{1 - error_rate(*preds):.3f}' and type(accuracy(*preds)) is torch.Tensor
    assert torch.allclose(accuracy(*preds), torch.tensor(float(stock.accuracy(*preds))))

# --- callbacks ----------------------------------------------------------------------------------------------------------------------

def test_callback_fns(cells, tmp_path, capsys):
    import matplotlib.pyplot as plt
    plt.close('all')
    learn = new(cells, metrics=[accuracy, Recall()], path=tmp_path, callback_fns=[ShowGraph, CSVLogger, partial(EarlyStoppingCallback, monitor='recall', min_delta=2, patience=1), partial(CSVLogger, filename='more', append=True)])
    learn.fit_one_cycle(5, 1e-4)
    assert learn.recorder.to_frame().epoch.tolist() == [0, 1, 2] and len(plt.get_fignums()) == 1 # two epochs in a row were no better by 2
    assert pd.read_csv(tmp_path/'history.csv').columns.tolist() == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'recall_Parasitized', 'seconds']
    learn.fit(1, 1e-4)
    learn.lr_find(num_it=10)
    learn.get_preds()
    assert len(pd.read_csv(tmp_path/'history.csv')) == 1 and len(pd.read_csv(tmp_path/'more.csv')) == 4
    assert [o.read_logged_file().epoch.tolist() for o in learn.cbs if isinstance(o, CSVLogger)] == [[0], [0, 1, 2, 0]]

def test_callbacks_with_the_learner_first(cells, tmp_path):
    learn = new(cells, metrics=accuracy, path=tmp_path)
    learn.fit_one_cycle(2, 1e-3, callbacks=[SaveModelCallback(learn, every='improvement', monitor='accuracy', name='best'), EarlyStoppingCallback(learn, monitor='val_loss', mode='min', patience=3)])
    assert (tmp_path/'models'/'best.pth').is_file()

@pytest.mark.parametrize('patience', [0, 1, 3])
def test_patience_is_v1s(cells, patience):
    "v1 stops when more than `patience` epochs in a row were no better; fastai 2 counts one less."
    never = dict(monitor='valid_loss', min_delta=1e6)
    ours,theirs = new(cells),new(cells)
    ours.fit(8, 1e-5, callbacks=EarlyStoppingCallback(ours, patience=patience, **never))
    theirs.fit(8, 1e-5, cbs=StockEarly(patience=patience+1, **never))
    assert len(ours.recorder.history) == len(theirs.recorder.history) == patience + 2

def test_the_rate_falls_on_a_plateau(cells, capsys):
    learn = new(cells)
    learn.fit(3, 1e-3, callbacks=[ReduceLROnPlateauCallback(learn, min_delta=1e6, factor=.1)])
    assert np.allclose(learn.recorder.lrs[::3], [1e-3, 1e-3, 1e-4]) and 'reducing lr to' in capsys.readouterr().out

@pytest.mark.parametrize('make,error,match', [(lambda l: EarlyStoppingCallback(l, 'acuracy'), ValueError, 'acuracy.*there is train_loss, valid_loss, accuracy'), (lambda l: EarlyStoppingCallback('accuracy'), TypeError, 'learner comes first'),
    (lambda l: ReduceLROnPlateauCallback(l, mode='lowest'), ValueError, 'mode'), (lambda l: type('Mine', (Callback,), dict(on_epoch_end=print))(), TypeError, 'Mine.on_epoch_end is an event of v1')])
def test_callbacks_that_cannot_be(cells, make, error, match):
    learn = new(cells, metrics=accuracy)
    with pytest.raises(error, match=match): learn.fit(1, cbs=make(learn))
    assert not learn.recorder.history and not learn.recorder.stages

def test_mixup(cells):
    learn = new(cells)
    assert learn.mixup(alpha=.4) is learn
    again,plain = new(cells).mixup(),new(cells)
    for o in (learn, again, plain): o.fit(2, 1e-3)
    assert weights_hash(learn.model) == weights_hash(again.model) != weights_hash(plain.model)

def test_recorder_in_v1s_shapes(cells):
    learn = new(cells, metrics=[accuracy, Recall()])
    learn.fit_one_cycle(2, 1e-3)
    rec = learn.recorder
    assert rec.val_losses == rec.to_frame().valid_loss.tolist() and len(rec.moms) == len(rec.lrs) == len(rec.losses) == 6
    assert [[round(o.item(), 5) for o in row] for row in rec.metrics] == rec.to_frame()[['accuracy', 'recall_Parasitized']].round(5).values.tolist()
    assert rec.metrics_names == ['accuracy', 'recall_Parasitized'] and all(o.item() > 0 for o in map(torch.as_tensor, rec.losses))

def rising(pred, y):
    "A metric that is 1 more each time."
    rising.n += 1
    return torch.tensor(float(rising.n))

@pytest.mark.parametrize('opt_func', ['adam', 'sgd', optim.SGD, partial(fo.OptimWrapper, opt=optim.AdamW), lambda params, lr: fo.OptimWrapper(params, optim.AdamW, lr=lr)])
def test_fastais_own_callbacks_do_what_they_say(cells, tmp_path, opt_func):
    "The rate falls, whoever makes the steps; the best epoch comes back; the learner stops."
    rising.n,kept = 0,[]
    class Keep(Callback):
        order = 70
        def after_epoch(self): kept.append(weights_hash(self.model))
    learn = new(cells, opt_func=opt_func, metrics=rising, path=tmp_path)
    low = dict(monitor='rising', comp=np.less)
    learn.fit(4, 1e-3, cbs=[tracker.ReduceLROnPlateau(**low), tracker.SaveModelCallback(**low), StockEarly(**low, patience=3), Keep()])
    assert np.allclose(learn.recorder.lrs[::3], [1e-3, 1e-3, 1e-4, 1e-5]) and len({*kept}) == 3 and weights_hash(learn.model) == kept[0]

@pytest.mark.parametrize('kind', [tracker.SaveModelCallback, tracker.ReduceLROnPlateau, StockEarly])
def test_fastais_own_callbacks_watch_what_is_there(cells, tmp_path, kind):
    learn = new(cells, metrics=[accuracy, Recall()], path=tmp_path)
    with pytest.raises(ValueError, match="monitor='acuracy' is not measured here; there is train_loss, valid_loss, accuracy, recall_Parasitized"): learn.fit(1, cbs=kind(monitor='acuracy'))
    learn.fit(1, 1e-3, cbs=kind(monitor='recall')) # what the column begins with
    assert len(learn.recorder.history) == 1

def test_two_of_fastais_own_that_would_write_one_file(cells, tmp_path):
    "Each ends by loading its best epoch: with one name, that of the other."
    learn = new(cells, metrics=accuracy, path=tmp_path)
    two = tracker.SaveModelCallback(),tracker.SaveModelCallback(monitor='accuracy')
    with pytest.raises(ValueError, match='two callbacks would save under the name model: give each its own fname='): learn.fit(1, 1e-3, cbs=two)
    assert not learn.recorder.history and not (tmp_path/'models').exists()
    two[0].fname = 'other'
    learn.fit(1, 1e-3, cbs=two)
    assert {file.name for file in (tmp_path/'models').iterdir()} == {'model.pth', 'other.pth'}

# --- words of the learner -----------------------------------------------------------------------------------------------------------

SQUEEZE = dict(base_arch='squeezenet1_1', pretrained=False)

@pytest.mark.parametrize('kw,said', [(dict(true_wd=True), ''), (dict(silent=True), 'silent'), (dict(add_time=False), 'add_time')])
def test_words_without_a_meaning_are_named(cells, capsys, kw, said):
    create_cnn(cells, **SQUEEZE, **kw)
    assert capsys.readouterr().out.count("has no meaning here") == bool(said) and said in capsys.readouterr().out + said

@pytest.mark.parametrize('kw,match', [(dict(true_wd=False), 'decouple_wd'), (dict(split_on=3), 'splitter'), (dict(init=nn.init.xavier_normal_), 'init'), (dict(layer_groups=[]), 'layer_groups')])
def test_words_that_would_change_the_result_are_refused(cells, kw, match):
    with pytest.raises(ValueError, match=match): create_cnn(cells, **SQUEEZE, **kw)

def test_bn_wd_is_a_word_of_fastai_2(cells): assert [create_cnn(cells, **SQUEEZE, bn_wd=o).wd_bn_bias for o in (True, False)] == [True, False]

@pytest.mark.parametrize('word', 'split layer_groups interpret purge destroy init bn_wd format_stats one_cycle_scheduler'.split())
def test_a_word_of_v1_gets_its_hint(cells, word):
    with pytest.raises(AttributeError, match=rf'(CNNLearner|Recorder)\.{word} is a word of fastai v1: .'): getattr(new(cells), word)

def test_other_words_do_not_blame_the_network(cells):
    with pytest.raises(AttributeError, match="a CNNLearner has no 'fitt'"): new(cells).fitt
    assert not hasattr(new(cells), 'nothing')

class Own(nn.Module):
    "A network of one's own with a pooling and 1,000 classes."
    def __init__(self):
        super().__init__()
        self.first,self.second = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),nn.Conv2d(8, 16, 3, 1, 1)
        self.pool,self.fc = nn.AdaptiveAvgPool2d(1),nn.Linear(16, 1000)
    def forward(self, x): return self.fc(self.pool(self.second(self.first(x))).flatten(1))

def test_a_function_that_makes_the_network(cells, tmp_path):
    asked = []
    def arch(pretrained):
        asked.append(pretrained)
        return Own()
    learn = cnn_learner(cells, arch, metrics=accuracy, path=tmp_path)
    assert asked == [True] and len(learn.model[0]) == 2 and len(cnn_learner(cells, arch, cut=-2).model[0]) == 2
    assert not learn.model[0][1].weight.requires_grad                     # a pretrained body begins frozen
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    with pytest.raises(ValueError, match='cannot be exported'): learn.export()
    with pytest.raises(ValueError, match='a network is needed'): cnn_learner(cells, lambda pretrained: None)
    with pytest.raises(ValueError, match='say with cut='): cnn_learner(cells, lambda pretrained: nn.Sequential(nn.Conv2d(3, 2, 3)))
    with pytest.raises(TypeError, match='called as in v1, with one argument, `pretrained`'): cnn_learner(cells, Own)

@pytest.mark.parametrize('net', [Own(), nn.Sequential(nn.Conv2d(3, 2, 3)), models.squeezenet1_1()], ids=['own', 'row', 'torchvision'])
def test_a_network_where_what_makes_one_is_asked_for(cells, net):
    with pytest.raises(ValueError, match=r'is a network, .*lambda pretrained: net.* CNNLearner\(data, net\)'): cnn_learner(cells, net)

@pytest.mark.parametrize('opt_func', ['adam', 'sgd', optim.SGD])
def test_a_body_of_one_convolution(cells, opt_func):
    "There is no early body; slices, freezing and the rate finder do without."
    learn = cnn_learner(cells, lambda pretrained: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), opt_func=opt_func)
    assert [len(o) for o in learn.splitter(learn.model)] == [0, 2, 8]
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, slice(1e-4, 1e-3))
        learn.unfreeze()
        learn.lr_find(num_it=4)
        learn.fit_one_cycle(1, slice(1e-4, 1e-3))
    assert np.isfinite(learn.recorder.val_losses).all()

@pytest.mark.parametrize('arch,cut,parts', [(models.resnet18, -2, 8), (models.resnet18, -3, 7), (models.squeezenet1_1, -1, 13), ('mobilenet_v2', -1, 19)])
def test_a_cut_from_the_end(cells, arch, cut, parts): assert len(cnn_learner(cells, arch, pretrained=False, cut=cut).model[0]) == parts

def test_v1s_third_argument_goes_by_name(cells):
    with pytest.raises(ValueError, match='cut='): create_cnn(cells, models.resnet18, -2)

def test_a_network_that_is_no_classifier_of_these_classes(cells):
    for model,match in ((Flat(5), r'\[1, 5\]'), (nn.Conv2d(3, 2, 1), r'\[1, 2, 16, 16\]')):
        with pytest.raises(ValueError, match=match): CNNLearner(cells, model)

OPTIMIZERS = dict(sgd=optim.SGD, momentum=partial(optim.SGD, momentum=.9), adam=optim.Adam, betas=partial(optim.Adam, betas=(.9, .99)), adamw=optim.AdamW, rmsprop=optim.RMSprop, adagrad=optim.Adagrad,
    adamax=optim.Adamax, nadam=optim.NAdam, radam=optim.RAdam, rprop=optim.Rprop, adadelta=optim.Adadelta)

@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizers_of_torch(cells, name):
    "A step is torch's, after the weights have shrunk by rate times decay; frozen weights stay."
    learn,plain = new(cells, opt_func=OPTIMIZERS[name], wd=.1, wd_bn_bias=True),Flat()
    made,words = (OPTIMIZERS[name].func, OPTIMIZERS[name].keywords) if isinstance(OPTIMIZERS[name], partial) else (OPTIMIZERS[name], {})
    opt = made(plain.parameters(), lr=1e-2, **{**words, **({} if name == 'rprop' else dict(weight_decay=0))})
    x,y = cells.valid_dl.one_batch()
    learn.create_opt()
    learn.opt.set_hypers(lr=1e-2, wd=.1)
    for model,step in ((learn.model, learn.opt), (plain, opt)):
        for _ in range(3):
            nn.functional.cross_entropy(model(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor)).backward()
            if step is opt:
                for p in plain.parameters(): p.data.mul_(1 - 1e-2*.1)
            step.step()
            model.zero_grad()
    assert torch.allclose(learn.model.layer.weight, plain.layer.weight, atol=1e-6)
    learn.create_opt()
    learn.fit_one_cycle(1, 1e-3)
    assert len(learn.recorder.moms) == 3

FASTAIS = dict(rmsprop=fo.RMSProp, momentum=partial(fo.RMSProp, mom=.9), sgd=fo.SGD, adam=fo.Adam, radam=fo.RAdam, qhadam=fo.QHAdam, larc=fo.Larc, lamb=fo.Lamb, ranger=fo.ranger,
    wrapped=partial(fo.OptimWrapper, opt=optim.RMSprop))

@pytest.mark.parametrize('name', FASTAIS)
def test_optimizers_of_fastai_follow_a_cycle(cells, name):
    learn = new(cells, opt_func=FASTAIS[name])
    was = weights_hash(learn.model)
    learn.fit_one_cycle(1, 1e-3)
    assert len({*learn.recorder.moms}) == 3 and weights_hash(learn.model) != was and learn.model.layer.weight.isfinite().all()

def test_optimizers_that_cannot_be(cells):
    with pytest.raises(ValueError, match='by name there is'): new(cells, opt_func='sdg')

def test_one_momentum(cells):
    learn = new(cells)
    learn.fit_one_cycle(1, 1e-3, moms=.9)
    assert learn.recorder.moms == [.9]*3

def test_load_with_a_test_set(cells, tmp_path):
    learn = cnn_learner(cells, 'resnet18', pretrained=False, path=tmp_path)
    learn.export()
    files = [*cells.valid_ds.items]
    back = load_learner(tmp_path, test=files, bs=5)
    assert torch.allclose(back.get_preds(ds_type=DatasetType.Test)[0], learn.get_preds()[0], atol=1e-5) and back.data.bs == 5
    assert len(load_learner(tmp_path, test=cells.valid_ds).get_preds(ds_type=DatasetType.Test)[0]) == len(files)

def test_load_with_the_test_set_of_a_chain(cells, tmp_path):
    "As code of 2019 has it, the third argument too."
    learn = cnn_learner(cells, 'resnet18', pretrained=False, path=tmp_path)
    learn.export()
    files = ImageList.from_folder(cells.path)
    table = pd.DataFrame(dict(name=[str(o.relative_to(cells.path)) for o in files.items]))
    expected = learn.get_preds(dl=cells.test_dl(files.items))[0]
    for back in (load_learner(tmp_path, test=files), load_learner(tmp_path, 'export.pkl', files), load_learner(tmp_path, test=ImageList.from_df(table, cells.path)),
                 load_learner(tmp_path, test=np.array(files.items))):
        assert len(back.data.test_ds) == len(files) and torch.allclose(back.get_preds(ds_type=DatasetType.Test)[0], expected, atol=1e-5)
    for folder in (cells.path, str(cells.path)):
        with pytest.raises(ValueError, match='ImageList.from_folder'): load_learner(tmp_path, test=folder)
    for none in (None, []):
        with pytest.raises(ValueError, match='no test part'): load_learner(tmp_path, test=none).get_preds(ds_type=DatasetType.Test)

# --- the learning rate finder -------------------------------------------------------------------------------------------------------

def recorded(losses, beta=.98):
    mean,kept = 0,[]
    for i,loss in enumerate(losses):
        mean = beta*mean + (1-beta)*loss
        kept.append(mean/(1 - beta**(i+1)))
    return np.array(kept, np.float32)

@pytest.mark.door
@cases(25)
@given(seed=st.integers(0, 10**6), centre=st.floats(1e-5, 1e-2), depth=st.floats(.4, 3), noise=st.floats(0, .05))
def test_the_suggestion_lies_in_the_slope(seed, centre, depth, noise):
    rates = np.geomspace(1e-7, 10, 100)
    losses = depth - .8*depth/(1 + (centre/rates)**1.5) + (rates/3)**3 + np.random.RandomState(seed).normal(0, noise*depth, 100)
    found = _suggested(rates, recorded(losses), .98)
    assert found and centre/10 < found[0] < 3 and centre/10 < found[1]

@pytest.mark.parametrize('spike', [0, 3, 8])
def test_a_noisy_start_is_ignored(spike):
    "One high loss at the beginning, and the running mean falls from there: v1 pointed at it."
    rates = np.geomspace(1e-7, 10, 100)
    losses = .7 - .4/(1 + (3e-3/rates)**1.5) + (rates/3)**3 + np.random.RandomState(0).normal(0, .02, 100)
    losses[spike] += 2
    kept = recorded(losses)
    assert rates[np.gradient(kept[1:]).argmin()] < 1e-5 or spike == 0   # what v1 would say
    assert 1e-3 < _suggested(rates, kept, .98)[0] < .3

def test_no_slope_no_suggestion():
    rates = np.geomspace(1e-7, 10, 100)
    flat = [_suggested(rates, recorded(.7 + np.random.RandomState(o).normal(0, .1, 100)), .98) for o in range(60)]
    assert sum(o is not None for o in flat) <= 3 and _suggested(rates[:8], recorded(np.ones(8)), .98) is None

def test_the_finder_returns_and_forecasts(cells, capsys, monkeypatch):
    import time
    learn,now = new(cells),[0.]
    monkeypatch.setattr('malaria_fastai.learner.time', type('Clock', (), dict(time=staticmethod(lambda: now.__setitem__(0, now[0] + 1) or now[0]))))
    found = learn.lr_find(num_it=40)
    assert found == learn.recorder.suggested()[0] and '40 batches, a rate for each: 0' in capsys.readouterr().out
    flat = new(cells)
    flat.recorder.found = np.geomspace(1e-6, 1, 40).tolist(),[1.]*40
    flat.recorder.plot(suggestion=True)
    assert flat.recorder.min_grad_lr is None and 'No clear slope' in capsys.readouterr().out

# --- plots that show ----------------------------------------------------------------------------------------------------------------

CELLS = [('g()', 1), ('g(); 1', 1), ('g()\nplt.show()', 1), ('g()\nplt.savefig("saved.png")', 1), ('for i in range(3): g()', 3), ('def f():\n    g()\nf()', 1), ('g()\ng(2)', 2), ('fig = g()', 1), ('fig', 1),
    ('fig = g()\nplt.close(fig)', 0), ('g()\nplt.title("t")\nplt.show()\ng()', 2), ('plt.plot([1, 2])\ng()', 2), ('from IPython.display import display\ndisplay(g())', 1), ('x = [g(), g()]', 2),
    ('g().savefig("own.png")', 1), ('try: g()\nfinally: plt.savefig("final.png")', 1)]
MADE = """import matplotlib.pyplot as plt
from malaria_fastai.cells import leave_open
def g(n=1):
    fig,ax = plt.subplots(1, n, figsize=(1, 1))
    return leave_open(fig)"""
REAL = """import matplotlib.pyplot as plt, tempfile
from pathlib import Path
from malaria_fastai.all import *
tmp = tempfile.TemporaryDirectory()
root = draw_sample(Path(tmp.name)/'sample')
data = ImageDataBunch.from_folder(root, valid_pct=.2, size=32, bs=64, cache=False)
data = ImageDataBunch.from_cells(root, data.cells[::8], size=32, bs=32, cache=False)
learn = create_cnn(data, 'squeezenet1_1', pretrained=False, metrics=accuracy)
with learn.no_bar(): learn.fit_one_cycle(1)
learn.lr_find(num_it=20, stop_div=False)
interp = ClassificationInterpretation.from_learner(learn)"""
PLOTS = ['data.show_batch(2)', 'learn.recorder.plot_losses()', 'learn.recorder.plot_lr(show_moms=True)', 'learn.recorder.plot_metrics()', 'learn.recorder.plot()', 'learn.show_results(rows=1)',
    'interp.plot_confusion_matrix()', 'interp.plot_top_losses(2)', 'interp.plot_top_losses(2, heatmap=True)']

def run_notebook(first, sources, folder):
    "Run cells in a kernel of their own; the number of pictures that each of them shows."
    import nbclient,nbformat
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in [first, *sources]])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('MPLBACKEND', raising=False) # a kernel shows figures inline
        patch.setenv('PYTHONPATH', str(ROOT))
        nbclient.NotebookClient(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(folder)))).execute()
    return [sum('image/png' in o.get('data', {}) for o in cell.outputs) for cell in nb.cells[1:]]

def is_white(file): return np.asarray(Image.open(file).convert('L')).min() == 255

@pytest.mark.filterwarnings('ignore')
def test_a_notebook_shows_every_figure_once(tmp_path):
    assert run_notebook(MADE, [source for source,_ in CELLS], tmp_path) == [n for _,n in CELLS]
    assert not any(is_white(tmp_path/f'{name}.png') for name in ('saved', 'own', 'final'))

@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_our_plots_show_once_wherever_they_stand(tmp_path):
    inside = [f'if True:\n    {o}\n    plt.savefig("{i}.png")\nprint()' for i,o in enumerate(PLOTS)]
    assert run_notebook(REAL, [*PLOTS, *inside, '\n'.join(PLOTS[:3])], tmp_path) == [1]*len(PLOTS)*2 + [3]
    assert not any(is_white(tmp_path/f'{i}.png') for i in range(len(PLOTS)))

@pytest.mark.parametrize('backend', ['Agg', 'svg'])
def test_a_script_saves_the_current_figure(tmp_path, backend):
    "Without a display: no picture is shown, none is lost."
    script = MADE + "\nfig = g()\nassert plt.gcf() is fig and plt.get_fignums() == [1]\nplt.savefig('saved.png')\n" \
        "for i in range(2): g()\nassert len(plt.get_fignums()) == 3"
    done = subprocess.run([sys.executable, '-W', 'error', '-c', script], cwd=tmp_path, env={**os.environ, 'MPLBACKEND': backend, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert not done.returncode and not done.stdout, done.stderr
    assert not is_white(tmp_path/'saved.png')

def test_a_display_shows_what_is_open():
    "With a display, `plt.show()` shows the figures that are open: ours are, each once."
    import matplotlib.pyplot as plt
    from malaria_fastai.cells import leave_open
    plt.close('all')
    figs = [leave_open(plt.figure()) for _ in range(2)]
    assert [plt.figure(i) for i in plt.get_fignums()] == figs and plt.gcf() is figs[-1]
    plt.close('all')
