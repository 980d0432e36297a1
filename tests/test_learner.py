"What a notebook cannot say about learners: many backbones, v1's schedule against its own formula, damaged and hostile model files."
import inspect, math, os, pickle
import fastai.learner, fastai.vision.learner, numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, Datasets
from fastcore.basics import noop
from fastai.metrics import accuracy, error_rate
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from torchvision import models
from malaria_fastai.backbone import ModelSpec, WeightsUnavailable, arch_name, create_body, layer_groups, n_features, split_params
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import DatasetType, ImageDataBunch
from malaria_fastai.files import ModelRefused
from malaria_fastai.learner import FASTAI_V1, _OPT_FUNCS, CNNLearner, OneCycle, cnn_learner, load_learner, read_model, weights_hash
from malaria_fastai.transforms import get_transforms

CLASSES = 'Blue', 'Green', 'Red'

def three_colours(root, seed=0):
    "Sixty pictures of three colours."
    for i in range(60):
        rng,k = np.random.RandomState(1000*seed + i),i % 3
        x = rng.randint(0, 120, (24, 24, 3)).astype(np.uint8)
        x[..., 2-k] += np.uint8(rng.randint(20, 110))
        (root/CLASSES[k]).mkdir(exist_ok=True)
        Image.fromarray(x).save(root/CLASSES[k]/f'{i:02d}.png')
    return root

@pytest.fixture(scope='module')
def root(tmp_path_factory): return three_colours(tmp_path_factory.mktemp('colours'))

def bunch(root, **kw): return ImageDataBunch.from_folder(root, **{**dict(size=32, resize_method=ResizeMethod.SQUISH, bs=16, cache=False), **kw})
def quiet(learn):
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
    learn.logger = lambda *args: None
    return learn
def new(data, arch='squeezenet1_1', **kw): return quiet(cnn_learner(data, arch, **{**dict(pretrained=False), **kw}))

@pytest.fixture(scope='module')
def data(root): return bunch(root)

@pytest.fixture(scope='module')
def learn(root, tmp_path_factory):
    "A small network after two stages of 2 and 1 epochs, at low rates: it stays near where it began. Do not train it further."
    learn = new(bunch(root, ds_tfms=get_transforms()), metrics=[accuracy, error_rate], path=tmp_path_factory.mktemp('learn'))
    learn.fit_one_cycle(2, 1e-4)
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-4, 1e-5))
    return learn

class Corner(nn.Module):
    "A made network: it says which channel is the brightest in the upper left corner, where each view shows another pixel."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.))
    def forward(self, x): return self.scale*x[:, :, 0, 0]

@pytest.fixture(scope='module')
def corner(data): return quiet(CNNLearner(data, nn.Sequential(Corner(), nn.Identity())))

def linear(data, **kw):
    "A made network of one layer, which begins with nothing: gradients of its weights are means over the pictures."
    layer = nn.Linear(3*32*32, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return quiet(CNNLearner(data, nn.Sequential(nn.Sequential(nn.Flatten(), layer)), opt_func=_OPT_FUNCS['adam'], **kw))

def shapes_only(arch='')->torch.device:
    "Where tensors have shapes and no numbers, so that large networks cost nothing; torchvision draws a RegNet with numbers."
    return torch.device('cpu' if arch.startswith('regnet') else 'meta')

# --- backbones ------------------------------------------------------------------------------------------------------------------

ARCHS = dict(resnet18=512, resnet34=512, resnet50=2048, vgg16=512, densenet121=1024, mobilenet_v2=1280, efficientnet_b0=1280, squeezenet1_1=512, mobilenetv2_140=1792,
    alexnet=256, mobilenet_v3_small=576, regnet_y_400mf=440, mnasnet0_5=1280)

@pytest.mark.parametrize('arch', ARCHS)
def test_three_layer_groups(arch):
    with shapes_only(arch):
        model = ModelSpec(arch, 3).build()
        seen,features = model.eval()(torch.zeros(2, 3, 64, 64)),n_features(model[0])
    assert seen.shape == (2, 3) and features == ARCHS[arch]
    groups,all_params = split_params(model),[id(p) for p in model.parameters()]
    assert [len(g) > 0 for g in groups] == [True]*3
    assert sorted(id(p) for g in groups for p in g) == sorted(all_params) and len(set(all_params)) == len(all_params)
    assert {id(p) for p in groups[2]} == {id(p) for p in model[1].parameters()}
    convs = [sum(isinstance(o, nn.Conv2d) for m in g for o in m.modules()) for g in layer_groups(model)[:2]]
    assert .2 < convs[0]/sum(convs) < .8
    names = [n for n,_ in model[0].named_parameters()]
    first = {id(p) for p in groups[0]}
    inside = [id(p) in first for p in model[0].parameters()]
    assert inside == sorted(inside, reverse=True), f'{names}: the first group is not the first part'

@pytest.mark.parametrize('arch', ['resnet18', 'resnet34', 'resnet50'])
def test_resnets_are_cut_as_in_v1(arch):
    with shapes_only(): model = ModelSpec(arch, 2).build()
    assert [len(g) for g in layer_groups(model)] == [6, 2, 1] # v1: split before the third stage

def test_what_stock_fastai_does_with_other_networks(data):
    "What our pages say of it: two groups for VGG16, and no cut for MobileNetV2."
    stock = fastai.vision.learner.vision_learner
    with shapes_only(): vgg,ours = stock(data, models.vgg16, pretrained=False),ModelSpec('vgg16', 3).build()
    assert len(vgg.splitter(vgg.model)) == 2 and len(split_params(ours)) == 3
    with shapes_only(), pytest.raises(StopIteration): stock(data, models.mobilenet_v2, pretrained=False)

def test_body_is_the_network_without_its_classifier():
    x = torch.rand(2, 3, 64, 64)
    for arch in ('resnet18', 'densenet121', 'mobilenet_v2'):
        whole,body = models.get_model(arch, weights=None).eval(),create_body(arch, pretrained=False).eval()
        got = dict(zip(body.state_dict(), whole.state_dict().values()))
        body.load_state_dict(got)
        seen = []
        last = [m for m in whole.modules() if isinstance(m, nn.Linear)][-1]
        last.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
        with torch.no_grad():
            whole(x)
            assert torch.allclose(body(x).mean((2, 3)), seen[0], rtol=1e-3, atol=1e-5), arch

@pytest.mark.parametrize('arch,name', [(models.resnet50, 'resnet50'), ('resnet18', 'resnet18'), ('timm:resnet18', 'timm:resnet18'), ('mobilenetv2_140', 'mobilenetv2_140')])
def test_arch_names(arch, name): assert arch_name(arch) == name

@pytest.mark.parametrize('arch,match', [('resnet_18', 'resnet18'), ('timm:nothing', 'neither'), (3, 'neither')])
def test_unknown_archs(arch, match):
    with pytest.raises(ValueError, match=match): arch_name(arch)

@pytest.mark.parametrize('arch', ['vit_b_32', 'maxvit_t'])
def test_archs_that_cannot_be_cut(arch):
    with shapes_only(), pytest.raises(ValueError, match='cannot be cut'): create_body(arch, pretrained=False)

def test_a_network_that_is_no_map_is_refused():
    with pytest.raises(ValueError, match='neither pictures of 64 nor of 224'): ModelSpec('timm:vit_tiny_patch16_384', 2).build()

def test_a_map_with_channels_last_is_refused():
    class Last(nn.Module):
        def forward(self, x): return torch.zeros(len(x), 2, 2, 96)
    with pytest.raises(ValueError, match='not a map'): n_features(Last())

@pytest.mark.parametrize('kw,match', [(dict(pretrained=False, weights='IMAGENET1K_V1'), 'goes with pretrained'), (dict(arch='resnet10t', weights='IMAGENET1K_V1'), 'timm'),
    (dict(weights='IMAGENET1K_V9'), 'no weights called')])
def test_weights_that_mean_nothing(kw, match):
    with pytest.raises(ValueError, match=match): create_body(**{**dict(arch='resnet18', pretrained=True), **kw})

@pytest.mark.parametrize('arch', ['resnet18', 'resnet10t'])
def test_pretrained_weights_that_cannot_be_had(arch, tmp_path, monkeypatch):
    for o in ('TORCH_HOME', 'HF_HOME', 'HF_HUB_CACHE'): monkeypatch.setenv(o, str(tmp_path))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    def refused(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr('timm.models._builder.load_pretrained', refused)
    with pytest.raises(WeightsUnavailable, match='pretrained=False'): create_body(arch)

# --- the arguments of cnn_learner -----------------------------------------------------------------------------------------------

def linears(learn): return [m for m in learn.model[1].modules() if isinstance(m, nn.Linear)]
def drops(learn): return [m.p for m in learn.model[1].modules() if isinstance(m, nn.Dropout)]

def test_head_is_v1s(data):
    l = new(data)
    assert [(o.in_features, o.out_features, o.bias is not None) for o in linears(l)] == [(1024, 512, True), (512, 3, True)]
    assert drops(l) == [.25, .5] and sum(isinstance(m, nn.BatchNorm1d) for m in l.model[1].modules()) == 2

def test_arguments_of_the_head(data):
    assert [o.out_features for o in linears(new(data, lin_ftrs=[64, 32]))] == [64, 32, 3]
    assert drops(new(data, ps=.2)) == [.1, .2] and drops(new(data, ps=[.3, .4])) == [.3, .4]
    assert linears(new(data, concat_pool=False))[0].in_features == 512
    assert isinstance(new(data, bn_final=True).model[1][-1], nn.BatchNorm1d) and not isinstance(new(data).model[1][-1], nn.BatchNorm1d)
    assert all(o.bias is None for o in linears(new(data, head_bias=False)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 3))
    own = new(data, custom_head=head)
    assert own.model[1] is head
    with pytest.raises(ValueError, match='head of your own'): own.export()

@pytest.mark.parametrize('arch,cut,channels', [('resnet18', 6, 128), ('resnet18', 8, 512), ('mobilenet_v2', 4, 24)])
def test_a_body_up_to_one_of_its_parts(data, tmp_path, arch, cut, channels):
    l = new(data, arch, cut=cut, path=tmp_path)
    assert len(l.model[0]) == cut and n_features(l.model[0]) == channels and linears(l)[0].in_features == 2*channels
    assert all(len(o) for o in split_params(l.model))
    l.export()
    back = load_learner(tmp_path)
    assert back.spec.cut == cut and weights_hash(back.model) == weights_hash(l.model)

@pytest.mark.parametrize('kw,match', [(dict(cut=0), '8 parts'), (dict(cut=-1), '8 parts'), (dict(cut=-10), '8 parts'), (dict(cut=9), '8 parts'), (dict(cut=3, head='own'), 'cut go with'),
    (dict(cut=3, base_arch='resnet10t'), 'torchvision')])
def test_a_cut_that_cannot_be_made(data, kw, match):
    with pytest.raises(ValueError, match=match): cnn_learner(data, **{**dict(base_arch='resnet18', pretrained=False), **kw})

def test_channels_lie_last_or_not(data):
    "Where the numbers lie in memory, not what they are."
    last,first = new(data, 'resnet18'),new(data, 'resnet18', channels_last=False)
    w,v = (l.model[0][4][0].conv1.weight for l in (last, first))
    assert w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() and v.is_contiguous() and torch.equal(w, v)
    item = data.valid_ds.items[0]
    assert torch.allclose(last.predict(item)[2], first.predict(item)[2], atol=1e-4)

def test_arguments_of_the_learner(data, tmp_path):
    class Mark(Callback): pass
    l = new(data, metrics=[accuracy], wd=.3, path=tmp_path, model_dir='m', callbacks=Mark(), cbs=[Callback()], train_bn=False, loss_func=nn.CrossEntropyLoss())
    assert l.wd == .3 and l.save('x') == tmp_path/'m'/'x.pth' and sum(isinstance(o, Mark) for o in l.cbs) == 1
    assert isinstance(l.loss_func, nn.CrossEntropyLoss) and l.train_bn is False
    sgd = fastai.optimizer.SGD
    l = new(data, opt_func=sgd)
    l.create_opt()
    assert 'mom' in l.opt.hypers[0] and 'sqr_mom' not in l.opt.hypers[0]

def test_v1_by_name(data):
    l = new(data, **FASTAI_V1)
    l.create_opt()
    assert l.opt.hypers[0]['eps'] == 1e-8 and l.dls.stats is None and data.stats and l.wd_bn_bias
    new_ = new(data)
    new_.create_opt()
    assert new_.opt.hypers[0]['eps'] == 1e-5 and new_.dls is data and not new_.wd_bn_bias

@pytest.mark.parametrize('name', ['pretraind', 'callback_fn', 'bn_wdd', 'wds'])
def test_unknown_arguments(data, name):
    with pytest.raises(TypeError, match=name): cnn_learner(data, 'resnet18', pretrained=False, **{name: 1})

def test_pretrained_starts_frozen(data, monkeypatch):
    monkeypatch.setattr(models, 'get_model', lambda name, weights=None: getattr(models, name)(weights=None))
    for pretrained in (True, False):
        l = quiet(cnn_learner(data, models.resnet18, pretrained=pretrained))
        body = [p.requires_grad for n,p in l.model[0].named_parameters() if 'bn' not in n and 'downsample.1' not in n and n[:2] != '1.']
        assert l.pretrained == pretrained and set(body) == {not pretrained} and all(p.requires_grad for p in l.model[1].parameters())

def test_freezing(data):
    l = new(data, 'resnet18')
    def trains(): return [any(p.requires_grad for p in g if p.ndim > 1) for g in split_params(l.model)]
    l.freeze()
    assert trains() == [False, False, True]
    l.freeze_to(1)
    assert trains() == [False, True, True]
    l.unfreeze()
    assert trains() == [True, True, True]

# --- one cycle ------------------------------------------------------------------------------------------------------------------

def v1_schedule(n, lr_max, moms, div_factor, pct_start, final_div):
    "fastai v1's OneCycleScheduler, from its source: phases of int(n*pct) batches, a step at the end of each batch."
    if final_div is None: final_div = div_factor*1e4
    a1 = int(n*pct_start)
    cos = lambda start, end, pct: end + (start-end)/2*(math.cos(math.pi*pct) + 1)
    phases = [[lr_max/div_factor, lr_max, *moms, max(1, a1), 0], [lr_max, lr_max/final_div, *moms[::-1], max(1, n-a1), 0]]
    lr,mom,i,out = phases[0][0],phases[0][2],0,[]
    for _ in range(n):
        out.append((lr, mom))
        p = phases[i]
        p[5] += 1
        lr,mom = cos(p[0], p[1], p[5]/p[4]),cos(p[2], p[3], p[5]/p[4])
        if p[5] >= p[4]: i = min(i+1, 1)
    return np.array(out)

@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 400), lr=st.floats(1e-6, 1), moms=st.tuples(st.floats(.8, .99), st.floats(.5, .79)), div=st.floats(1.5, 100), pct=st.floats(.01, .99),
       final=st.none() | st.floats(2, 1e6))
def test_schedule_is_v1s(n, lr, moms, div, pct, final):
    cycle = OneCycle([lr], div, pct, final, moms)
    got = np.array([(a[0], b) for a,b in (cycle.at(i, n) for i in range(n))])
    assert (got[:, 0] == lr).sum() == 1 and (got[:, 1] == moms[1]).sum() == 1           # the peak, once
    if int(n*pct): assert np.allclose(got, v1_schedule(n, lr, moms, div, pct, final), rtol=1e-9, atol=1e-12)

class Watch(Callback):
    "Rates and momenta that the optimizer has in each batch."
    order,run_valid = 65,False
    def __init__(self): self.seen = []
    def before_batch(self): self.seen.append(([h['lr'] for h in self.opt.hypers], self.opt.hypers[-1]['mom'], self.epoch))

def watched(data, *args, **kwargs):
    l,w = new(data),Watch()
    l.fit_one_cycle(*args, callbacks=[w], **kwargs)
    return l,np.array([o[0] for o in w.seen]),np.array([o[1] for o in w.seen]),[o[2] for o in w.seen]

def test_the_optimizer_gets_the_schedule(data):
    l,lrs,moms,_ = watched(data, 2, max_lr=1e-3, moms=(.9, .8), div_factor=10., pct_start=.5, final_div=100.)
    expected = v1_schedule(6, 1e-3, (.9, .8), 10., .5, 100.)
    assert np.allclose(lrs, expected[:, :1]) and np.allclose(moms, expected[:, 1])
    assert [(o == 1e-3).sum() for o in lrs.T] == [1]*3 and (moms == .8).sum() == 1 # the optimizer meets both, once
    assert np.allclose(l.recorder.lrs, lrs[:, -1]) and np.allclose(l.recorder.momenta, moms)

def test_fastai_2_meets_neither_peak_nor_least_momentum(data):
    "What our page says of it, for 21 batches; and ours on the same."
    def seen(learn, *args):
        w = Watch()
        learn.add_cb(w)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(7, *args)
        return [lrs[-1] for lrs,_,_ in w.seen],[mom for _,mom,_ in w.seen]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 3))
    lrs,moms = seen(fastai.learner.Learner(data, model, cbs=fastai.callback.core.Callback()), 1e-2)
    assert len(lrs) == 21 and 1e-2 not in lrs and .85 not in moms and max(lrs) > 9e-3
    lrs,moms = seen(linear(data), 1e-2)
    assert len(lrs) == 21 and lrs.count(1e-2) == moms.count(.85) == 1

@pytest.mark.parametrize('lr,peaks', [(None, [3e-3]*3), (slice(3e-3), [3e-4, 3e-4, 3e-3]), (1e-2, [1e-2]*3), (slice(1e-2), [1e-3, 1e-3, 1e-2]), (slice(1e-4, 1e-2), [1e-4, 1e-3, 1e-2]),
    (slice(1e-4, 1e-5), [1e-4, 10**-4.5, 1e-5]), ([1e-4, 2e-4, 3e-4], [1e-4, 2e-4, 3e-4])])
def test_rates_of_layer_groups(data, lr, peaks):
    _,lrs,_,_ = watched(data, 2, max_lr=lr)
    assert np.allclose(lrs.max(0), peaks) and np.allclose(lrs[0], np.array(peaks)/25)

def test_defaults_are_v1s():
    p = inspect.signature(CNNLearner.fit_one_cycle).parameters
    assert ' '.join(p).startswith('self cyc_len max_lr moms div_factor pct_start final_div wd callbacks tot_epochs start_epoch')
    assert (p['moms'].default, p['pct_start'].default) == ((.95, .85), .3)
    cycle = OneCycle([1.])
    assert cycle.points[:, 0].tolist() == [1/25, 1., 1/25e4]

def test_fastai_2s_names(data):
    a = watched(data, 2, 1e-2, (.9, .8), 5., .4, 50.)
    b = watched(data, n_epoch=2, lr_max=1e-2, moms=(.9, .8, .9), div=5., pct_start=.4, div_final=50.)
    assert np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2]) and weights_hash(a[0].model) == weights_hash(b[0].model)
    l,w = new(data),Watch()
    l.fit_one_cycle(1, cbs=w)
    assert len(w.seen) == 3
    c = watched(data, 2, moms=(.9, .8, .7))
    assert c[2][0] == .9 and c[2].min() < .72

def test_steps_are_torchs_to_the_last_bit():
    "Groups, rates, momentum and decay through fastai's words; and two groups of torch's own, made by hand."
    def layers():
        torch.manual_seed(3)
        return [nn.Parameter(torch.randn(5, 4)) for _ in range(4)]
    ours,theirs = layers(),layers()
    opt = _OPT_FUNCS['adam']([ours[:2], ours[2:]], lr=1e-3)
    for p in ours[1::2]: opt.state[p]['do_wd'] = False
    hand = torch.optim.AdamW([dict(params=[p]) for p in theirs], eps=1e-5, fused=True)
    for i in range(6):
        opt.set_hypers(lr=slice(1e-4, 1e-2*(i + 1)), mom=.95 - .02*i, wd=.1*i)
        for p,q in zip(ours, theirs): p.grad = q.grad = None if i < 2 and p is ours[0] else torch.sin(p.detach() + i)
        for n,group in enumerate(hand.param_groups):
            group.update(lr=(1e-4, 1e-2*(i + 1))[n//2], betas=(.95 - .02*i, .99), weight_decay=.1*i if n % 2 == 0 else 0.)
        opt.step()
        hand.step()
        for p,q in zip(ours, theirs): assert torch.equal(p, q)

def test_a_body_that_is_frozen_after_training_stays_as_it_is(data):
    l = new(data, train_bn=False)
    l.fit(1, 1e-3)
    l.freeze()
    was = weights_hash(l.model[0])
    l.fit(1, 1e-3)
    assert weights_hash(l.model[0]) == was

def without_gradient(data, **kw):
    "What is left of each weight after a step at the rate .1 whose gradient is nothing: decay alone."
    l = new(data, 'resnet18', **kw)
    l.create_opt()
    before = {k: p.detach().clone() for k,p in l.model.named_parameters()}
    for p in l.model.parameters(): p.grad = torch.zeros_like(p)
    for k,v in dict(lr=.1, wd=.5).items(): l.opt.set_hyper(k, v)
    l.opt.step()
    sizes = {k: (float(p.detach().double().norm()), float(before[k].double().norm())) for k,p in l.model.named_parameters()}
    return {k: after/was for k,(after,was) in sizes.items() if was > 0}

def test_decay_of_batch_norm_and_biases(data):
    ours,v1s = without_gradient(data),without_gradient(data, wd_bn_bias=True)
    norms = {k for k in ours if 'bn' in k or k in ('0.1.weight', '1.2.weight', '1.6.weight', '1.2.bias', '1.6.bias') or 'downsample.1' in k}
    assert len(norms) == 24 and len(ours) == 46                             # 20 in the body, two in the head with their biases; 20 convolutions, two linear layers
    for k,left in ours.items(): assert np.isclose(left, 1. if k in norms else .95, atol=1e-5), k
    for k,left in v1s.items(): assert np.isclose(left, .95, atol=1e-5), k

@pytest.mark.parametrize('train_bn', [True, False])
def test_batch_norm_of_a_frozen_body(data, train_bn):
    l = new(data, 'resnet18', train_bn=train_bn)
    l.freeze()
    state = {k: v.clone() for k,v in l.model[0].state_dict().items()}
    l.fit(1, 1e-2)
    moved = {k for k,v in l.model[0].state_dict().items() if not torch.equal(v, state[k])}
    norms = {k for k in state if k.startswith('1.') or '.bn' in k or 'downsample.1' in k}
    assert moved == (norms if train_bn else set())                         # weights, biases, averages and counts of batch norm, and nothing else

def test_weight_decay_is_used(data):
    l = new(data, wd=.1)
    l.fit_one_cycle(1, wd=.5)
    assert l.opt.hypers[-1]['wd'] == .5
    assert weights_hash(l.model) != weights_hash(watched(data, 1)[0].model)

def test_pieces_of_a_cycle(data):
    whole = watched(data, 4, 1e-3)
    first,w = new(data),Watch()
    first.fit_one_cycle(2, 1e-3, tot_epochs=4, callbacks=[w])
    first.fit_one_cycle(4, 1e-3, tot_epochs=4, start_epoch=2, callbacks=[w])
    assert np.array_equal(np.array([o[0] for o in w.seen]), whole[1]) and [o[2] for o in w.seen] == whole[3]
    assert first.recorder.to_frame().epoch.tolist() == [0, 1, 2, 3]

BAD = [(dict(max_rate=1), TypeError, 'max_rate'), (dict(max_lr=1, lr_max=1), TypeError, 'two names'), (dict(callbakcs=[]), TypeError, 'callbakcs'), (dict(n_epoch=3), TypeError, 'two names'),
       (dict(pct_start=0.), ValueError, 'pct_start'), (dict(pct_start=1.), ValueError, 'pct_start'), (dict(div_factor=0.), ValueError, 'div_factor'), (dict(final_div=0), ValueError, 'final_div'),
       (dict(moms=(.9,)), ValueError, 'moms'), (dict(tot_epochs=1), ValueError, 'shorter'), (dict(start_epoch=2), ValueError, 'start_epoch'), (dict(start_epoch=-1), ValueError, 'start_epoch'),
       (dict(start_epoch=1), ValueError, 'nothing to continue from')]
@pytest.mark.parametrize('kw,error,match', BAD)
def test_bad_arguments_of_a_cycle(data, kw, error, match):
    class Refuse(Callback):
        def before_fit(self): raise ValueError('refused')
    l = new(data)
    was = weights_hash(l.model)
    with pytest.raises(error, match=match): l.fit_one_cycle(2, **kw)
    with pytest.raises(ValueError, match='refused'): l.fit_one_cycle(2, cbs=Refuse())
    assert weights_hash(l.model) == was and l.stage == -1 and not l.recorder.stages and not l.recorder.history

@pytest.mark.parametrize('n', [0, -1, 1.5])
def test_bad_numbers_of_epochs(data, n):
    with pytest.raises(ValueError, match='number of epochs'): new(data).fit(n)

def test_fit(data):
    l,w = new(data),Watch()
    l.fit(1, callbacks=[w])
    assert np.allclose(w.seen[0][0], [3e-3]*3)              # random weights: the full rate everywhere
    l.pretrained = True
    l.fit(1, callbacks=[w])
    assert np.allclose(w.seen[-1][0], [3e-4, 3e-4, 3e-3])   # v1's default rate
    l.fit(1, 1e-4, cbs=[w])
    assert w.seen[-1][0] == [1e-4]*3 and l.recorder.to_frame().stage.tolist() == [0, 1, 2]

# --- chance ---------------------------------------------------------------------------------------------------------------------

def trained(root, workers=0, seed=42, **kw):
    torch.manual_seed(np.random.randint(1 << 30))  # whatever came before
    l = new(bunch(root, ds_tfms=get_transforms(), num_workers=workers, seed=seed, bs=24, **kw))
    l.fit_one_cycle(1, 1e-3)
    return weights_hash(l.model)

def test_same_seed_same_network(root, tmp_path):
    first = trained(root)
    assert first == trained(root, workers=2) == trained(root, cache=tmp_path)
    assert first != trained(root, seed=1)

# --- the history ----------------------------------------------------------------------------------------------------------------

def test_history_of_all_stages(learn):
    df = learn.recorder.to_frame()
    assert df.stage.tolist() == [0, 0, 1] and df.epoch.tolist() == [0, 1, 0]
    assert df.columns.tolist() == ['stage', 'epoch', 'train_loss', 'valid_loss', 'accuracy', 'error_rate', 'seconds']
    assert len(learn.recorder.losses) == len(learn.recorder.lrs) == len(learn.recorder.momenta) == 9 and np.allclose(df.accuracy + df.error_rate, 1)

def test_predicting_keeps_the_history(learn):
    before = learn.recorder.to_frame(),list(map(float, learn.recorder.losses)),list(learn.recorder.lrs)
    learn.get_preds()
    learn.validate()
    learn.predict(learn.dls.valid_ds.items[0])
    learn.TTA()
    learn.show_results(rows=1)
    assert before[0].equals(learn.recorder.to_frame()) and before[1:] == (list(map(float, learn.recorder.losses)), learn.recorder.lrs)

def lines(ax): return {o.get_label(): o for o in ax.lines}

def test_plot_losses(learn):
    ax = learn.recorder.plot_losses().axes[0]
    train,valid = lines(ax)['Train'],lines(ax)['Validation']
    assert train.get_xdata().tolist() == list(range(9)) and np.allclose(train.get_ydata(), [float(o) for o in learn.recorder.losses])
    assert valid.get_xdata().tolist() == [3, 6, 9] and np.allclose(valid.get_ydata(), learn.recorder.to_frame().valid_loss)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('Batches processed', 'Loss')
    ax = learn.recorder.plot_losses(skip_start=2, skip_end=3).axes[0]
    assert lines(ax)['Train'].get_xdata().tolist() == [2, 3, 4, 5] and lines(ax)['Validation'].get_xdata().tolist() == [3, 6]

def test_plot_lr(learn):
    one,two = learn.recorder.plot_lr(),learn.recorder.plot_lr(show_moms=True, skip_start=1, skip_end=2)
    assert len(one.axes) == 1 and np.allclose(one.axes[0].lines[-1].get_ydata(), learn.recorder.lrs)
    assert [o.get_ylabel() for o in two.axes] == ['Learning rate', 'Momentum'] and np.allclose(two.axes[1].lines[-1].get_ydata(), learn.recorder.momenta[1:-2])

def test_plot_metrics(learn, data):
    fig,df = learn.recorder.plot_metrics(),learn.recorder.to_frame()
    assert [o.get_ylabel() for o in fig.axes] == ['accuracy', 'error_rate'] and np.allclose(fig.axes[0].lines[-1].get_ydata(), df.accuracy)
    assert learn.recorder.plot_metrics(skip_start=1, skip_end=1).axes[0].lines[-1].get_xdata().tolist() == [6]
    with pytest.raises(ValueError, match='pass metrics= .* and train'): new(data).recorder.plot_metrics()

def test_rate_finder(root, tmp_path, capsys):
    class Saver(Callback):
        n = 0
        def jump_to_epoch(self, epoch): return False
        def after_epoch(self): self.n += 1
    saver = Saver()
    l = new(bunch(root), path=tmp_path, callbacks=[saver])
    with pytest.raises(ValueError, match='lr_find'): l.recorder.plot()
    l.fit_one_cycle(1, 1e-3)
    n,was,history,stage = saver.n,weights_hash(l.model),l.recorder.to_frame(),l.stage
    l.lr_find(start_lr=1e-6, end_lr=1e-2, num_it=25, stop_div=False)
    assert (weights_hash(l.model), l.stage, saver.n) == (was, stage, n) and history.equals(l.recorder.to_frame())
    lrs,losses = map(np.array, l.recorder.found)
    assert len(lrs) == 25 and np.isclose(lrs[0], 1e-6) and lrs[-1] < 1e-2 and np.allclose(np.diff(np.log(lrs)), np.log(1e4)/25)
    capsys.readouterr()
    fig = l.recorder.plot(skip_start=4, skip_end=3, suggestion=True)
    assert capsys.readouterr().out.startswith('No clear slope' if l.recorder.suggested() == (None, None) else 'Min numerical gradient: ')
    assert np.allclose(fig.axes[0].lines[0].get_xdata(), lrs[4:-3]) and fig.axes[0].get_xscale() == 'log'
    with pytest.raises(ValueError, match='rates are left'): l.recorder.plot(skip_start=23)
    assert len(l.recorder.plot(0, 0).axes[0].lines[0].get_xdata()) == 25 and capsys.readouterr().out == ''

def test_an_interrupted_rate_finder_leaves_the_weights(root, tmp_path):
    class Stop(Callback):
        def after_batch(self):
            if getattr(self, 'go', False) and self.iter == 1: raise KeyboardInterrupt
    l = new(bunch(root), path=tmp_path, callbacks=[stop := Stop()])
    l.fit_one_cycle(1, 1e-3)
    was,opt,history = weights_hash(l.model),l.opt.state_dict()['state'][0]['exp_avg'].clone(),l.recorder.to_frame()
    stop.go = True
    with pytest.raises(KeyboardInterrupt): l.lr_find(start_lr=1e-2)
    assert weights_hash(l.model) == was and torch.equal(l.opt.state_dict()['state'][0]['exp_avg'], opt) and history.equals(l.recorder.to_frame())

def test_rate_finder_stops_when_the_loss_explodes(root, tmp_path):
    "The losses are made: 1 in eight batches, then a million."
    seen = []
    def exploding(pred, y):
        seen.append(len(y))
        return 0*pred.sum() + (1. if len(seen) <= 8 else 1e6)
    exploding.activation = lambda x: x.softmax(1)
    l = linear(bunch(root), path=tmp_path, loss_func=exploding)
    l.lr_find(start_lr=1e-6, end_lr=1e-2, num_it=20)
    assert len(l.recorder.found[0]) == len(seen) == 9
    seen.clear()
    l.lr_find(start_lr=1e-6, end_lr=1e-2, num_it=20, stop_div=False)
    assert len(l.recorder.found[0]) == len(seen) == 20

def test_flat_cosine_goes_on_where_it_is_told(root, tmp_path):
    from malaria_fastai.resume import SaveModelCallback
    def run(name, n, start):
        l = new(bunch(root), path=tmp_path/name)
        if n: l.fit_flat_cos(n, 1e-3, start_epoch=start, cbs=SaveModelCallback(l, every='epoch', name='x'))
        return l
    whole = run('a', 3, 0)
    assert np.allclose(whole.recorder.lrs[:6], 1e-3) and whole.recorder.lrs[-1] < 5e-4
    l = run('a', 3, 2)
    assert weights_hash(l.model) == weights_hash(whole.model) and l.recorder.to_frame().epoch.tolist() == [0, 1, 2]

@pytest.mark.parametrize('start', ['lst', 3, -1, 1.5])
def test_a_start_that_is_no_epoch(data, start):
    with pytest.raises(ValueError, match="start_epoch is 'last' or 0…2"): new(data).fit_one_cycle(3, start_epoch=start)

# v1's parameters that mean nothing here, call by call. Those of the constructors are in test_data and above.
GONE = dict(save='retrun_path', load='prge', fit='epoch', fit_one_cycle='max_lrs', tta='n', TTA='sclae', show_results='reverse', export='destory', get_preds='n_batches',
    predict='return_x batch_first with_dropout')
NEEDED = dict(save=['x'], load=['x'], fit_one_cycle=[1], fit=[1], predict=[np.zeros((9, 9, 3), np.uint8)])

@pytest.mark.parametrize('method,name', [(k, o) for k,v in GONE.items() for o in v.split()])
def test_words_that_are_gone_are_errors(learn, method, name):
    was = weights_hash(learn.model)
    with pytest.raises(TypeError, match=name): getattr(learn, method)(*NEEDED.get(method, []), **{name: 1})
    assert weights_hash(learn.model) == was

# … and those that change nothing, which is said, but for what happens anyway
UNMEANT = dict(save='return_path', load='purge', TTA='scale', export='destroy return_path', get_preds='n_batch pbar')

@pytest.mark.parametrize('name', ['activ', 'with_loss'])
def test_words_of_v1_that_another_method_has(learn, name):
    with pytest.raises(ValueError, match=rf'argument {name} is a word of fastai v1: .*learn.get_preds\({name}='): learn.TTA(**{name: 1})

def test_words_of_apply_tfms_are_named(root, capsys):
    bunch(root, mode='nearest', mult=32, remove_out=False)
    said = capsys.readouterr().out
    assert all(f"a bunch: v1's argument {name} has no meaning here" in said for name in ('mode', 'mult', 'remove_out'))

@pytest.mark.parametrize('method,name', [(k, o) for k,v in UNMEANT.items() for o in v.split()])
def test_words_of_v1_without_a_meaning_are_named(learn, method, name, capsys):
    learn.save('x')
    capsys.readouterr()
    getattr(learn, method)(*NEEDED.get(method, []), **{name: 1})
    assert (f"{method}: v1's argument {name} has no meaning here" in capsys.readouterr().out) == (name != 'return_path')

def test_v1s_names_of_arguments(data):
    learn = new(data)
    learn.fit(epochs=1)
    assert len(learn.recorder.history) == 1 and learn.get_preds(activ=torch.sigmoid)[0].equal(learn.get_preds(act=torch.sigmoid)[0])
    for wrong in (dict(n_epoch=1, epochs=1), {}):
        with pytest.raises((TypeError, ValueError), match='epoch'): learn.fit(**wrong)
    label = learn.predict(learn.dls.valid_ds.items[0])[0]
    assert label.obj == str(label) in data.classes and learn.dls.train_dl.batch_size == learn.dls.bs

@pytest.mark.parametrize('name', ['tfm_y', 'num_wrokers'])
def test_words_that_are_gone_from_loading(model_file, name):
    with pytest.raises((TypeError, ValueError), match=name): load_learner(model_file, **{name: True})
    with pytest.raises(TypeError, match='num_wroker'): load_learner(model_file, num_wroker=None)

@pytest.mark.parametrize('call', [lambda l: l.load('x', None, False), lambda l: l.load('x', None, True, None), lambda l: l.save('x', True)])
def test_what_changed_places_goes_by_name(data, call):
    "v1's third place of `load` is `strict`, fastai 2's is `with_opt`; v1's second of `save` is `return_path`."
    with pytest.raises(TypeError, match='positional'): call(new(data))

# --- predictions ----------------------------------------------------------------------------------------------------------------

def test_get_preds(learn):
    probs,y = learn.get_preds()
    assert type(probs) is torch.Tensor and torch.allclose(probs.sum(1), torch.ones(12)) and y.tolist() == learn.dls.valid_ds.targets.tolist()
    probs,y,loss = learn.get_preds(with_loss=True)
    assert torch.allclose(loss, -probs[range(12), y].log(), atol=1e-4)
    for kw in (dict(ds_type=DatasetType.Train), dict(ds_idx=0), dict(ds_type=DatasetType.Fix)):
        probs,y = learn.get_preds(**kw)             # all training cells, in file order, untransformed
        assert y.tolist() == learn.dls.train_ds.targets.tolist() and torch.equal(probs, learn.get_preds(dl=learn.dls.fix_dl)[0])
    with pytest.raises(ValueError, match='no test part'): learn.get_preds(DatasetType.Test)

def test_predict_agrees_with_get_preds(learn):
    probs,_ = learn.get_preds()
    file = learn.dls.valid_ds.items[5]
    for item in (file, Image.open(file), np.asarray(Image.open(file))):
        label,i,p = learn.predict(item)
        assert torch.allclose(p, probs[5], atol=1e-5) and int(i) == int(p.argmax()) and str(label) == learn.dls.classes[int(i)]

def test_validate(learn):
    probs,y,loss = learn.get_preds(with_loss=True)
    got = learn.validate()
    assert len(got) == 3 and np.isclose(got[0], float(loss.mean()), atol=1e-5) and np.isclose(got[1], float((probs.argmax(1) == y).float().mean()))

def test_tta(root):
    corner = quiet(CNNLearner(bunch(root, ds_tfms=get_transforms(flip_vert=True)), nn.Sequential(Corner(), nn.Identity())))
    probs,y = corner.get_preds()
    plain,mean,targets = corner.TTA(beta=None)
    assert torch.allclose(plain, probs, atol=1e-6) and targets.tolist() == y.tolist()
    assert (mean-plain).abs().max() > .1
    mixed,_ = corner.TTA()
    assert torch.allclose(mixed, .4*plain + .6*mean, atol=1e-6)
    assert torch.allclose(corner.TTA(beta=1.)[0], plain, atol=1e-6)
    x = corner.dls.valid_dl.one_batch()[0].as_subclass(torch.Tensor)
    views = [torch.rot90(o, k, (2, 3)) for o in (x, x.flip(3)) for k in range(4)]
    with torch.no_grad(): each = torch.stack([corner.model(o).softmax(1) for o in views])
    assert torch.allclose(mean, each.mean(0), atol=1e-5)
    with pytest.raises(TypeError, match='nonsense'): corner.TTA(nonsense=1)
    assert torch.equal(corner.tta(beta=.4)[0], corner.TTA()[0]) # fastai 2's name
    assert torch.allclose(corner.tta()[0], .25*plain + .75*mean, atol=1e-6)

@pytest.mark.parametrize('tfms,n', [(None, 1), (get_transforms(), 2), (get_transforms(flip_vert=True), 8)])
def test_tta_shows_no_view_that_training_did_not_show(root, tfms, n):
    "Unless the record of the data set says that its pictures have no up: those of cells are all turned."
    corner = quiet(CNNLearner(bunch(root, ds_tfms=tfms), nn.Sequential(Corner(), nn.Identity())))
    def shown():
        seen,preds = [],corner.get_preds
        corner.get_preds = lambda dl: seen.append(dl) or preds(dl=dl)
        corner.TTA()
        del corner.get_preds
        return len(seen)
    assert shown() == n
    corner.dls.classes[:] = ['Parasitized', 'Uninfected']
    assert shown() == 8

@pytest.mark.parametrize('call', ['TTA', 'show_results'])
def test_other_parts(corner, call):
    a,b = (getattr(corner, call)(ds_type=o) for o in (DatasetType.Valid, DatasetType.Train))
    if call == 'TTA': assert (len(a[1]), len(b[1])) == (12, 48)
    else: assert not np.array_equal(a.axes[0].images[0].get_array(), b.axes[0].images[0].get_array())

def test_predictions_table(learn):
    cells = learn.dls.cells.iloc[[50, 2, 31]].assign(patient='P1')
    got = learn.predict_cells(cells, 'Red')
    probs,_ = learn.get_preds(dl=learn.dls.cells_dl(cells))
    assert got.path.tolist() == cells.path.tolist() and got.patient.tolist() == ['P1']*3
    assert np.allclose(got.p, probs[:, 2]) and got.pred.tolist() == [learn.dls.classes[i] for i in probs.argmax(1)]
    with pytest.raises(ValueError, match='none of the classes'): learn.predict_cells(cells, 'Parasitized')

def test_show_results(learn):
    fig = learn.show_results(rows=2, figsize=(3, 3))
    shown = [o for o in fig.axes if o.get_title()]
    assert len(shown) == 4 and fig.get_size_inches().tolist() == [3, 3]
    for ax in shown:
        truth,pred = ax.get_title().split('\npredicted ')
        assert truth in CLASSES and pred in CLASSES and ax.title.get_color() == ('#007a55' if truth == pred else '#b5120f')

def test_half_precision_without_cuda(data, capsys):
    if torch.cuda.is_available(): pytest.skip('there is a CUDA device')
    l = new(data)
    assert l.to_fp16() is l and 'no CUDA' in capsys.readouterr().out

def test_half_precision_with_cuda(data, monkeypatch):
    "Where CUDA is reported, fastai's callback is added with its arguments; a state writes the precision down."
    from malaria_fastai.resume import _run_config
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    l = new(data)
    assert l.to_fp16(init_scale=128.) is l
    cb, = (o for o in l.cbs if o.name == 'mixed_precision')
    assert isinstance(cb, fastai.callback.fp16.MixedPrecision) and cb.amp_mode == fastai.callback.fp16.AMPMode.FP16 and cb.kwargs['init_scale'] == 128.
    l.create_opt()
    l.cycle = None
    assert 'FP16' in _run_config(l)['precision'] and not any(o.name == 'mixed_precision' for o in l.to_fp32().cbs)

def half_against_single(data, patch, overflow=False):
    "The same callback on a made layer, its two CUDA kernels exchanged for the CPU's: half products, a scaled loss, our fused Adam."
    fp16,seen = fastai.callback.fp16,[]
    patch.setattr(fp16, 'autocast', lambda device, dtype: torch.autocast('cpu', dtype=dtype))
    patch.setattr(fp16, 'GradScaler', lambda device, **kw: torch.amp.GradScaler('cpu', **kw))
    def trained(half):
        l = linear(data)
        l.model[0][1].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        if half: fastai.learner.Learner.to_fp16(l, init_scale=2.**(60 if overflow else 8), growth_interval=10**6)
        l.fit(1, 1e-4)
        return l.model[0][1].weight.detach().flatten(),float(l.recorder.losses[-1])
    single,loss = trained(False)
    assert {*seen} == {torch.float32}
    seen.clear()
    half,half_loss = trained(True)
    assert {*seen} == {torch.float16} and half.dtype == torch.float32      # the weights stay in single precision
    return float(torch.cosine_similarity(single, half, dim=0)),loss,half_loss,half

def test_half_precision_trains(data, monkeypatch):
    alike,loss,half_loss,_ = half_against_single(data, monkeypatch)
    assert alike > .9 and abs(half_loss/loss - 1) < .02                    # tests/margins.py: how far from failing

def test_steps_that_overflow_are_left_out(data, monkeypatch):
    assert not half_against_single(data, monkeypatch, overflow=True)[-1].any()

def test_summary_of_the_network(learn): assert 'Total params' in str(learn.summary())

def test_table_of_epochs(data, capsys):
    l = cnn_learner(data, 'squeezenet1_1', pretrained=False, metrics=error_rate)
    l.fit_one_cycle(2, 1e-3)
    rows = [o.split() for o in capsys.readouterr().out.strip().splitlines()]
    assert rows[0] == ['epoch', 'train_loss', 'valid_loss', 'error_rate', 'time'] and [o[0] for o in rows[1:]] == ['0', '1']
    l.get_preds()
    assert capsys.readouterr().out == ''

# --- weights and models on disk -------------------------------------------------------------------------------------------------

def test_fastais_own_callback_loads_its_best_epoch(data, tmp_path):
    "fastai's `SaveModelCallback` ends by loading, with words of its own."
    from fastai.callback.tracker import SaveModelCallback as Stock
    learn = new(data, path=tmp_path)
    learn.fit(2, 1e-3, cbs=Stock(monitor='valid_loss', fname='kept'))
    assert (tmp_path/'models'/'kept.pth').is_file()


def test_save_and_load(data, tmp_path):
    a = new(data, path=tmp_path)
    a.fit_one_cycle(1, 1e-3)
    a.save('one')
    b = new(bunch(data.path, seed=7), path=tmp_path)
    b.create_opt()
    b.load('one')
    assert weights_hash(a.model) == weights_hash(b.model) and b.opt.state_dict()['state'][0]['step'] == a.opt.state_dict()['state'][0]['step'] == 3
    assert read_model(b.load('one').export())[0]['spec']['arch'] == 'squeezenet1_1' and weights_hash(load_learner(tmp_path).model) == weights_hash(a.model) # in one line
    a.save('bare', with_opt=False)
    with pytest.warns(UserWarning, match='optimizer'): b.load('bare', with_opt=True)
    with pytest.raises(FileNotFoundError, match='three.pth.*bare, one'): b.load('three')
    with pytest.raises(RuntimeError): new(data, 'resnet18', path=tmp_path).load('one')
    other = new(data, lin_ftrs=[], path=tmp_path)
    with pytest.raises(RuntimeError): other.load('one', with_opt=False)
    (tmp_path/'models'/'bad.pth').write_bytes(pickle.dumps(Hostile(tmp_path/'ran')))
    with pytest.raises(Exception): b.load('bad')
    assert not (tmp_path/'ran').exists()

class Hostile:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

def test_export_and_load(data, tmp_path):
    "Folder or file: the same network, which goes on training in three groups."
    a = new(data, lin_ftrs=[32], ps=[.1, .2], path=tmp_path)
    file = a.export(extra=dict(positive='Red'))
    assert file == tmp_path/'export.pkl'
    for b in (load_learner(tmp_path), load_learner(file), load_learner(str(tmp_path), 'export.pkl')):
        assert b.spec == a.spec and b.about['positive'] == 'Red' and b.data.classes == list(CLASSES)
        assert weights_hash(a.model) == weights_hash(b.model)
    b.data = data
    b.freeze()
    before = weights_hash(b.model[1])
    quiet(b).fit_one_cycle(1, slice(1e-4, 1e-2))
    assert len(b.opt.param_lists) == 3 and weights_hash(b.model[1]) != before

@pytest.mark.parametrize('arch', ['resnet18', 'mobilenet_v2', 'efficientnet_b0', 'resnet10t'])
def test_any_network_comes_back(data, tmp_path, arch):
    a = new(data, arch, path=tmp_path)
    b = quiet(load_learner(a.export()))
    item = data.valid_ds.items[0]
    assert b.spec == a.spec and weights_hash(a.model) == weights_hash(b.model)
    assert torch.allclose(b.predict(item)[2], a.predict(item)[2], atol=1e-5)

def test_loaded_models_keep_their_data(root, data, tmp_path):
    new(data, path=tmp_path).export('sub/m.pkl')
    l = load_learner(tmp_path/'sub', 'm.pkl')
    with pytest.raises(ValueError, match='nothing to train on'): l.fit(1)
    with pytest.raises(ValueError, match='classes: '): l.data = bunch(root, classes=[*CLASSES, 'x'])
    with pytest.raises(ValueError, match='stats: '): l.data = bunch(root, normalize=False)
    with pytest.raises(FileNotFoundError, match='nowhere'): load_learner(tmp_path/'nowhere')
    with pytest.raises(TypeError, match='spec'): new(data, path=tmp_path).export(extra=dict(spec=1))

@pytest.fixture(scope='module')
def model_file(data, tmp_path_factory): return new(data, path=tmp_path_factory.mktemp('model')).export()

@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), header=st.booleans())
def test_a_changed_byte_is_refused(model_file, where, bit, header):
    bad = bytearray(model_file.read_bytes())
    n = int.from_bytes(bad[:8], 'little')
    end = bad[8:8+n].rstrip(b' ').__len__() + 8 if header else len(bad) # the header is filled up with blanks
    i = int(where*end)
    if 8 + len(bad[8:8+n].rstrip(b' ')) <= i < 8 + n: return
    bad[i] ^= 1 << bit
    file = model_file.with_name('changed.pkl')
    file.write_bytes(bad)
    with pytest.raises(ModelRefused): read_model(file)

def test_damaged_and_strange_files(model_file, tmp_path):
    from safetensors.torch import save_file
    whole = model_file.read_bytes()
    for name,b in dict(empty=b'', short=whole[:100], cut=whole[:-1], long=whole + b'0', text=b'hello world, not a model').items():
        (tmp_path/name).write_bytes(b)
        with pytest.raises(ModelRefused): load_learner(tmp_path/name)
    save_file({'a': torch.zeros(2)}, tmp_path/'other')
    with pytest.raises(ModelRefused, match='does not describe'): load_learner(tmp_path/'other')

@pytest.mark.parametrize('protocol', range(6))
def test_a_hostile_pickle_does_not_run(tmp_path, protocol):
    (tmp_path/'export.pkl').write_bytes(pickle.dumps(Hostile(tmp_path/'ran'), protocol))
    with pytest.raises(ModelRefused): load_learner(tmp_path)
    torch.save(Hostile(tmp_path/'ran'), tmp_path/'export.pkl')
    with pytest.raises(ModelRefused, match='is a pickle'): load_learner(tmp_path)
    assert not (tmp_path/'ran').exists()

def test_a_trusted_pickle(tmp_path):
    pairs = Datasets([torch.zeros(1), torch.ones(1)], [[noop], [noop]])
    loaders = DataLoaders.from_dsets(pairs, pairs, bs=1)
    fastai.learner.Learner(loaders, nn.Linear(1, 1), loss_func=nn.MSELoss(), path=tmp_path).export('old.pkl')
    with pytest.raises(ModelRefused, match='trust_pickle=True'): load_learner(tmp_path, 'old.pkl')
    with pytest.warns(UserWarning): assert isinstance(load_learner(tmp_path, 'old.pkl', trust_pickle=True), fastai.learner.Learner)
