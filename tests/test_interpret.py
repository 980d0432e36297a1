"What a notebook cannot say about heat maps and confusion: where the parasites are, another library's numbers, many classes."
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.nn import functional as F
from types import SimpleNamespace
from malaria_fastai.data import DatasetType, ImageDataBunch, ResizeMethod, get_transforms
from malaria_fastai.interpret import ClassificationInterpretation, grad_cam, hottest
from malaria_fastai.learner import CNNLearner, ModelSpec, cnn_learner, split_params

def bunch(root, **kw):
    tfms = get_transforms(flip_vert=True, max_rotate=None, max_warp=None, max_zoom=1.)
    return ImageDataBunch.from_folder(root, ds_tfms=tfms, **{**dict(size=64, resize_method=ResizeMethod.SQUISH, bs=16, val_bs=72, cache=False), **kw})

def quiet(learn):
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == 'progress'])
    learn.logger = lambda *args: None
    return learn

@pytest.fixture(scope='module')
def data(sample_root): return bunch(sample_root)

@pytest.fixture(scope='module')
def learn(data):
    "A ResNet18 that recognises most drawn parasites. Do not train it further."
    learn = quiet(cnn_learner(data, 'resnet18', pretrained=False))
    learn.fit_one_cycle(5, 3e-3) # after three it calls a fifth of the cells wrongly, and its maps wander
    return learn

@pytest.fixture(scope='module')
def interp(learn): return ClassificationInterpretation.from_learner(learn)

@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')

# --- does it look at the parasite? ----------------------------------------------------------------------------------------------

def hits(interp, root, **kw):
    "Share of recognised parasites whose hottest place lies on the parasite: within its radius."
    truth = pd.read_csv(root/'truth.csv').set_index('path')
    cells,found = interp.dl.dataset.cells.path.tolist(),[]
    idxs = torch.where((interp.y_true == 0) & (interp.pred_class == 0))[0]
    for i,cam in zip(idxs, interp.grad_cam(idxs, **kw)):
        t,(x,y) = truth.loc[cells[i]],hottest(cam)
        with Image.open(root/cells[i]) as im: w,h = im.size
        found.append(np.hypot(x*w - t.x, y*h - t.y) <= t.radius)
    return np.mean(found),len(found)

@pytest.fixture(scope='module')
def share(interp, sample_root):
    share,n = hits(interp, sample_root)
    assert n > 50
    return share

def test_heat_maps_lie_on_the_parasite(share): assert share >= .7

def test_random_weights_see_little(interp, sample_root, data, share):
    learn = SimpleNamespace(dls=data, model=ModelSpec('resnet18', 2).build(seed=1))
    zeros = torch.zeros_like(interp.y_true)
    blind = ClassificationInterpretation(learn, F.one_hot(zeros, 2).float(), interp.y_true, interp.losses)
    assert hits(blind, sample_root)[0] <= share - .3

def test_what_makes_heat_maps_sharp(interp, sample_root, share):
    "One view, and a map of four places a side, are worse: the reason for the defaults."
    one,coarse = (hits(interp, sample_root, views=1, **kw)[0] for kw in ({}, dict(min_map=4)))
    assert coarse + .2 < share and one < share

# --- heat maps by hand ----------------------------------------------------------------------------------------------------------

class Tiny(nn.Module):
    "A body of one map whose gradient is known: the pixel itself, times a weight."
    def __init__(self, w):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad(): self.conv.weight.fill_(w)
    def forward(self, x): return self.conv(x)

def tiny(rows=2):
    "Class 1 is the sum of the map, all others score 0."
    class Head(nn.Module):
        def forward(self, x): return torch.stack([x.sum((1, 2, 3)) if i == 1 else x.sum((1, 2, 3))*0 for i in range(rows)], 1)
    return nn.Sequential(nn.Sequential(Tiny(1.)), Head())

@pytest.mark.parametrize('classes', [2, 3, 5])
@pytest.mark.parametrize('shape', [(16, 16), (16, 20)])
def test_a_map_that_can_be_computed_by_hand(classes, shape):
    x = torch.rand(3, 3, *shape)
    cam = grad_cam(tiny(classes), x, torch.tensor([1, 1, 1]))
    expected = x.sum(1)
    assert np.allclose(cam, expected/expected.amax((1, 2), keepdim=True), atol=1e-5)
    assert (grad_cam(tiny(classes), x, torch.tensor([0, 0, 0])) == 0).all() # whatever is there speaks against the others

@settings(max_examples=25, deadline=None)
@given(h=st.integers(3, 20), w=st.integers(3, 20), spot=st.tuples(st.floats(0, .999), st.floats(0, .999)), views=st.sampled_from([1, 2, 4, 8]))
def test_a_spot_stays_where_it_is(h, w, spot, views):
    x,(r,c) = torch.full((1, 3, h, w), .1),(int(spot[0]*h), int(spot[1]*w))
    x[:, :, r, c] = 1
    px,py = hottest(grad_cam(tiny(), x, torch.tensor([1]), views=views)[0])
    assert (px, py) == pytest.approx(((c+.5)/w, (r+.5)/h))

def test_maps_are_between_0_and_1_and_differ_by_class(interp):
    a,b = interp.grad_cam(range(4)),interp.grad_cam(range(4), of='predicted')
    assert a.shape == (4, 16, 16) and a.dtype == np.float32 and a.min() >= 0 and np.allclose(a.max((1, 2)), 1)
    wrong = torch.where(interp.y_true != interp.pred_class)[0][:2]
    assert not np.allclose(interp.grad_cam(wrong), interp.grad_cam(wrong, of='predicted'), atol=.1)
    right = (interp.y_true == interp.pred_class)[:4]
    assert np.allclose(a[right], b[right])
    with pytest.raises(ValueError, match="'actual' or 'predicted'"): interp.grad_cam([0], of='truth')

def test_frozen_bodies_have_the_same_maps(learn, interp):
    expected = interp.grad_cam([0, 1])
    grads = [p.requires_grad for p in learn.model.parameters()]
    for p in learn.model.parameters(): p.requires_grad_(False)
    assert np.array_equal(interp.grad_cam([0, 1]), expected)
    for p,g in zip(learn.model.parameters(), grads): p.requires_grad_(g)
    assert all(p.grad is None or not p.grad.isnan().any() for p in learn.model.parameters()) and not any(m._forward_hooks for m in learn.model.modules())

@pytest.mark.parametrize('arch,size', [('densenet121', 64), ('mobilenet_v2', 64), ('vgg16', 32), ('squeezenet1_1', 64), ('mobilenetv2_140', 64), ('efficientnet_b0', (32, 64)), ('resnet18', 128)])
def test_heat_maps_of_other_networks(arch, size):
    h,w = size if isinstance(size, tuple) else (size, size)
    cam = grad_cam(ModelSpec(arch, 4).build(), torch.rand(2, 3, h, w), torch.tensor([3, 0]))
    assert len(cam) == 2 and min(cam.shape[1:]) >= 16 and np.isfinite(cam).all() and (cam.shape[2] > cam.shape[1]) == (w > h)

# --- numbers --------------------------------------------------------------------------------------------------------------------

def made_up(y, p):
    "An interpretation of given targets and probabilities, without a network."
    y,p = torch.as_tensor(np.asarray(y)),torch.as_tensor(np.asarray(p), dtype=torch.float32)
    dls = SimpleNamespace(classes=[f'class {i}' for i in range(p.shape[1])], dl=lambda k: None, drawn_note='')
    return ClassificationInterpretation(SimpleNamespace(dls=dls), p, y, -p[range(len(y)), y].log())

@st.composite
def outcomes(draw):
    c,n = draw(st.integers(2, 6)),draw(st.integers(1, 60))
    rng = np.random.RandomState(draw(st.integers(0, 10**6)))
    return rng.randint(0, c, n),rng.dirichlet([.4]*c, n)

@settings(max_examples=60, deadline=None)
@given(o=outcomes(), k=st.integers(1, 80), largest=st.booleans())
def test_matrix_and_losses(o, k, largest):
    (y,p),interp = o,made_up(*o)
    cm = interp.confusion_matrix()
    assert (cm == confusion_matrix(y, interp.pred_class.numpy(), labels=range(p.shape[1]))).all() and cm.sum() == len(y)
    losses,idxs = interp.top_losses(k, largest)
    assert len(losses) == len(idxs) == min(k, len(y)) and torch.equal(losses, interp.losses[idxs])
    assert (losses.diff() <= 0 if largest else losses.diff() >= 0).all()
    assert [len(i) for i in interp.top_losses()] == [len(y)]*2
    confused = interp.most_confused()
    assert sum(n for _,_,n in confused) == len(y) - np.trace(cm) and [n for *_,n in confused] == sorted((n for *_,n in confused), reverse=True)
    assert all(n >= 3 for *_,n in interp.most_confused(3))

def test_one_pass_agrees_with_the_learner(learn, interp):
    probs,y,loss = learn.get_preds(with_loss=True)
    assert torch.allclose(interp.preds, probs) and torch.equal(interp.y_true, y) and torch.allclose(interp.losses, loss)
    assert np.trace(interp.confusion_matrix())/len(y) == pytest.approx(float((probs.argmax(1) == y).float().mean()))
    part = ClassificationInterpretation.from_learner(learn, DatasetType.Train)
    assert len(part.losses) == len(learn.dls.train_ds) and part.y_true.tolist() == learn.dls.train_ds.y.tolist()
    shown = learn.dls.denormalize(part._batch([0])[0])[0]
    with Image.open(learn.dls.train_ds.items[0]) as im: assert np.allclose(shown, learn.dls.rule.fixed(im.convert('RGB'))/255, atol=1e-4)

# --- figures --------------------------------------------------------------------------------------------------------------------

def inside(fig):
    "Whether every text of a figure lies within it, and no two overlap."
    fig.draw_without_rendering()
    texts = [t for t in (fig._suptitle, fig._supxlabel) if t]
    for ax in fig.axes: texts += [ax.title, *ax.texts] + [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]*ax.axison
    boxes = [t.get_window_extent() for t in texts if t.get_text()]
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= fig.bbox.width + 1 and b.y1 <= fig.bbox.height + 1 for b in boxes)
    assert not any(a.overlaps(b) for i,a in enumerate(boxes) for b in boxes[:i])
    return True

@pytest.mark.parametrize('kw', [dict(k=9, figsize=(20, 11), heatmap=False), dict(k=9, figsize=(20, 11), heatmap=True), dict(k=4), dict(k=1, heatmap=True), dict(k=7, heatmap=True, figsize=(6, 7)),
                                dict(k=3, largest=False, alpha=1., cmap='viridis', heatmap=True, of='predicted')])
def test_top_losses(interp, kw):
    fig = interp.plot_top_losses(**kw)
    axes = [o for o in fig.axes if o.images]
    _,idxs = interp.top_losses(kw['k'], kw.get('largest', True))
    assert len(axes) == kw['k'] and inside(fig)
    if 'figsize' in kw: assert tuple(fig.get_size_inches()) == kw['figsize']
    for ax,i in zip(axes, idxs):
        truth,pred = (interp.classes[int(o[i])] for o in (interp.y_true, interp.pred_class))
        assert ax.get_title() == f'{pred} / {truth}\n{interp.losses[i]:.2f} / {interp.preds[i, interp.y_true[i]]:.2f}'
        assert len(ax.images) == 1 + kw.get('heatmap', False)
    if kw.get('heatmap'):
        cam,alpha = interp.grad_cam(idxs[:1], kw.get('of', 'actual'))[0],kw.get('alpha', .6)
        assert np.allclose(axes[0].images[1].get_array(), cam, atol=1e-4) and np.allclose(axes[0].images[1].get_alpha(), alpha*cam, atol=1e-4) and axes[0].images[1].get_cmap().name == kw.get('cmap', 'magma')
        assert f"the {kw.get('of', 'actual')} class" in fig._supxlabel.get_text()
    assert 'probability of the actual class' in fig._supxlabel.get_text() and 'drawn by code' in fig._supxlabel.get_text()

def test_confusion_figure(interp):
    fig = interp.plot_confusion_matrix(figsize=(5, 5), dpi=100)
    ax,cm = fig.axes[0],interp.confusion_matrix()
    assert (tuple(fig.get_size_inches()), fig.dpi) == ((5, 5), 100) and inside(fig)
    assert [t.get_text() for t in ax.texts] == [str(o) for o in cm.flatten()]
    assert [t.get_text() for t in ax.get_xticklabels()] == interp.classes == [t.get_text() for t in ax.get_yticklabels()]
    ax = interp.plot_confusion_matrix(normalize=True, norm_dec=3, title='Here', cmap='Reds').axes[0]
    assert [t.get_text() for t in ax.texts] == [f'{o:.3f}' for o in (cm/cm.sum(1, keepdims=True)).flatten()] and ax.get_title() == 'Here' and ax.images[0].get_cmap().name == 'Reds'
    assert not interp.plot_confusion_matrix(plot_txt=False).axes[0].texts

@pytest.mark.parametrize('c', [2, 3, 8])
def test_confusion_figure_of_many_classes(c):
    rng = np.random.RandomState(c)
    interp = made_up(rng.randint(0, c, 4000), rng.dirichlet([.4]*c, 4000))
    interp.classes = [f'a rather long class name {i}' if c > 2 else f'Class number {i}' for i in range(c)]
    assert inside(interp.plot_confusion_matrix()) and inside(interp.plot_confusion_matrix(normalize=True))

def test_text_on_every_shade_can_be_read(interp):
    ax = interp.plot_confusion_matrix().axes[0]
    for t in ax.texts:
        j,i = t.get_position()
        shade = np.mean(ax.images[0].to_rgba(ax.images[0].get_array())[int(i), int(j), :3])
        assert abs(shade - (1 if t.get_color() == 'white' else 0)) > .4

@pytest.mark.parametrize('kw', [dict(heatmap_thresh=16), dict(show_text=True), dict(k=4, heat=True)])
def test_unknown_arguments(interp, kw):
    with pytest.raises(TypeError): interp.plot_top_losses(**{'k': 4, **kw})
    with pytest.raises(TypeError): interp.plot_confusion_matrix(slice_size=1)

GONE = dict(from_learner='activ', confusion_matrix='slice_size', most_confused='slice_size', plot_confusion_matrix='return_fig', plot_top_losses='return_fig')

@pytest.mark.parametrize('method,name', GONE.items())
def test_words_of_v1_that_are_gone(learn, interp, method, name):
    with pytest.raises(TypeError, match=name): getattr(interp, method)(*dict(from_learner=[learn], plot_top_losses=[4]).get(method, []), **{name: 1})
