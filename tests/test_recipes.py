"""Each recipe: head, frozen set, loss, transforms, optimizer, and p in [0, 1]; weights that come as Python packages; comparisons.

What a recipe asks for is read off its network and the calls of `fit_recipe`; that every one of them also trains is a slow test."""
import importlib.util
import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.losses import CrossEntropyLossFlat
from sklearn.metrics import roc_auc_score
from torch import nn

from malaria_fastai.backbone import PACKAGED, OwnHead, WeightsUnavailable, create_body, split_params
from malaria_fastai.cells import read_cells
from malaria_fastai.cli import main
from malaria_fastai.extra.compare import changed, compare, comparison_folds
from malaria_fastai.extra.packaged_weights import _FILES, _fold, _read_packaged
from malaria_fastai.learner import Bfloat16, NLLLossFlat, StepDecay, cnn_learner, half_precision, load_learner
from malaria_fastai.recipes import RECIPES, UnknownRecipe, find_recipe, from_scratch, recipes_table, shortened
from malaria_fastai.resume import AnotherRun
from malaria_fastai.run import fit_recipe, limit_cells, recipe_data, recipe_learner, train
from malaria_fastai.source import install_command
from malaria_fastai.split import split_by
from malaria_fastai.transforms import Dihedral, Flip

REPO = Path(__file__).resolve().parents[1]
NETWORKS = [k for k,o in RECIPES.items() if o.arch]


@pytest.fixture(scope='module')
def sample(sample_root): return sample_root


@pytest.fixture(scope='module')
def all_cells(sample): return read_cells(sample, progress=False)


@pytest.fixture(scope='module')
def cells(all_cells): return split_by(limit_cells(all_cells, 48), 'random', .2, .2)


@pytest.fixture(scope='module')
def few(sample, tmp_path_factory):
    "The drawn sample with a quarter of its cells, which is soon read."
    few = shutil.copytree(sample, tmp_path_factory.mktemp('few')/'few')
    for i,file in enumerate(sorted(few.rglob('*.png'))):
        if i % 4: file.unlink()
    return few


def small(recipe):
    stages = dict(epochs=1, finetune_epochs=min(1, recipe.finetune_epochs))
    return recipe.but(size=32, bs=8, pretrained=False, weights=None, **stages)


def built(name, sample, cells, tmp_path):
    recipe = small(RECIPES[name])
    return recipe,recipe_learner(recipe, recipe_data(recipe, sample, cells, cache=False), path=tmp_path)


# What the tutorials say: the last layers of the head, the loss, the optimizer, the training transforms, which groups are trained (early body, late body, head)
FASTAI = ['Linear', 'ReLU', 'BatchNorm1d', 'Dropout', 'Linear']
EXPECTED = dict(
    fastai_resnet34=(FASTAI, 'cross_entropy', 'Adam', [Flip], [0, 0, 1]),
    fastai_resnet18=(FASTAI, 'cross_entropy', 'Adam', [Flip], [0, 0, 1]),
    fastai_resnet18_finetuned=(FASTAI, 'cross_entropy', 'Adam', [Flip], [0, 0, 1]),
    vgg16_pytorch=(['Linear'], 'cross_entropy', 'SGD', [Flip], [0, 0, 1]),
    vgg16_pytorch_finetuned=(['Linear'], 'cross_entropy', 'SGD', [Flip], [1, 1, 1]),
    mobilenetv2_features=(['AdaptiveAvgPool2d', 'Flatten', 'Linear'], 'cross_entropy', 'Adam', [Flip, 'zoom'], [0, 0, 1]),
    mobilenetv2_top=(['AdaptiveAvgPool2d', 'Flatten', 'Linear'], 'cross_entropy', 'Adam', [Flip, 'zoom'], [0, 0, 1]),
    densenet121_head=(['Linear', 'ReLU', 'Dropout', 'Linear', 'LogSoftmax'], 'nll', 'Adam', [Flip, 'rotate', 'zoom'], [0, 0, 1]),
    xray_vgg16=(['AdaptiveAvgPool2d', 'Flatten', 'Linear'], 'cross_entropy', 'Adam', [Flip, 'zoom', 'warp'], [0, 0, 1]),
    efficientnet_lite0=(FASTAI, 'cross_entropy', 'Adam', [Dihedral, 'light'], [0, 0, 1]),
    squeezenet1_1=(FASTAI, 'cross_entropy', 'Adam', [Dihedral, 'light'], [0, 0, 1]),
    xray_lite0=(FASTAI, 'cross_entropy', 'Adam', [Flip, 'zoom', 'warp'], [0, 0, 1]),
    best=(FASTAI, 'cross_entropy', 'Adam', [Dihedral, 'light', 'stain'], [0, 0, 1]),
    **dict.fromkeys(('best_resnet18', 'progressive_resnet18'), (FASTAI, 'cross_entropy', 'Adam', [Dihedral, 'light', 'stain'], [1, 1, 1])))


def expected(name):
    if name in EXPECTED: return EXPECTED[name]
    head,loss,_,tfms,_ = EXPECTED[name.removesuffix('_scratch')] # from scratch: Adam, one cycle, every layer
    return head,loss,'Adam',tfms,[1, 1, 1]


def calls(learn, recipe):
    "What `fit_recipe` asks of the learner in each stage: how to train, how long, how fast, which groups, watched by what."
    asked = []
    def recorder(way):
        def record(n, lr, callbacks, start_epoch):
            biggest = [max(g, key=lambda p: p.numel()).requires_grad for g in split_params(learn.model)]
            asked.append((way, n, lr, biggest, [type(o).__name__ for o in callbacks]))
        return record
    learn.fit,learn.fit_one_cycle = recorder('fit'),recorder('one_cycle')
    fit_recipe(learn, recipe)
    return asked


def rate(lr): return slice(*lr) if isinstance(lr, tuple) else lr


@pytest.fixture
def quick_weights(monkeypatch):
    "Large layers hold zeros, which takes a tenth of the time of drawing them; small ones are drawn as ever."
    for name in ('kaiming_uniform_', 'kaiming_normal_', 'normal_', 'uniform_'):
        def fill(tensor, *args, draw=getattr(nn.init, name), **kwargs):
            return draw(tensor, *args, **kwargs) if tensor.numel() < 10_000 else nn.init.zeros_(tensor)
        monkeypatch.setattr(nn.init, name, fill)


@pytest.mark.parametrize('name', NETWORKS)
def test_recipe(name, sample, cells, tmp_path, quick_weights):
    recipe,learn = built(name, sample, cells, tmp_path)
    head,loss,opt,tfms,trained = expected(name)
    flat = [type(o).__name__ for o in (learn.model[1].last if recipe.head == 'own' else learn.model[1]).modules() if not list(o.children())]
    flat = flat[-len(head):] if head == FASTAI or recipe.head != 'fastai' else flat
    assert [o.replace('fastaiFlatten', 'Flatten') for o in flat] == head
    assert type(learn.loss_func) is dict(cross_entropy=CrossEntropyLossFlat, nll=NLLLossFlat)[loss]
    assert type(learn.dls.ds_tfms[0][0]) is tfms[0]
    assert learn.opt_func.func.__name__ == dict(Adam='_FusedAdam', SGD='SGD')[opt]
    with learn.no_bar(): preds = learn.predict_cells(cells[cells.split == 'test'], 'Parasitized')
    assert preds.p.between(0, 1).all() and np.isfinite(preds.loss).all()
    clear = preds[(preds.p - .5).abs() > 1e-6] # between these, rounding decides
    assert (clear.pred == 'Parasitized').eq(clear.p > .5).all()
    way,n,lr,groups,_ = calls(learn, recipe)[0]
    assert (way, n, lr) == ('one_cycle' if recipe.schedule == 'one_cycle' else 'fit', 1, rate(recipe.lr))
    assert groups == [bool(o) for o in trained]


# Which groups the second stage trains, and at which rates
SECOND = dict(fastai_resnet18_finetuned=([1, 1, 1], slice(1e-4, 1e-5)), mobilenetv2_top=([0, 1, 1], 1e-5), progressive_resnet18=([1, 1, 1], 3e-3),
              efficientnet_lite0=([1, 1, 1], slice(1e-4, 1e-3)), squeezenet1_1=([1, 1, 1], slice(3e-5, 3e-4)), xray_lite0=([1, 1, 1], slice(1e-4, 1e-3)),
              best=([1, 1, 1], slice(3e-4, 3e-3)))


def test_second_stages(sample, cells, tmp_path):
    "On a small network in place of each: what is asked of it is the same."
    assert {k for k in NETWORKS if RECIPES[k].finetune_epochs} == set(SECOND)
    for name,(groups,lr) in SECOND.items():
        recipe = small(RECIPES[name]).but(arch='squeezenet1_1', finetune_epochs=3)
        stages = calls(recipe_learner(recipe, recipe_data(recipe, sample, cells, cache=False), path=tmp_path), recipe)
        assert [o[1] for o in stages] == [1, 3] and stages[1][2:4] == (lr, [bool(o) for o in groups]), name


WATCHED = dict(vgg16_pytorch=['SaveModelCallback', 'StepDecay'], densenet121_head=['SaveModelCallback', 'EarlyStoppingCallback'],
               xray_vgg16=['SaveModelCallback'], fastai_resnet18=[])


def test_what_watches_a_training(sample, cells, tmp_path):
    "The best epoch, the end, the steps; and states, where they are asked for."
    for name,names in WATCHED.items():
        recipe = small(RECIPES[name]).but(arch='squeezenet1_1')
        stages = calls(recipe_learner(recipe, recipe_data(recipe, sample, cells, cache=False), path=tmp_path), recipe)
        assert stages[0][4] == names, name


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_every_recipe_trains(name, sample, cells, tmp_path):
    "On sixteen cells or so: the calls that the quick test reads are made, and what comes out are probabilities."
    recipe,learn = built(name, sample, cells.groupby(['split', 'label']).head(4), tmp_path)
    with learn.no_bar(), learn.no_logging():
        fit_recipe(learn, recipe.but(best='', patience=0))
        preds = learn.predict_cells(learn.dls.cells, 'Parasitized')
    assert len(learn.recorder.history) == recipe.epochs + recipe.finetune_epochs and preds.p.between(0, 1).all()


@pytest.mark.parametrize('name', EXPECTED)
def test_transforms(name):
    "What is named in the expectation is on, everything else is off."
    t = dict(max_rotate=10., max_zoom=1.1, max_lighting=.2, max_warp=.2, flip_vert=False) | RECIPES[name].tfms
    on = {k for k,v in dict(rotate=t['max_rotate'], zoom=t['max_zoom'], light=t['max_lighting'], warp=t['max_warp'], stain=t.get('max_stain')).items() if v}
    assert on == {o for o in EXPECTED[name][3] if isinstance(o, str)}
    assert t['flip_vert'] == (EXPECTED[name][3][0] is Dihedral)


def test_faithful_numbers():
    "The numbers that the older tutorials print."
    r = RECIPES
    assert [(r[f'fastai_{k}'].size, r[f'fastai_{k}'].bs, r[f'fastai_{k}'].epochs) for k in ('resnet34', 'resnet18')] == [(128, 256, 10), (128, 512, 10)]
    assert (r['fastai_resnet18_finetuned'].finetune_epochs, r['fastai_resnet18_finetuned'].finetune_lr) == (30, (1e-4, 1e-5))
    assert all(r[k].stats == 'none' and r[k].resize == 'SQUISH' for k in r if k.startswith('fastai') and 'scratch' not in k)
    assert (r['vgg16_pytorch'].size, r['vgg16_pytorch'].head, r['vgg16_pytorch'].best) == (224, 'own', 'accuracy')
    assert (r['mobilenetv2_features'].arch, r['mobilenetv2_features'].size, r['mobilenetv2_features'].patience > 0) == ('mobilenetv2_140', 224, True)
    d = r['densenet121_head']
    assert (d.lin_ftrs, d.ps, d.activation, d.loss, d.lr, d.parts) == ((460,), .4, 'log_softmax', 'nll', 3e-3, (.7, .2, .1))
    x = r['xray_vgg16']
    assert (x.size, x.head, x.epochs, x.split, x.tfms.get('flip_vert', False)) == (224, 'flat', 5, 'folder', False)


def test_densenet_head_sizes(sample, cells, tmp_path):
    _,learn = built('densenet121_head', sample, cells, tmp_path)
    assert [(o.in_features, o.out_features) for o in learn.model[1].modules() if isinstance(o, nn.Linear)] == [(1024, 460), (460, 2)]
    assert [o.p for o in learn.model[1].modules() if isinstance(o, nn.Dropout)] == [.4]


def test_a_frozen_body_stays_as_it_is(sample, cells, tmp_path):
    "The misspelt `require_grad` left the body free, and its batch norm moved."
    recipe,learn = built('densenet121_head', sample, cells, tmp_path)
    before = {k: v.clone() for k,v in learn.model[0].state_dict().items()}
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn, recipe)
    assert all(torch.equal(v, before[k]) for k,v in learn.model[0].state_dict().items())


def test_top_layers_move_in_the_second_stage(sample, cells, tmp_path):
    recipe,learn = built('mobilenetv2_top', sample, cells, tmp_path)
    early,late,_ = [[p.detach().clone() for p in g] for g in split_params(learn.model)]
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn, recipe)
    now = split_params(learn.model)
    assert all(torch.equal(a, b) for a,b in zip(early, now[0])) and not all(torch.equal(a, b) for a,b in zip(late, now[1]))


@pytest.mark.parametrize('arch,out', [('resnet18', 512), ('densenet121', 1024), ('mobilenet_v2', 1280), ('alexnet', 4096)])
def test_the_last_layer_is_found(arch, out, sample, cells, tmp_path):
    data = recipe_data(small(RECIPES['vgg16_pytorch']), sample, cells, cache=False)
    learn = cnn_learner(data, arch, pretrained=False, head='own', path=tmp_path)
    assert isinstance(learn.model[1], OwnHead) and learn.model[1].last.in_features == out
    learn.freeze()
    assert [p.shape[0] for p in learn.model.parameters() if p.requires_grad and p.ndim == 2] == [2]


@pytest.mark.parametrize('name', ['densenet121_head', 'mobilenetv2_features', 'squeezenet1_1'])
def test_export_and_load(name, sample, cells, tmp_path):
    recipe,learn = built(name, sample, cells, tmp_path)
    file = learn.export('model.pkl')
    item = learn.dls.valid_ds.items[0]
    assert torch.allclose(load_learner(file).predict(item)[2], learn.predict(item)[2], atol=1e-6)


def test_own_head_is_exported(sample, cells, tmp_path):
    data = recipe_data(small(RECIPES['vgg16_pytorch']), sample, cells, cache=False)
    learn = cnn_learner(data, 'squeezenet1_1', pretrained=False, head='own', path=tmp_path)
    loaded = load_learner(learn.export('model.pkl'))
    item = data.valid_ds.items[0]
    assert torch.allclose(loaded.predict(item)[2], learn.predict(item)[2], atol=1e-6)


def test_steps(sample, cells, tmp_path):
    data = recipe_data(small(RECIPES['vgg16_pytorch']), sample, cells, cache=False)
    learn = cnn_learner(data, 'squeezenet1_1', pretrained=False, path=tmp_path, opt_func='sgd')
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-3, callbacks=[StepDecay(1e-3, every=2)])
    n = len(data.train)
    assert np.allclose(learn.recorder.lrs, [1e-3]*2*n + [1e-4]*2*n)


class Made(Callback):
    "What is validated is made, not trained: at first a network that cannot decide, then one that calls everything by one name."
    def before_validate(self):
        *_,weight,bias = self.model.parameters()
        with torch.no_grad(): weight.zero_(), bias.copy_(torch.tensor([50., -50.])*(self.epoch > 0))


def test_the_last_stage_ends_in_averaged_weights(sample, cells, tmp_path):
    recipe = small(RECIPES['best']).but(arch='squeezenet1_1', finetune_epochs=1)
    learn = recipe_learner(recipe, recipe_data(recipe, sample, cells, cache=False), path=tmp_path)
    assert [watchers for *_,watchers in calls(learn, recipe)] == [[], ['AverageWeights']]
    assert [watchers for *_,watchers in calls(learn, recipe.but(finetune_epochs=0))] == [['AverageWeights']]
    with pytest.raises(UnknownRecipe, match='choose'): recipe.but(best='accuracy')


def test_the_best_epoch_is_kept(sample, cells, tmp_path):
    "Though it is the first, and worse ones follow."
    recipe,learn = built('squeezenet1_1_scratch', sample, cells, tmp_path)
    with learn.no_bar(), learn.no_logging():
        fit_recipe(learn, recipe.but(epochs=3, best='valid_loss'), cbs=[Made()])
        wrong = (cells.label[cells.split == 'valid'] != learn.dls.classes[0]).mean()
        undecided,certain = math.log(2),100*wrong # a wrong cell costs as much as the two numbers are apart
        assert undecided < certain
        assert [h['valid_loss'] for h in learn.recorder.history] == pytest.approx([undecided, certain, certain], rel=1e-4)
        assert learn.validate()[0] == pytest.approx(undecided, rel=1e-4)


# ---- words

@pytest.mark.parametrize('kw,said', [(dict(head='x'), r'head must be one of none\|fastai'), (dict(sise=3), 'did you mean size'), (dict(epochs=-1), r'whole number in \[0, inf\]'),
    (dict(loss='nll'), 'only with it'), (dict(ps=1.), 'ps must be in'), (dict(lr=0), 'lr'), (dict(lr=(1e-3, -1)), 'lr'), (dict(finetune_lr=float('nan')), 'nan'), (dict(wd=-.1), 'wd'),
    (dict(bs=1), 'bs'), (dict(size=True), 'True'), (dict(parts=(.5, -.5, 1.)), 'parts'), (dict(epochs=0, finetune_epochs=0), 'nothing would be trained')])
def test_bad_fields_are_refused(kw, said):
    with pytest.raises(UnknownRecipe, match=said): RECIPES['best'].but(**kw)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownRecipe, match='did you mean'): find_recipe('vgg16')


def test_every_frozen_recipe_has_a_version_from_scratch():
    assert not [k for k,o in RECIPES.items() if o.pretrained and o.frozen == 'body' and f'{k}_scratch' not in RECIPES and not k.endswith(('_finetuned', '_top'))]
    assert all(o.frozen == 'nothing' and not o.pretrained for k,o in RECIPES.items() if k.endswith('_scratch'))
    assert from_scratch(RECIPES['vgg16_pytorch']).name == 'vgg16_pytorch_scratch'


def test_shortened_and_changed():
    r = RECIPES['densenet121_head']
    assert shortened(r) == [] and changed(r) == {}
    assert shortened(r.but(size=64, epochs=2, pretrained=False), 2_400, 27_558) == ['2,400 of 27,558 cells', '64 of 224 px', '2 of 10 epochs', 'no ImageNet weights']
    assert changed(r.but(size=64)) == {'size': (224, 64)}


def test_the_table_has_every_recipe(capsys):
    assert list(recipes_table().index) == list(RECIPES)
    assert main(['recipes']) == 0
    said = capsys.readouterr().out
    assert all(k in said for k in RECIPES)
    assert main(['recipes', 'densenet121']) == 2 and 'did you mean densenet121_head' in capsys.readouterr().err


# ---- weights from Python packages

@pytest.mark.parametrize('arch', PACKAGED)
def test_packaged_weights(arch):
    if not importlib.util.find_spec(_FILES[arch][0]): pytest.skip(f"its Python package is not installed: {install_command('weights')}")
    first = next(v for v in create_body(arch, True, 'packaged').state_dict().values() if v.ndim == 4)
    a,b = first[..., :-1].flatten(),first[..., 1:].flatten()
    assert np.corrcoef(a, b)[0, 1] > .1 # neighbours in a trained filter are alike; in random ones they are not


def test_changed_packaged_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path/'fake').mkdir()
    (tmp_path/'fake'/'__init__.py').write_text('')
    (tmp_path/'fake'/'w.pth').write_bytes(b'x')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGED, 'resnet18', partial(_read_packaged, 'resnet18'))
    monkeypatch.setitem(_FILES, 'resnet18', ('fake', 'w.pth', '0'*64, torch.load))
    with pytest.raises(WeightsUnavailable, match='not the file that is known'): create_body('resnet18', True, 'packaged')
    monkeypatch.setitem(_FILES, 'resnet18', ('not_there', 'w.pth', '0'*64, torch.load))
    with pytest.raises(WeightsUnavailable, match='not installed'): create_body('resnet18', True, 'packaged')


def test_the_fold_is_exact():
    "BGR in 0…255 minus Caffe's mean through the old layer equals normalised RGB through the folded one."
    torch.manual_seed(0)
    old,new,rgb = nn.Conv2d(3, 8, 3),nn.Conv2d(3, 8, 3),torch.rand(2, 3, 9, 9)
    old.weight.data /= 100
    weight,bias = _fold(old.weight.detach(), old.bias.detach())
    new.load_state_dict(dict(weight=weight, bias=bias))
    caffe = (rgb*255 - torch.tensor([123.68, 116.779, 103.939])[None, :, None, None])[:, [2, 1, 0]]
    normed = (rgb - torch.tensor([.485, .456, .406])[None, :, None, None])/torch.tensor([.229, .224, .225])[None, :, None, None]
    with torch.no_grad(): assert torch.allclose(old(caffe), new(normed), atol=1e-4)


# ---- half precision

@pytest.mark.parametrize('precision', ['single', 'half'])
def test_half_precision_is_for_training(precision, sample, cells, tmp_path, monkeypatch):
    from malaria_fastai import run as study
    monkeypatch.setattr(study, 'half_precision', lambda: [Bfloat16()])
    recipe = small(RECIPES['best_resnet18']).but(arch='squeezenet1_1')
    learn = recipe_learner(recipe, recipe_data(recipe, sample, cells, cache=False), path=tmp_path)
    types,layer = set(),next(m for m in learn.model[1].modules() if isinstance(m, nn.Linear))
    layer.register_forward_hook(lambda m, x, y: types.add((m.training, y.dtype)))
    with learn.no_bar(), learn.no_logging():
        fit_recipe(learn, recipe.but(precision=precision, finetune_epochs=0))
        product = torch.bfloat16 if precision == 'half' else torch.float32
        assert (True, product) in types and {o for t,o in types if t} == {product}
        types.clear()
        learn.predict_cells(cells[cells.split == 'test'], 'Parasitized')
    assert types == {(False, torch.float32)} and not any(isinstance(o, Bfloat16) for o in learn.cbs)
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())


def test_half_precision_goes_on_exactly(sample, cells, tmp_path, monkeypatch):
    from malaria_fastai import run as study
    monkeypatch.setattr(study, 'half_precision', lambda: [Bfloat16()])
    def trained(folder, epochs, stop=None, resume=False):
        recipe = small(RECIPES['best_resnet18']).but(arch='squeezenet1_1', precision='half', epochs=epochs, finetune_epochs=0)
        learn = recipe_learner(recipe, recipe_data(recipe, sample, cells, cache=False), path=tmp_path/folder)
        with learn.no_bar(), learn.no_logging(): fit_recipe(learn, recipe, every='epoch', resume=resume, cbs=[StopAfter(stop)] if stop else ())
        return learn.model.state_dict()
    whole = trained('whole', 2)
    with pytest.raises(KeyboardInterrupt): trained('cut', 2, stop=1)
    for a,b in zip(whole.values(), trained('cut', 2, resume=True).values()): assert torch.equal(a, b)
    monkeypatch.setattr(study, 'half_precision', list)
    (tmp_path/'cut'/'models'/'stage1_1.state').unlink(missing_ok=True)
    with pytest.raises(AnotherRun, match='precision: bf16 then, single now'): trained('cut', 2, resume=True)


class StopAfter(Callback):
    "End the fit as an interruption would, between epochs."
    order,looks_on = 90,True
    def __init__(self, n): self.n = n
    def after_epoch(self):
        if self.epoch + 1 == self.n: raise KeyboardInterrupt


def test_half_precision_only_where_it_gains(monkeypatch):
    if torch.cuda.is_available(): return
    for there in (False, True):
        for o in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'): monkeypatch.setattr(torch.cpu, o, lambda: there, raising=False)
        assert [type(o) for o in half_precision()] == [Bfloat16]*there


# ---- small pictures first

class Sizes(Callback):
    "The side of every training picture, by stage."
    looks_on = True
    def __init__(self): self.seen = []
    def before_batch(self):
        if self.training: self.seen.append((self.learn.stage, self.x.shape[-1]))


def progressive(sample, cells, folder, *cbs, resume=False, **fields):
    "A learner that was trained in two sizes."
    recipe = small(RECIPES['progressive_resnet18']).but(**{**dict(arch='squeezenet1_1', size=40, size_first=32, epochs=2, finetune_epochs=2), **fields})
    learn = recipe_learner(recipe, recipe_data(recipe, sample, cells, cache=False), path=folder)
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn, recipe, every='epoch', resume=resume, cbs=[*cbs])
    return learn


@pytest.fixture(scope='module')
def in_two_sizes(sample, cells, tmp_path_factory):
    "One that nobody interrupted, and what it saw."
    sizes = Sizes()
    return progressive(sample, cells, tmp_path_factory.mktemp('two sizes'), sizes),sizes.seen


def test_small_pictures_come_first(in_two_sizes):
    "The first stage sees small pictures, the second and the predictions large ones."
    learn,seen = in_two_sizes
    assert {*seen} == {(0, 32), (1, 40)} and learn.data.one_batch()[0].shape[-1] == 40


@pytest.mark.parametrize('stop', [1, 3])
def test_small_pictures_go_on_exactly(stop, in_two_sizes, sample, cells, tmp_path):
    "Cut off in either stage."
    with pytest.raises(KeyboardInterrupt): progressive(sample, cells, tmp_path, StopAfterAll(stop))
    again = progressive(sample, cells, tmp_path, resume=True)
    for a,b in zip(in_two_sizes[0].model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a, b)


class StopAfterAll(StopAfter):
    "Epochs of all stages are counted."
    done = 0
    def after_epoch(self):
        self.done += 1
        if self.done == self.n: raise KeyboardInterrupt


def test_one_stage_has_one_size(sample, cells, tmp_path):
    sizes = Sizes()
    progressive(sample, cells, tmp_path, sizes, epochs=1, finetune_epochs=0)
    assert {*sizes.seen} == {(0, 40)}


# ---- the best

@pytest.mark.parametrize('name,kind', [('best', 'AUC'), ('best_resnet18', 'random weights')])
def test_the_best_recipe_is_the_best_trial(name, kind):
    "The table decides, and what was tried is what is there."
    from best_trials import TRIALS
    table = pd.read_csv(REPO/'results'/'best_trials.csv')
    known = table[table.trial.isin([k for k,o in TRIALS.items() if not o.pretrained] if kind == 'random weights' else TRIALS)]
    tried,recipe = TRIALS[known.groupby('trial').auc_eight.mean().idxmax()],RECIPES[name]
    told = 'name source note published published_split split parts average tta'.split() # the last two beside each trial
    assert tried.but(**{k: getattr(recipe, k) for k in told}) == recipe and len(known) > 3


# ---- comparisons

TINY = dict(limit=60, size=32, bs=16, epochs=2, finetune_epochs=0, draws=20)
ROWS = 'colour_floor', 'squeezenet1_1_scratch', 'vgg16_pytorch'


@pytest.fixture(scope='module')
def whole(few, tmp_path_factory):
    "A comparison that nobody interrupted: its folder and its table."
    folder = tmp_path_factory.mktemp('whole')
    return folder,compare(few, folder, ROWS, **TINY)


def test_what_a_comparison_writes(whole):
    folder,table = whole
    state = table.set_index(['recipe', 'split']).state['vgg16_pytorch', 'random']
    assert state.startswith('not run here: it needs ImageNet weights. On a T4: malaria-fastai train')
    assert (table.shortened.str.contains('32 of') | (table.recipe == 'colour_floor')).all()
    text = (folder/'results.md').read_text()
    assert 'accuracy, random | accuracy, patient' in text and 'drawn' in text.lower()
    main,more = text.split('\n## More columns') # the command shows the first alone
    assert 'sensitivity' not in main and 'accuracy minus that of' in main and 'sensitivity, random' in more and 'published' in more
    assert (folder/'results.svg').stat().st_size > 1000


def test_a_comparison_judges_the_test_cells(whole):
    "Each number is that of the predictions beside it, each difference is to the first row."
    folder,table = whole
    for row in table[table.state == ''].itertuples():
        preds = pd.read_csv(folder/'runs'/row.recipe/f'{row.split}0-seed42'/'predictions.csv').query('split == "test"')
        floor,truth = table[(table.recipe == 'colour_floor') & (table.split == row.split)].iloc[0],preds.label == 'Parasitized'
        assert row.n == len(preds) and row.accuracy == pytest.approx(((preds.p >= .5) == truth).mean())
        assert row.auc == pytest.approx(roc_auc_score(truth, preds.p))
        assert row.accuracy_over_first == pytest.approx(row.accuracy - floor.accuracy)


def test_a_budget_stops_and_the_same_command_goes_on_exactly(whole, few, tmp_path, monkeypatch):
    "Before the first run, then between two epochs; the end is that of the comparison that nobody interrupted."
    from malaria_fastai.extra import compare as study
    rows,words = ROWS[:2],dict(splits=('patient',), **TINY)
    none = compare(few, tmp_path, rows, budget=1e-9, **words)
    assert none.state.str.contains('budget').all() and 'accuracy' not in none
    run = study._train_one
    monkeypatch.setattr(study, '_train_one', lambda job, root, positive, until: run(job, root, positive, 0))
    cut = compare(few, tmp_path, rows, **words)
    assert 'budget' in cut.state[1] and any(tmp_path.rglob('stage1_0.state'))
    monkeypatch.undo()
    end,table = compare(few, tmp_path, rows, **words),whole[1]
    uncut = table[(table.split == 'patient') & table.recipe.isin(rows)].reset_index(drop=True)
    for k in ('recipe', 'split', 'accuracy', 'auc', 'n'): pd.testing.assert_series_equal(uncut[k], end[k], check_dtype=False)


def test_another_comparison_is_refused(whole, few, tmp_path):
    shutil.copy(whole[0]/'compare.json', tmp_path)
    with pytest.raises(AnotherRun): compare(few, tmp_path, ('colour_floor',), splits=('random',), **TINY | dict(limit=120))


@pytest.mark.parametrize('rule', ['random', 'patient'])
def test_folds_hold_every_cell_once(rule, all_cells):
    folds = comparison_folds(all_cells, rule, 5)
    tested = pd.concat([o.path[o.split == 'test'] for o in folds])
    assert sorted(tested) == sorted(all_cells.path)
    assert all((o.split == 'valid').any() for o in folds)


def test_train_runs_a_recipe(few, tmp_path, capsys):
    words = dict(recipe='squeezenet1_1', pretrained='no', size=32, bs=16, epochs=1, limit=60, split='patient', draws=20)
    found = json.loads((train(few, tmp_path/'run', **words)/'metrics.json').read_text())
    assert (found['recipe'], found['arch']) == ('squeezenet1_1_scratch', 'squeezenet1_1') and '32 of 128 px' in found['shortened']
    train(few, tmp_path/'run', resume=True, **words)
    assert 'nothing is left to do' in capsys.readouterr().out


def test_train_runs_the_recipe_without_a_network(few, tmp_path):
    out = train(few, tmp_path/'floor', recipe='colour_floor', limit=60, split='patient', draws=20)
    assert (out/'report.html').exists() and json.loads((out/'metrics.json').read_text())['arch'] == 'none, colours only'
