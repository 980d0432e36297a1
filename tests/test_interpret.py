"What a notebook cannot say about heat maps and confusion: many places, another library's numbers, many classes."
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.nn import functional as F
from types import SimpleNamespace
from malaria_fastai.backbone import ModelSpec
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import DatasetType, ImageDataBunch
from malaria_fastai.interpret import ClassificationInterpretation, grad_cam, hottest
from malaria_fastai.learner import CNNLearner
from malaria_fastai.transforms import get_transforms

# --- a network made by hand: what it looks at is known, and nothing is trained ---------------------------------

class Smudge(nn.Module):
    "A place of the first map that glows twice as bright as a spot, whatever the picture shows."
    def forward(self, x):
        glow = torch.zeros_like(x)
        glow[:, 0, 4:6, 8:10] = 2
        return x + glow

def seer(smudge=False, sees=1.):
    "Its first map is what is red and speaks for class 0, its second what is green and speaks for class 1."
    eyes,says = nn.Conv2d(3, 2, 1, bias=False),nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        eyes.weight.copy_(sees*torch.eye(2, 3)[..., None, None])
        says.weight.copy_(torch.eye(2))
    halves = [nn.AvgPool2d(2) for _ in range(5)]
    body = nn.Sequential(eyes, halves[0], Smudge() if smudge else nn.Identity(), *halves[1:])
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), says))

SHAPES = [(64, 64), (64, 96)]
PLACES = torch.tensor([(.15, .2), (.15, .5), (.2, .8), (.5, .15), (.5, .8), (.8, .3), (.85, .55), (.85, .85)])

def spots(places, shape, radius):
    "Round spots, float32 (n, h, w); a place is (row, column) in pixels."
    rows,cols = torch.meshgrid(*(torch.arange(side) + .5 for side in shape), indexing='ij')
    far = torch.hypot(rows - places[:, 0, None, None], cols - places[:, 1, None, None])
    return (far < radius).float()

def planted(shape, radius=5):
    "Pictures with a red spot, and a green one at the opposite place; where the red and the green ones are, (2, n, 2)."
    size = torch.tensor(shape)
    red = PLACES*size
    green = size - red
    x = torch.stack([spots(red, shape, radius), spots(green, shape, radius), torch.rand(8, *shape)], 1)
    return x,torch.stack([red, green])

def away(cams, places, shape):
    "Pixels from the hottest place of each heat map to the place where it should be."
    tops = np.array([hottest(cam)[::-1] for cam in cams])*shape
    return np.hypot(*(tops - places.numpy()).T)

@pytest.fixture(scope='module')
def data(sample_root):
    kw = dict(size=64, resize_method=ResizeMethod.SQUISH, bs=16, val_bs=72, cache=False)
    return ImageDataBunch.from_folder(sample_root, **kw)

@pytest.fixture(scope='module')
def learn(data): return CNNLearner(data, seer(), loss_func=CrossEntropyLossFlat())

@pytest.fixture(scope='module')
def interp(learn): return ClassificationInterpretation.from_learner(learn)

@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')

# --- does it look at what speaks for the class? -----------------------------------------------------------------

@pytest.mark.parametrize('views', [1, 2, 4, 8])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('colour', [0, 1])
def test_heat_maps_lie_on_what_speaks_for_the_class(colour, shape, views):
    x,places = planted(shape)
    cams = grad_cam(seer(), x, torch.full((8,), colour), views=views)
    assert (away(cams, places[colour], shape) <= 5).all()
    rows,cols = (places[1-colour]/2).long().T # a place of the map is two pixels wide
    assert (cams[range(8), rows, cols] == 0).all() # what speaks against the class is cold
    alone = grad_cam(seer(), x, torch.full((8,), colour), views=1)
    assert np.allclose(cams, alone, atol=1e-5) # this network sees alike in all views

@pytest.mark.parametrize('shape', SHAPES)
def test_what_always_glows_is_spread_by_the_views(shape):
    "One view peaks at the smudge, eight views (four of a rectangle) at the spot: the reason for the default."
    (x,places),model,red = planted(shape),seer(smudge=True),torch.zeros(8, dtype=torch.long)
    assert (away(grad_cam(model, x, red, views=1), torch.tensor([[10, 18]]), shape) <= 2).all()
    assert (away(grad_cam(model, x, red), places[0], shape) <= 5).all()

@pytest.mark.parametrize('views', [1, 8])
def test_what_sees_nothing_has_one_map_for_every_picture(views):
    x,red = planted((64, 64))[0],torch.zeros(8, dtype=torch.long)
    cams = grad_cam(seer(smudge=True, sees=0), x, red, views=views)
    assert np.allclose(cams, cams[:1], atol=1e-6) and np.allclose(cams.max((1, 2)), 1)

SIDES = [(1, 4), (2, 4), (3, 8), (4, 8), (8, 16), (16, 32), (17, 32), (33, 64), (65, 64)]

@pytest.mark.parametrize('min_map,side', SIDES)
def test_the_two_deepest_maps_that_are_wide_enough(min_map, side):
    "The maps have 64, 32, 32, 16, 8, 4 and 2 places a side; the wider of the two that are read gives the shape."
    x,red = planted((64, 64))[0],torch.zeros(8, dtype=torch.long)
    assert grad_cam(seer(), x, red, min_map=min_map).shape == (8, side, side)

def test_coarse_maps_cannot_say_where():
    "A spot of radius 3 in a corner of one of 4 × 4 places is missed by its middle: the reason for `min_map`."
    places = torch.tensor([(16.*i + 4, 16.*j + 4) for i in range(4) for j in range(4)])
    x,red = torch.zeros(16, 3, 64, 64),torch.zeros(16, dtype=torch.long)
    x[:, 0] = spots(places, (64, 64), 3)
    assert (away(grad_cam(seer(), x, red), places, (64, 64)) < 3).all()
    assert (away(grad_cam(seer(), x, red, min_map=1), places, (64, 64)) > 5).all()

def test_the_actual_or_the_predicted_class():
    x,places = planted((64, 64))
    y,pred = torch.tensor([0, 0, 1, 1]*2),torch.tensor([0, 1, 0, 1]*2)
    loader = SimpleNamespace(before_iter=lambda: None, load=lambda i, idxs: (x[idxs], y[idxs]))
    dls = SimpleNamespace(classes=['red', 'green'], fixed_dl=lambda part: loader, drawn_note='', views=8)
    learn,preds = SimpleNamespace(dls=dls, model=seer()),F.one_hot(pred, 2).float()
    interp = ClassificationInterpretation(learn, preds, y, torch.ones(8))
    some = [6, 1, 2, 3, 4]
    a,b = interp.grad_cam(some),interp.grad_cam(some, of='predicted')
    assert a.shape == (5, 32, 32) and a.dtype == np.float32 and a.min() >= 0 and np.allclose(a.max((1, 2)), 1)
    assert (away(a, places[y[some], some], (64, 64)) <= 5).all()
    assert (away(b, places[pred[some], some], (64, 64)) <= 5).all()
    with pytest.raises(ValueError, match="'actual' or 'predicted'"): interp.grad_cam([0], of='truth')

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

MAKERS = dict(made=seer, resnet18=lambda: ModelSpec('resnet18', 2).build(seed=1))

@pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)
def test_frozen_bodies_have_the_same_maps(data, make):
    "Frozen or not, in training or not: the maps agree, and nothing is left behind in the network."
    model,(x,y) = make(),data.one_batch(DatasetType.Valid, denorm=False)
    before = {name: value.clone() for name,value in model.state_dict().items()}
    expected = grad_cam(model, x[:3], y[:3])
    model.train().requires_grad_(False)
    assert np.allclose(grad_cam(model, x[:3], y[:3]), expected, atol=1e-3)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name,value in model.state_dict().items())

@pytest.mark.parametrize('arch,size', [('densenet121', 64), ('mobilenet_v2', 64), ('vgg16', 32), ('squeezenet1_1', 64), ('mobilenetv2_140', 64), ('efficientnet_b0', (32, 64)), ('resnet18', 128)])
def test_heat_maps_of_other_networks(arch, size):
    h,w = size if isinstance(size, tuple) else (size, size)
    cam = grad_cam(ModelSpec(arch, 4).build(), torch.rand(2, 3, h, w), torch.tensor([3, 0]))
    assert all(top == pytest.approx(1) or top == 0 for top in cam.max((1, 2))) and cam.min() >= 0
    assert len(cam) == 2 and min(cam.shape[1:]) >= 16 and np.isfinite(cam).all() and (cam.shape[2] > cam.shape[1]) == (w > h)

# --- numbers --------------------------------------------------------------------------------------------------------------------

def made_up(y, p):
    "An interpretation of given targets and probabilities, without a network."
    y,p = torch.as_tensor(np.asarray(y)),torch.as_tensor(np.asarray(p), dtype=torch.float32)
    dls = SimpleNamespace(classes=[f'class {i}' for i in range(p.shape[1])], fixed_dl=lambda part: None, drawn_note='')
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
    assert [len(i) for i in interp.top_losses()] == [len(y)]*2 and not len(interp.top_losses(0)[0])
    confused = interp.most_confused()
    assert sum(n for _,_,n in confused) == len(y) - np.trace(cm) and [n for *_,n in confused] == sorted((n for *_,n in confused), reverse=True)
    assert all(n >= 3 for *_,n in interp.most_confused(3))

def test_one_pass_agrees_with_the_learner(learn, interp):
    probs,y,loss = learn.get_preds(with_loss=True)
    assert torch.allclose(interp.preds, probs) and torch.equal(interp.y_true, y) and torch.allclose(interp.losses, loss)
    assert np.trace(interp.confusion_matrix())/len(y) == pytest.approx(float((probs.argmax(1) == y).float().mean()))
    assert torch.allclose(loss, -probs[range(len(y)), y].log(), rtol=1e-3, atol=1e-5)
    x,_ = learn.dls.one_batch(DatasetType.Valid, denorm=False)
    assert np.allclose(interp.grad_cam([5, 70, 2], views=8), grad_cam(learn.model, x[[5, 70, 2]], y[[5, 70, 2]]), atol=1e-4)
    part = ClassificationInterpretation.from_learner(learn, DatasetType.Train)
    assert len(part.losses) == len(learn.dls.train_ds) and part.y_true.tolist() == learn.dls.train_ds.targets.tolist()
    shown = learn.dls.denormalize(part._pictures([0]))[0]
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
        cam,alpha = interp.grad_cam(idxs, kw.get('of', 'actual'))[0],kw.get('alpha', .6)
        assert np.allclose(axes[0].images[1].get_array(), cam, atol=1e-4) and np.allclose(axes[0].images[1].get_alpha(), alpha*cam, atol=1e-4) and axes[0].images[1].get_cmap().name == kw.get('cmap', 'magma')
        assert f"the {kw.get('of', 'actual')} class" in fig._supxlabel.get_text()
    assert 'probability of the actual class' in fig._supxlabel.get_text() and 'drawn by code' in fig._supxlabel.get_text()

def test_confusion_figure(interp):
    fig = interp.plot_confusion_matrix(figsize=(5, 5), dpi=100)
    ax,cm = fig.axes[0],interp.confusion_matrix()
    assert (tuple(fig.get_size_inches()), fig.dpi) == ((5, 5), 100) and inside(fig)
    assert 'drawn by code' in fig._supxlabel.get_text()
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

@pytest.mark.parametrize('percent', [0, 10, 25, 35, 39, 40, 41, 45, 49, 50])
def test_text_on_every_shade_can_be_read(percent):
    "A row of the matrix is `percent` wrong and the rest right."
    y,wrong = torch.tensor([0]*100 + [1]*100),torch.arange(200) % 100 < percent
    ax = made_up(y, F.one_hot((y + wrong) % 2, 2)).plot_confusion_matrix(normalize=True).axes[0]
    right,wrong = f'{1 - percent/100:.2f}',f'{percent/100:.2f}'
    assert [t.get_text() for t in ax.texts] == [right, wrong, wrong, right]
    for t in ax.texts:
        j,i = t.get_position()
        shade = np.mean(ax.images[0].to_rgba(ax.images[0].get_array())[int(i), int(j), :3])
        assert abs(shade - (1 if t.get_color() == 'white' else 0)) > .4

def test_unknown_arguments(interp, capsys):
    with pytest.raises(TypeError, match='heat'): interp.plot_top_losses(4, heat=True)
    with pytest.raises(ValueError, match='min_map'): interp.plot_top_losses(4, heatmap_thresh=16)
    interp.plot_top_losses(4, show_text=True)
    assert 'show_text has no meaning' in capsys.readouterr().out

@pytest.mark.parametrize('name,said', [('plot_multi_top_losses', 'one label here'), ('probs', 'interp.preds'), ('nothing', '')])
def test_words_that_it_does_not_have(interp, name, said):
    with pytest.raises(AttributeError, match=f'{name}.*{said}|{said}.*{name}'): getattr(interp, name)

@pytest.mark.parametrize('method', ['from_learner', 'confusion_matrix', 'most_confused', 'plot_confusion_matrix', 'plot_top_losses'])
def test_words_of_v1(learn, interp, method, capsys):
    "A word of v1 that means nothing here is named, and changes nothing; any other is refused."
    words = dict(from_learner=[learn], plot_top_losses=[4]).get(method, [])
    getattr(interp, method)(*words, slice_size=1)
    assert "v1's argument slice_size has no meaning here" in capsys.readouterr().out
    with pytest.raises(TypeError, match='slyce_size'): getattr(interp, method)(*words, slyce_size=1)

# --- what may not be wrong without a word ---------------------------------------------------------------------------------------

def test_nothing_asked_is_nothing_answered(learn, interp):
    for none in ([], (), torch.tensor([]), np.array([], int)):
        for of in ('actual', 'predicted'): assert interp.grad_cam(none, of).shape[0] == 0
    with pytest.raises(ValueError, match='nothing to show'): interp.plot_top_losses(0)
    assert len(interp.to_frame(0)) == 0

def test_heat_maps_do_not_round_to_tf32():
    "The switch of the GPU's convolutions, which can be asked on any machine; it is put back."
    class Asks(nn.Identity):
        def forward(self, x):
            seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
            return x
    seen,model,(x,_) = [],seer(),planted((64, 64))
    model[0].add_module('asks', Asks())
    for before in (True, False):
        torch.backends.cudnn.allow_tf32 = before
        try: grad_cam(model, x, torch.zeros(8, dtype=torch.long))
        finally: after,torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32,True
        assert after == before
    assert {*seen} == {(True, False)}

@pytest.mark.parametrize('part', [DatasetType.Valid, DatasetType.Train])
def test_the_errors_by_name(learn, part):
    "Each row is the picture that it names: told anew by the learner, file by file."
    interp = ClassificationInterpretation.from_learner(learn, part)
    files = learn.dls.fixed_dl(part).dataset.items
    for k,largest in ((None, True), (1000, True), (5, False), (7, True)):
        table,(losses,idxs) = interp.to_frame(k, largest),interp.top_losses(k, largest)
        assert table.index.tolist() == idxs.tolist() and np.array_equal(table.loss, losses)
        assert [str(learn.dls.path/path) for path in table.path] == [str(files[i]) for i in table.index]
    for i,row in table.head(3).iterrows():
        name,_,probs = learn.predict(learn.dls.path/row.path)
        assert str(name) == row.pred and np.isclose(probs[interp.classes.index(row.label)], row.p_label, atol=1e-5)

def test_only_views_that_training_showed(sample_root):
    "X-rays have an up: they are not turned, unless training turned them."
    shown = {}
    kw = dict(size=64, resize_method=ResizeMethod.SQUISH, bs=16, val_bs=72, cache=False)
    for name,tfms in dict(none=None, mirrored=get_transforms(max_warp=None), turned=get_transforms(flip_vert=True, max_warp=None)).items():
        learn = CNNLearner(ImageDataBunch.from_folder(sample_root, ds_tfms=tfms, **kw), seer(smudge=True))
        interp = ClassificationInterpretation.from_learner(learn)
        shown[name] = interp.grad_cam([3])
        assert np.allclose(shown[name], interp.grad_cam([3], views=dict(none=1, mirrored=2, turned=8)[name]))
    assert not np.allclose(shown['none'], shown['turned'], atol=1e-2)

def test_figures_claim_nothing_about_other_pictures(tmp_path):
    "A set of one's own, without a record: no cells, no parasites, not drawn."
    for i in range(24):
        file = tmp_path/('cat', 'dog')[i % 2]/f'{i}.png'
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(file)
    learn = CNNLearner(ImageDataBunch.from_folder(tmp_path, valid_pct=.5, size=64, bs=4, cache=False), seer())
    interp = ClassificationInterpretation.from_learner(learn)
    for fig in (interp.plot_top_losses(4, heatmap=True), interp.plot_confusion_matrix()):
        said = ' '.join(text.get_text() for text in fig.findobj(plt.Text)).lower()
        assert 'cat' in said and not any(word in said for word in ('cell', 'parasit', 'infect', 'drawn'))
