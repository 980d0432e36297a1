"What a notebook cannot say about batches: every parameter of v1, its effect or its error; drawn inputs; damaged files."
import inspect, json, os, subprocess, sys, threading, zipfile
import numpy as np, pandas as pd, pytest, torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage
from fasttransform import Pipeline, Transform
from fastai.vision.core import imagenet_stats
from hypothesis import given, settings, strategies as st
from PIL import Image
from malaria_fastai.cells import BadPicture, NoCells, ResizeMethod, Resizing
from malaria_fastai import data as D
from malaria_fastai.data import DatasetType, ImageDataBunch, Pictures, get_image_files, load_data
from malaria_fastai.datablock import ImageList
from malaria_fastai.files import replacing
from malaria_fastai.transforms import (Dihedral, Flip, Lighting, Stain, derive_seed, get_transforms, n_views, seed_torch,
    seeded, transformed, view)
from malaria_fastai.source import extract

CLASSES = 'bad', 'good', 'ugly'

def draw(path, i):
    "A picture whose size and colours follow from `i`."
    rng,(w,h) = np.random.RandomState(i),(20 + i*7 % 30, 20 + i*11 % 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(rng.randint(30, 226, 3)*np.linspace(.5, 1, w*h).reshape(h, w, 1))).save(path)

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Sixty pictures of three classes."
    root = tmp_path_factory.mktemp('flat')
    for i in range(60): draw(root/CLASSES[i % 3]/f'c{i:02d}.png', i)
    return root

@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    "Folders train (30), valid (10), test (6 in class folders), flat (4 without), and elsewhere (3)."
    root,n = tmp_path_factory.mktemp('parts'),0
    for folder,k in dict(train=30, valid=10, test=6, elsewhere=3).items():
        for i in range(k):
            draw(root/folder/CLASSES[i % 3]/f'{n:02d}.png', n)
            n += 1
    for i in range(4): draw(root/'flat'/f'x{i}.png', 100 + i)
    return root

QUICK = dict(size=16, resize_method=ResizeMethod.SQUISH, bs=8, cache=False, device='cpu')
def bunch(root, **kw): return ImageDataBunch.from_folder(root, **{**QUICK, **kw})
def pixels(data, k=DatasetType.Train): return data.one_batch(k)[0]
def labels(data): return data.cells.set_index('path').label

# --- the split ------------------------------------------------------------------------------------------------------------------

@settings(max_examples=15, deadline=None)
@given(pct=st.floats(.05, .6), seed=st.integers(0, 2**32-1)) # above, chance may leave a class out of training: refused
def test_the_split_is_v1s(root, pct, seed):
    data = bunch(root, valid_pct=pct, seed=seed)
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob('*.png'))
    order = np.random.RandomState(seed).permutation(60)
    cut = int(pct*60)
    assert data.valid_ds.cells.path.tolist() == [names[i] for i in sorted(order[:cut])]
    assert data.train_ds.cells.path.tolist() == [names[i] for i in sorted(order[cut:])]

@pytest.mark.parametrize('pct', [0, 1, -.1, 1.5])
def test_a_share_lies_between(root, pct):
    with pytest.raises(ValueError, match='valid_pct is the share'): bunch(root, valid_pct=pct)

def test_folders_are_the_split(parts, capsys):
    data = bunch(parts)
    assert (len(data.train_ds), len(data.valid_ds), data.test_ds) == (30, 10, None)
    assert '13 pictures outside' in capsys.readouterr().out
    assert set(data.train_ds.cells.path.str.split('/').str[0]) == {'train'}

def test_valid_pct_draws_from_train_and_valid_only(parts):
    data = bunch(parts, valid_pct=.25)
    assert (len(data.train_ds), len(data.valid_ds)) == (30, 10)
    assert set(data.cells.path.str.split('/').str[0]) == {'train', 'valid'}
    assert not set(data.valid_ds.cells.path.str.split('/').str[0]) == {'valid'}

def test_test_folder(parts):
    data = bunch(parts, test='test')
    assert len(data.test_ds) == 6 and data.test_ds.labelled and data.classes == list(CLASSES)
    assert 'Test: LabelList (6 items)' in repr(data)
    data = bunch(parts, test='flat', valid_pct=.2)
    assert len(data.test_ds) == 4 and not data.test_ds.labelled and data.classes == list(CLASSES)
    assert 'y: EmptyLabelList' in repr(data)
    x,y = data.one_batch(DatasetType.Test)
    assert x.shape == (4, 3, 16, 16) and y.tolist() == [0]*4 and len(next(iter(data.dl(DatasetType.Test)))) == 1

def table_of(root, files): return pd.DataFrame([(p.relative_to(root).as_posix(), p.parent.name) for p in files], columns=['file', 'kind'])

def in_csv(root, files, **kw):
    table_of(root, files).to_csv(root/'listed.csv', index=False)
    return ImageDataBunch.from_csv(root, csv_labels='listed.csv', **kw)

WITH_TEST = dict(
    from_df=lambda root, files, **kw: ImageDataBunch.from_df(root, table_of(root, files), **kw),
    from_csv=in_csv,
    from_lists=lambda root, files, **kw: ImageDataBunch.from_lists(root, files, [p.parent.name for p in files], **kw),
    from_name_func=lambda root, files, **kw: ImageDataBunch.from_name_func(root, files, lambda p: p.parent.name, **kw),
    from_name_re=lambda root, files, **kw: ImageDataBunch.from_name_re(root, files, r'(\w+)/\d+.png', **kw))

@pytest.mark.parametrize('name', WITH_TEST)
def test_every_constructor_takes_a_test_folder(parts, name, tmp_path):
    "v1's `test`: a folder under `path` whose pictures have no labels."
    make,files = WITH_TEST[name],sorted((parts/'train').rglob('*.png'))
    plain,data = make(parts, files, **QUICK),make(parts, files, test='test', **QUICK)
    assert plain.test_ds is None and len(data.test_ds) == 6 and not data.test_ds.labelled and set(data.test_ds.cells.path.str.split('/').str[0]) == {'test'}
    for a,b in zip(plain.loaders, data.loaders): assert a.dataset.cells.path.tolist() == b.dataset.cells.path.tolist() # the split stays
    x,_ = data.one_batch(DatasetType.Test)
    assert x.shape == (6, 3, 16, 16) and data.classes == plain.classes and 'y: EmptyLabelList' in repr(data)
    assert len(make(parts, files, test='flat', **QUICK).test_ds) == 4
    back = load_data(parts, data.save('with_test.json').name, cache=False)
    assert back.fingerprint() == data.fingerprint() and len(back.test_ds) == 6
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder'): make(parts, files, test='nowhere', **QUICK)
    with pytest.raises(ValueError, match='listed twice'): make(parts, files, test='train', **QUICK)

@pytest.mark.parametrize('make', [lambda root: ImageDataBunch.from_cells(root, bunch(root).cells, test='train', **QUICK), lambda root: ImageDataBunch.single_from_classes(root, ['x'], test='x')])
def test_a_test_folder_means_nothing_to_a_table_and_to_no_pictures(root, make):
    with pytest.raises(TypeError, match='test'): make(root)

def test_names_of_the_folders(parts):
    data = bunch(parts, train='valid', valid='test')
    assert (len(data.train_ds), len(data.valid_ds)) == (10, 6)

@pytest.mark.parametrize('given', ['train', 'valid', 'test'])
def test_a_missing_folder(parts, given):
    with pytest.raises(FileNotFoundError, match=f"{given}='nowhere'"): bunch(parts, **{given: 'nowhere'})

def test_no_folder_and_no_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'): bunch(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='no pictures'): bunch(tmp_path)

@pytest.mark.parametrize('where', ['', 'train'])
def test_loose_pictures(tmp_path, where):
    for i in range(20): draw(tmp_path/'train'/'ab'[i % 2]/f'{i}.png', i)
    draw(tmp_path/where/'loose.png', 1)
    with pytest.raises(ValueError, match='1 pictures lie in no class folder: .*loose.*Put each class into a folder of its own'): bunch(tmp_path)

def test_a_link_to_a_folder_above(tmp_path):
    "It leads in a circle. A link that leads elsewhere is followed, as by fastai."
    for i in range(20): draw(tmp_path/'real'/'ab'[i % 2]/f'{i}.png', i)
    (tmp_path/'a').symlink_to(tmp_path/'real'/'a')
    assert len(get_image_files(tmp_path, recurse=True)) == 30 and len(ImageList.from_folder(tmp_path)) == 30
    for place,to in (('a/again', tmp_path/'real'), ('real/up', '.'), ('real/b/top', '../..')):
        (tmp_path/place).symlink_to(to)
        for use in (bunch, ImageList.from_folder, lambda path: get_image_files(path, recurse=True)):
            with pytest.raises(ValueError, match='is a link to a folder above it'): use(tmp_path)
        assert get_image_files(tmp_path) == []
        (tmp_path/place).unlink()

def test_two_folders_that_link_to_each_other(tmp_path):
    for label in 'ab':
        for i in range(10): draw(tmp_path/label/f'{label}{i}.png', i + 10*(label == 'b'))
    for place,to in (('a/over', '../b'), ('b/back', '../a')): (tmp_path/place).symlink_to(to)
    for use in (bunch, ImageList.from_folder):
        with pytest.raises(ValueError, match='is a link to a folder above it, or behind one'): use(tmp_path)

def test_system_files_are_no_pictures(tmp_path):
    for i in range(20): draw(tmp_path/'ab'[i % 2]/f'{i}.png', i)
    draw(tmp_path/'__MACOSX'/'a'/'0.png', 0)
    draw(tmp_path/'a'/'._1.png', 0)
    assert len(bunch(tmp_path).cells) == 20

# --- the other constructors -----------------------------------------------------------------------------------------------------

def table(root): return pd.DataFrame([(p.name, p.parent.name, f'{p.parent.name}/{p.stem}') for p in sorted(root.rglob('*.png'))], columns=['file', 'kind', 'stem'])

def same(a, b): return labels(a).equals(labels(b)) and a.fingerprint() == b.fingerprint()

def test_from_df(root):
    flat,df = bunch(root),table(root)
    full = df.kind + '/' + df.file
    assert same(flat, ImageDataBunch.from_df(root, pd.DataFrame(dict(a=full, b=df.kind)), **QUICK))
    assert same(flat, ImageDataBunch.from_df(root, df, fn_col='stem', label_col=1, suffix='.png', **QUICK))
    assert same(flat, ImageDataBunch.from_df(root.parent, df, folder=root.name, fn_col=2, label_col='kind', suffix='.png', **QUICK)) is False
    good = df[df.kind == 'good'].assign(kind=['good', 'fine']*10)
    part = ImageDataBunch.from_df(root, good[['file', 'kind']], folder='good', **QUICK)
    assert part.cells.path.str.startswith('good/').all()
    with pytest.raises(ValueError, match='one label'): ImageDataBunch.from_df(root, df, None, ',')

def test_from_csv(root):
    flat,df = bunch(root),table(root)
    df.assign(file=df.kind + '/' + df.file)[['file', 'kind']].to_csv(root/'labels.csv', index=False)
    assert same(flat, ImageDataBunch.from_csv(root, **QUICK))
    df[['kind', 'stem']].to_csv(root/'other.txt', sep=';', index=False, header=False)
    kw = dict(csv_labels='other.txt', delimiter=';', header=None, fn_col=1, label_col=0, suffix='.png')
    assert same(flat, ImageDataBunch.from_csv(root, **kw, **QUICK))
    other = ImageDataBunch.from_csv(root, valid_pct=.5, seed=7, **kw, **QUICK)
    assert len(other.valid_ds) == 30 and other.valid_ds.cells.path.tolist() == bunch(root, valid_pct=.5, seed=7).valid_ds.cells.path.tolist()
    with pytest.raises(ValueError, match='one label'): ImageDataBunch.from_csv(root, None, ' ')

def test_from_lists_and_names(root):
    flat = bunch(root, valid_pct=.3, seed=3)
    files = sorted(root.rglob('*.png'))
    kinds = [p.parent.name for p in files]
    assert same(flat, ImageDataBunch.from_lists(root, files, kinds, .3, 3, **QUICK))
    assert same(flat, ImageDataBunch.from_lists(root, [p.relative_to(root) for p in files], kinds, valid_pct=.3, seed=3, **QUICK))
    assert same(flat, ImageDataBunch.from_name_func(root, files, lambda p: p.parent.name, .3, 3, **QUICK))
    assert same(flat, ImageDataBunch.from_name_re(root, files, rf'{root.name}/(\w+)/c\d+', .3, 3, **QUICK)) # the whole path is searched
    with pytest.raises(ValueError, match='no label'): ImageDataBunch.from_name_re(root, files, r'(\d+)\.jpg')
    with pytest.raises(ValueError, match='same length'): ImageDataBunch.from_lists(root, files, kinds[1:])
    with pytest.raises(FileNotFoundError, match='1 of 61'): ImageDataBunch.from_lists(root, [*files, 'gone.png'], [*kinds, 'bad'])
    with pytest.raises(ValueError, match='listed twice'): ImageDataBunch.from_lists(root, [*files, files[0]], [*kinds, 'bad'])
    with pytest.raises(ValueError, match='item_cls'): ImageDataBunch.from_lists(root, files, kinds, item_cls=object)

def test_single_from_classes(root):
    data = ImageDataBunch.single_from_classes(root, ['x', 'y', 'z'], size=16)
    assert data.classes == ['x', 'y', 'z'] and data.c == 3 and not len(data.train_ds)
    x, = data.test_dl([root/'bad'/'c00.png', np.zeros((30, 20, 3), np.uint8), Image.new('L', (9, 9))]).one_batch()
    assert x.shape == (3, 3, 16, 16)

def test_from_cells_checks_its_table(root):
    cells = bunch(root).cells
    def make(c): return ImageDataBunch.from_cells(root, c, **QUICK)
    assert len(make(cells.drop(columns='split')).valid_ds) == 12
    with pytest.raises(ValueError, match='label is missing'): make(cells.drop(columns='label'))
    with pytest.raises(ValueError, match="'valid' or 'test'.*validation"): make(cells.assign(split=cells.split.replace('valid', 'validation')))
    with pytest.raises(ValueError, match='without a label'): make(cells.assign(label=cells.label.mask(cells.index == 3)))
    with pytest.raises(NoCells, match="'valid'"): make(cells[cells.split == 'train'])

# v1's parameters that mean nothing here: an error, never ignored.
GONE = dict(one_batch='detached', normalize='do_x do_y', show_batch='reverse')

@pytest.mark.parametrize('method,name', [(k, o) for k,v in GONE.items() for o in v.split()])
def test_words_of_v1_that_are_gone(root, method, name):
    with pytest.raises(TypeError, match=name): getattr(bunch(root), method)(**{name: True})

REFUSED = 'dl_tfms collate_fn tfm_y label_delim'.split()

@pytest.mark.parametrize('name', REFUSED)
def test_words_of_v1_that_would_change_something_say_what_to_write(root, name):
    bunch(root).save('words.json')
    for make in (lambda **kw: load_data(root, 'words.json', **kw), lambda **kw: bunch(root, **kw)):
        with pytest.raises(ValueError, match=f'argument {name} is a word of fastai v1: .'): make(**{name: [1]})
        make(**{name: None})

def test_words_of_v1_without_a_meaning(root, capsys):
    data = bunch(root, no_check=True, add_time=False, mode='nearest', mult=32)
    data.show_batch(2, hide_axis=False)
    said = capsys.readouterr().out
    assert all(f"argument {word} has no meaning" in said for word in ('mode', 'mult'))
    assert 'no_check' not in said and "a bunch: v1's argument add_time has no meaning here" in said and "show_batch: v1's argument hide_axis" in said
    assert data.resized(8).rule.size == (8, 8)

UNKNOWN = 'sise ds_tfm valid_size'.split()

@pytest.mark.parametrize('name', UNKNOWN)
def test_unknown_arguments_are_errors(root, name):
    with pytest.raises(TypeError, match=name): bunch(root, **{name: 1})

@pytest.mark.parametrize('make,names', [
    (ImageDataBunch.from_folder, 'path train valid test valid_pct seed'),
    (ImageDataBunch.from_df, 'path df folder label_delim valid_pct seed fn_col label_col suffix'),
    (ImageDataBunch.from_csv, 'path folder label_delim csv_labels valid_pct seed fn_col label_col suffix delimiter header'),
    (ImageDataBunch.from_lists, 'path fnames labels valid_pct seed item_cls'),
    (ImageDataBunch.from_name_func, 'path fnames label_func valid_pct seed'),
    (ImageDataBunch.from_name_re, 'path fnames pat valid_pct'),
    (ImageDataBunch.single_from_classes, 'path classes ds_tfms'),
    (get_transforms, 'do_flip flip_vert max_rotate max_zoom max_lighting max_warp p_affine p_lighting xtra_tfms')])
def test_signatures_begin_as_in_v1(make, names):
    assert ' '.join(inspect.signature(make).parameters).startswith(names)

def test_defaults_are_v1s():
    def defaults(f): return {k: v.default for k,v in inspect.signature(f).parameters.items()}
    assert defaults(get_transforms).items() >= dict(do_flip=True, flip_vert=False, max_rotate=10., max_zoom=1.1, max_lighting=.2, max_warp=.2,
                                                    p_affine=.75, p_lighting=.75, xtra_tfms=None).items()
    assert defaults(ImageDataBunch.from_cells).items() >= dict(bs=64, val_bs=None, size=None, resize_method=None, ds_tfms=None).items()
    assert defaults(ImageDataBunch.show_batch).items() >= dict(rows=5, ds_type=DatasetType.Train).items()

# --- sizes ----------------------------------------------------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))

@settings(max_examples=80, deadline=None)
@given(wh=SHAPES, hw=SHAPES, method=st.sampled_from(list(ResizeMethod)), mode=st.sampled_from(['zeros', 'border', 'reflection']),
       place=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_every_method_gives_its_size(wh, hw, method, mode, place):
    rule = Resizing.of(hw, method, mode)
    x = rule.crop(rule.fixed(Image.new('RGB', wh, (9, 9, 9))), *place)
    assert x.shape == ((wh[1], wh[0]) if method == ResizeMethod.NO else hw) + (3,) and x.dtype == np.uint8
    if method in (ResizeMethod.CROP, ResizeMethod.SQUISH) or mode != 'zeros': assert (x == 9).all()

def test_what_size_implies(root):
    assert bunch(root, size=16, resize_method=None).rule.method == ResizeMethod.CROP
    assert bunch(root, size=(12, 20), resize_method=None).rule.method == ResizeMethod.SQUISH
    assert bunch(root, size=None, resize_method=None).rule.method == ResizeMethod.NO
    for m in (ResizeMethod.CROP, ResizeMethod.PAD, ResizeMethod.SQUISH):
        assert pixels(bunch(root, size=16, resize_method=m)).shape == (8, 3, 16, 16)
        assert pixels(bunch(root, size=(12, 20), resize_method=m)).shape == (8, 3, 12, 20)

def test_methods_differ_as_they_should():
    x = np.zeros((10, 30, 3), np.uint8)
    x[:, 10:20] = 200
    im = Image.fromarray(x)
    crop = Resizing.of(10)
    assert (crop.crop(crop.fixed(im)) == 200).all()                       # the middle of the longer side
    assert (crop.crop(crop.fixed(im), .5, 0.) == 0).all()
    pad = Resizing.of(30, ResizeMethod.PAD).fixed(im)
    assert (pad[:10] == 0).all() and (pad[10:20, 10:20] == 200).all() and (pad[20:] == 0).all()
    mirrored = Resizing.of(30, ResizeMethod.PAD, 'reflection').fixed(im)
    assert (mirrored[:, 10:20] == 200).all()
    assert Resizing.of((10, 30), ResizeMethod.SQUISH).fixed(im).tolist() == x.tolist()

def test_no_size_leaves_pictures_alone(root):
    data = bunch(root, size=None, resize_method=ResizeMethod.NO, bs=1)
    shapes = {tuple(x.shape[2:]) for x,_ in data.train_dl}
    assert len(shapes) > 5
    with pytest.raises(ValueError, match='different shapes'): bunch(root, size=None, resize_method=None).one_batch()

@pytest.mark.parametrize('kw,match', [(dict(size=0), 'size'), (dict(size=(9, 9, 3)), 'height, width'), (dict(size=16.5), 'size'), (dict(size='16'), 'size'),
    (dict(resize_method='squish'), 'ResizeMethod'), (dict(padding_mode='mirror'), 'padding_mode'), (dict(bs=0), 'bs'), (dict(val_bs=0), 'val_bs')])
def test_bad_sizes(root, kw, match):
    with pytest.raises(ValueError, match=match): bunch(root, **kw)

def test_padding_mode_reaches_the_batch(root):
    zeros,mirror = (pixels(bunch(root, resize_method=ResizeMethod.PAD, padding_mode=o, normalize=False)) for o in ('zeros', 'reflection'))
    assert (zeros == 0).any() and not (mirror == 0).any()

# --- batches --------------------------------------------------------------------------------------------------------------------

def test_batch_sizes(root):
    data = bunch(root, bs=10, val_bs=7)
    assert [len(y) for _,y in data.train_dl] == [10]*4                     # 48 cells: the last 8 are left out, as in v1
    assert [len(y) for _,y in data.valid_dl] == [7, 5]
    assert bunch(root, bs=10).valid.bs == 10 and bunch(root, bs=48).train.n == 48
    with pytest.raises(NoCells, match='bs=49 is larger.*bs=48 or less'): bunch(root, bs=49)
    with pytest.raises(ValueError, match='bs=0'): bunch(root, bs=0)

def test_classes(root):
    assert bunch(root).classes == list(CLASSES) and bunch(root).c == 3
    data = bunch(root, classes=['ugly', 'good', 'bad', 'absent'])
    assert data.classes == ['ugly', 'good', 'bad', 'absent'] and data.c == 4
    assert data.valid_ds.targets.tolist() == [data.classes.index(o) for o in data.valid_ds.cells.label]
    with pytest.raises(ValueError, match='ugly is not in classes'): bunch(root, classes=['bad', 'good'])

def test_seed_names_everything(root):
    tfms = get_transforms()
    a,b,c = (bunch(root, ds_tfms=tfms, seed=o) for o in (1, 1, 2))
    torch.manual_seed(99)
    assert torch.equal(pixels(a), pixels(b)) and a.fingerprint() == b.fingerprint()
    assert a.fingerprint() != c.fingerprint()

@pytest.mark.parametrize('workers', [0, 1, 3])
def test_workers_change_nothing(root, workers):
    a,b = (bunch(root, ds_tfms=get_transforms(), num_workers=o) for o in (2, workers))
    for (x,y),(v,w) in zip(a.train_dl, b.train_dl): assert torch.equal(x, v) and torch.equal(y, w)

def test_batches_go_to_the_device(root, monkeypatch):
    "`meta` is a device without numbers, which every machine has."
    tfms = get_transforms(max_rotate=None, max_warp=None, max_zoom=1.)
    for b in (bunch(root, device='meta', ds_tfms=tfms).train.one_batch(), bunch(root, device='meta').one_batch(cpu=False)):
        assert [o.device.type for o in b] == ['meta']*2 and b[0].shape == (8, 3, 16, 16)
    assert bunch(root, device=torch.device('cpu')).valid.one_batch()[0].device.type == 'cpu'
    with pytest.raises(RuntimeError, match='gpu'): bunch(root, device='gpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match="device='cuda:1': PyTorch finds no CUDA device"): bunch(root, device='cuda:1')

def test_global_streams_are_left_alone(root):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    bunch(root, ds_tfms=get_transforms()).one_batch()
    assert torch.equal(before, torch.get_rng_state())

@settings(max_examples=50, deadline=None)
@given(a=st.lists(st.integers(0, 2**40), min_size=1, max_size=5), b=st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_seeds_from_keys(a, b):
    assert derive_seed(*a) == derive_seed(*a) and 0 <= derive_seed(*a) < 2**63
    if [*map(int, a)] != [*map(int, b)] and len(a) == len(b): assert derive_seed(*a) != derive_seed(*b)
    with seeded(*a): x = torch.rand(1), np.random.rand()
    with seeded(*a): assert (torch.rand(1), np.random.rand()) == x

def test_an_epoch_is_a_permutation(root):
    data = bunch(root)
    orders = []
    for e in range(3):
        data.train.epoch = e
        orders.append(data.train.get_idxs())
        assert sorted(orders[-1]) == list(range(48))
    assert orders[0] != orders[1] != orders[2]
    data.train.epoch,data.train.stage = 0,1
    assert data.train.get_idxs() != orders[0]
    assert data.valid.get_idxs() == list(range(12))

def test_pictures_match_their_labels(root):
    data = bunch(root, normalize=False, ds_tfms=None)
    rule,idxs = data.rule,data.train.get_idxs()[:8]
    x,y = data.one_batch()
    for pic,label,i in zip(x, y, idxs):
        file = data.train_ds.items[i]
        assert data.classes[int(label)] == file.parent.name
        with Image.open(file) as im: assert torch.equal((pic.permute(1, 2, 0)*255).round().byte(), torch.tensor(rule.fixed(im.convert('RGB'))))

def test_normalize(root):
    plain,usual = bunch(root, normalize=False),bunch(root)
    mean,std = (torch.tensor(o)[:, None, None] for o in imagenet_stats)
    seen = usual.train_dl.one_batch()[0].as_subclass(torch.Tensor)
    assert torch.allclose(seen, (pixels(plain) - mean)/std, atol=1e-5)
    assert torch.allclose(pixels(usual), pixels(plain), atol=1e-6) and torch.allclose(usual.one_batch(denorm=False)[0], seen)
    own = bunch(root).normalize(([.5]*3, [.25]*3))
    assert torch.allclose(own.train_dl.one_batch()[0].as_subclass(torch.Tensor), (pixels(plain) - .5)/.25, atol=1e-5)
    for data in (own, bunch(root, normalize=([.5]*3, [.25]*3)), bunch(root).normalize()):
        with pytest.raises(ValueError, match='already'): data.normalize(imagenet_stats)
    assert bunch(root, normalize=False).normalize(imagenet_stats).stats == usual.stats

def test_unnormalized_is_a_copy(root):
    data = bunch(root)
    bare = data.unnormalized()
    assert data.stats and bare.stats is None
    assert data.train_dl.one_batch()[0].min() < 0 <= bare.train_dl.one_batch()[0].min()
    with pytest.raises(ValueError, match='on purpose'): bunch(root).normalize().unnormalized()

def test_parts_by_name(root):
    data = bunch(root, ds_tfms=get_transforms())
    assert data.fix_dl.get_idxs() == list(range(48)) and len(data.fix_dl.dataset) == 48
    assert torch.equal(data.fix_dl.one_batch()[0], data.fix_dl.one_batch()[0]) and not torch.equal(data.fix_dl.one_batch()[0], data.train_dl.one_batch()[0])
    with pytest.raises(ValueError, match='no test part'): data.dl(DatasetType.Test)
    with pytest.raises(ValueError, match='no test part'): data.show_batch(ds_type=DatasetType.Test)

def test_random_crops_only_in_training_with_transforms(root):
    def two(**kw):
        data = bunch(root, resize_method=ResizeMethod.CROP, **kw)
        idxs = list(range(8))
        for data.train.epoch in (0, 1): yield data.train.load(0, idxs)[0], data.valid.load(0, idxs)[0]
    still = get_transforms(False, False, None, 1., None, None)
    (a,va),(b,vb) = two(ds_tfms=still)
    assert not torch.equal(a, b) and torch.equal(va, vb)
    (a,_),(b,_) = two()
    assert torch.equal(a, b)

def crop_places(root, tmp_path, epochs):
    "Where training cut pictures that are four pixels longer than the cut; each pixel says its row and column."
    for i in range(40):
        a = np.dstack(np.broadcast_arrays(*np.mgrid[:16 + 4*(i % 2), :20 - 4*(i % 2)], i)).astype(np.uint8)
        (root/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(a).save(root/'ab'[i % 2]/f'{i}.png')
    data = bunch(root, size=16, resize_method=ResizeMethod.CROP, normalize=False, cache=tmp_path, ds_tfms=get_transforms(False, False, None, 1., None, None))
    for data.train.epoch in range(epochs):
        x = (data.train.load(0, list(range(32)))[0].as_subclass(torch.Tensor)*255).round().long()
        yield x[:, :2, 0, 0].amax(1).numpy() # the shorter side leaves no choice: 0

def test_random_crops_differ_within_a_batch_and_are_uniform(tmp_path):
    places = np.stack(list(crop_places(tmp_path/'pics', tmp_path, 100)))
    assert all(len(set(o)) > 2 for o in places) and places.max() == 4
    n = np.bincount(places.ravel(), minlength=5)
    assert ((n - n.mean())**2/n.mean()).sum() < 18.5, n # chi-squared, four degrees of freedom: one set of draws in a thousand is above
    rule = Resizing.of(4)
    cut = [rule.crop(np.tile(np.arange(6, dtype=np.uint8)[:, None, None], (1, 4, 3)), o)[0, 0, 0] for o in np.linspace(0, 1, 300)]
    assert np.bincount(cut).tolist() == [100]*3

# --- the cache ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', list(ResizeMethod))
def test_cached_is_uncached(root, tmp_path, method):
    kw = dict(size=None if method == ResizeMethod.NO else (14, 18), resize_method=method, bs=1 if method == ResizeMethod.NO else 8,
              ds_tfms=get_transforms(max_rotate=None, max_zoom=1., max_warp=None))
    plain,made,opened = (bunch(root, cache=o, **kw) for o in (False, tmp_path, tmp_path))
    assert len(list(tmp_path.glob('*.pictures'))) == 1 and plain.train_ds.pictures.store is None
    for a,b,c in zip(plain.train_dl, made.train_dl, opened.train_dl): assert torch.equal(a[0], b[0]) and torch.equal(b[0], c[0])

def test_pictures_are_kept_without_being_asked_and_not_among_the_classes(tmp_path, monkeypatch):
    monkeypatch.setenv('MALARIA_CACHE', str(tmp_path/'kept'))
    for i in range(20): draw(tmp_path/'pics'/'ab'[i % 2]/f'{i}.png', i)
    data = ImageDataBunch.from_folder(tmp_path/'pics', size=16, bs=8, device='cpu')
    file, = (tmp_path/'kept').iterdir()
    assert data.train_ds.pictures.store.file == file and sorted(os.listdir(tmp_path/'pics')) == ['a', 'b']
    monkeypatch.delenv('MALARIA_CACHE')
    monkeypatch.setattr(D, 'os_cache', lambda name: tmp_path/'home'/name)
    bunch(tmp_path/'pics', cache=True)
    assert len(list((tmp_path/'home'/'malaria_fastai').iterdir())) == 1

def test_pictures_on_a_disk_that_cannot_be_written_to_are_kept(tmp_path, monkeypatch, capsys):
    "As on Kaggle. (The user who runs this may write anywhere, so the folder only says that it is a file.)"
    monkeypatch.setenv('MALARIA_CACHE', str(tmp_path/'kept'))
    for i in range(20): draw(tmp_path/'pics'/'ab'[i % 2]/f'{i}.png', i)
    before = sorted(o.relative_to(tmp_path).as_posix() for o in (tmp_path/'pics').rglob('*'))
    (tmp_path/'pics').chmod(0o555)
    assert bunch(tmp_path/'pics', cache=True).train_ds.pictures.store is not None and 'No picture cache' not in capsys.readouterr().out
    assert sorted(o.relative_to(tmp_path).as_posix() for o in (tmp_path/'pics').rglob('*')) == before

def test_many_pictures_take_several_threads_and_show_a_bar(tmp_path, monkeypatch, capsys):
    for i in range(520): draw(tmp_path/'pics'/f'{i:03d}.png', i)
    bars,own,together = [],threading.local(),threading.Barrier(3, timeout=60)
    shown,decode = D.bar,Pictures.decode
    def noted(items, desc, total=None, quiet=False):
        bars.append((desc, total, quiet))
        return shown(items, desc, total, quiet)
    def watched(self, i):
        if not hasattr(own, 'seen'): own.seen = together.wait() # the first picture of each thread waits for the other two threads
        return decode(self, i)
    monkeypatch.setattr(D, 'bar', noted)
    monkeypatch.setattr(Pictures, 'decode', watched)
    rule,files = Resizing.of(16, ResizeMethod.SQUISH),[f'{i:03d}.png' for i in range(520)]
    made = Pictures(files, rule, tmp_path, num_workers=3, root=tmp_path/'pics')
    assert bars == [('decoding', 520, False)] and not together.broken
    if not os.environ.get('TQDM_DISABLE'): assert 'decoding' in capsys.readouterr().err
    monkeypatch.setattr(Pictures, 'decode', decode)
    assert all((made[i] == made.decode(i)).all() for i in range(520))
    Pictures(files[:499], rule, tmp_path/'few', root=tmp_path/'pics')
    assert bars[1:] == [('decoding', 499, True)] # so few take a second

def test_cache_name_follows_the_rule(tmp_path):
    rules = [Resizing.of(16), Resizing.of(17), Resizing.of((16, 16)), Resizing.of(16, ResizeMethod.PAD), Resizing.of(16, ResizeMethod.PAD, 'border'), Resizing.of(None)]
    assert len({D._cache_name(o, tmp_path/'a', tmp_path) for o in rules} | {D._cache_name(rules[0], tmp_path/'b', tmp_path)}) == 7
    own = [D._cache_name(rules[0], o, o/'.cache') for o in (tmp_path/'a', tmp_path/'b')]
    assert own[0] == own[1] # a data set moves together with its cache

@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_picture_file_round_trip(tmp_path_factory, sizes, seed):
    rng = np.random.RandomState(seed)
    xs = [rng.randint(0, 256, (*s, 3)).astype(np.uint8) for s in sizes]
    file = tmp_path_factory.mktemp('store')/'a.pictures'
    D._PictureFile.write(file, np.arange(len(xs))*7, ((x, i) for i,x in enumerate(xs)))
    stored,rows = D._opened_pictures(file, np.array([7*len(xs) - 7, 0], np.uint64))
    assert stored.table['content'].tolist() == [*range(len(xs))] and all((stored[i] == x).all() for i,x in enumerate(xs)) and rows.tolist() == [len(xs)-1, 0]
    assert D._opened_pictures(file, np.array([0, 5], np.uint64)) is None

def cached(root, folder, **kw): return bunch(root, cache=folder, **kw).train_ds.pictures

def test_damaged_cache_is_made_again(root, tmp_path, capsys):
    file = cached(root, tmp_path).store.file
    whole = file.read_bytes()
    height = 128 + D._TABLE_ROW.fields['height'][1]
    for bad in (whole[:-1], whole[:200], whole[:9], b'', whole + b'x', b'another\n' + whole, whole[:30] + b'x' + whole[31:], whole[:height+1] + b'\xff' + whole[height+2:],
                b'PK\x03\x04' + whole):
        file.write_bytes(bad)
        cached(root, tmp_path)
        assert file.read_bytes() == whole and 'made again' in capsys.readouterr().out
    file.write_bytes(whole[:128] + b'\xff' + whole[129:]) # a wrong key: a picture that is not found
    cached(root, tmp_path)
    assert file.read_bytes() == whole

def test_a_file_that_another_process_made_of_other_pictures_is_not_taken(root, tmp_path, monkeypatch, capsys):
    made = Pictures._decode_all
    def overtaken(self, file, keys):
        made(self, file, keys)
        D._PictureFile.write(file, keys[:-1], [(np.zeros((16, 16, 3), np.uint8), 0)]*(len(keys) - 1))
    monkeypatch.setattr(Pictures, '_decode_all', overtaken)
    pics = cached(root, tmp_path)
    assert pics.store is None and 'No picture cache: another process' in capsys.readouterr().out
    assert (pics.batch([0, 5]) == cached(root, False).batch([0, 5])).all()

def decoded(monkeypatch):
    "The names of the pictures that are decoded from here on."
    names,decode = [],Pictures.decode
    def watched(self, i):
        names.append(self.files[i])
        return decode(self, i)
    monkeypatch.setattr(Pictures, 'decode', watched)
    return names

def test_what_changed_is_noticed_and_a_part_is_served_from_the_whole(tmp_path, monkeypatch):
    for i in range(20): draw(tmp_path/'pics'/'ab'[i % 2]/f'{i:02d}.png', i)
    names,full = decoded(monkeypatch),lambda: [o.copy() for o in cached(tmp_path/'pics', tmp_path)]
    full()
    assert len(names) == 20
    names.clear()
    a = bunch(tmp_path/'pics', cache=tmp_path)
    part = ImageDataBunch.from_cells(tmp_path/'pics', a.cells.iloc[3:17], **{**QUICK, 'cache': tmp_path})
    assert not names and torch.equal(part.train_ds.pictures.batch([0, 5]), a.train_ds.pictures.batch([3, 8])) # a part is served from the whole
    draw(tmp_path/'pics'/'a'/'06.png', 77)
    draw(tmp_path/'pics'/'b'/'99.png', 78)
    os.utime(tmp_path/'pics'/'b'/'03.png', ns=(5, 5))
    new = full()
    assert len(names) == len(new) == 21
    assert all((x == y).all() for x,y in zip(new, cached(tmp_path/'pics', False)))
    assert len(list(tmp_path.glob('*.pictures'))) == 1 # nothing stale stays

def test_what_a_killed_build_left_is_cleared_away(root, tmp_path):
    name = cached(root, tmp_path).store.file.name
    old,young = (tmp_path/f'.{name}.{o}.tmp' for o in ('0000', '1111'))
    for o in (old, young): o.write_bytes(b'half')
    os.utime(old, (1, 1))
    (tmp_path/name).unlink()
    cached(root, tmp_path)
    assert {o.name for o in tmp_path.iterdir()} == {name, young.name}

BUILD = """
import os,resource,signal,sys
from malaria_fastai.cells import ResizeMethod, Resizing
from malaria_fastai.data import Pictures
from pathlib import Path
root,folder,limit = Path(sys.argv[1]),Path(sys.argv[2]),int(sys.argv[3])
files = sorted(p.relative_to(root).as_posix() for p in root.rglob('*.png'))
if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print('ready', flush=True)
while not (folder/'go').exists(): pass
pics = Pictures(files, Resizing.of(64, ResizeMethod.SQUISH), folder, root=root)
print('kept' if pics.store is not None else 'decoded', pics.batch([0, 59]).shape[0])
"""

def building(root, folder, n, limit=0):
    "What `n` processes say that make the same picture file at the same time."
    folder.mkdir(exist_ok=True)
    env = {**os.environ, 'TQDM_DISABLE': '1', 'PYTHONWARNINGS': 'ignore'}
    runs = [subprocess.Popen([sys.executable, '-c', BUILD, str(root), str(folder), str(limit)], stdout=subprocess.PIPE, text=True, env=env) for _ in range(n)]
    for o in runs: assert o.stdout.readline() == 'ready\n'
    (folder/'go').touch()
    return [o.communicate(timeout=300)[0] for o in runs]

@pytest.mark.slow
def test_two_processes_make_one_good_file(root, tmp_path):
    assert building(root, tmp_path/'c', 2) == ['kept 2\n']*2
    file, = (o for o in (tmp_path/'c').iterdir() if o.name != 'go')
    alone = Pictures(sorted(p.relative_to(root).as_posix() for p in root.rglob('*.png')), Resizing.of(64, ResizeMethod.SQUISH), tmp_path, root=root)
    assert file.read_bytes() == alone.store.file.read_bytes()

@pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files as Linux does')
@pytest.mark.parametrize('rule', [Resizing.of(16, ResizeMethod.SQUISH), Resizing.of((15, 17), ResizeMethod.PAD), Resizing.of(17), Resizing.of(None, ResizeMethod.NO)], ids=str)
def test_decoded_once_or_anew_they_are_the_same(root, tmp_path, rule):
    "Whatever the number of bytes of a picture; and who paints in one does not paint in the file, nor in the next batch."
    files = sorted(root.rglob('*.png'))[:20]
    anew,once = Pictures(files, rule),Pictures(files, rule, tmp_path)
    idxs = [7] if rule.method == ResizeMethod.NO else [3, 19, 0, 3]
    assert torch.equal(anew.batch(idxs), once.batch(idxs))
    for i in range(20): assert np.array_equal(anew[i], once[i])
    once[7][:] = 0
    once.batch([7]).zero_()
    assert np.array_equal(anew[7], once[7]) and np.array_equal(anew[7], Pictures(files, rule, tmp_path)[7])

def test_a_disk_that_fills_up(root, tmp_path):
    said, = building(root, tmp_path/'c', 1, limit=200_000) # the file would have 740 kB
    assert 'No picture cache: File too large' in said and said.endswith('decoded 2\n')
    assert [o.name for o in (tmp_path/'c').iterdir()] == ['go']

@pytest.mark.parametrize('why', ['Permission denied', 'Is a directory'])
def test_a_picture_file_that_cannot_be_opened_is_told_and_left_alone(root, tmp_path, why, capsys, monkeypatch):
    def denied(self, file): raise PermissionError(13, 'Permission denied', str(file))
    name = cached(root, tmp_path).store.file.name
    if why == 'Permission denied': monkeypatch.setattr(D._PictureFile, '__init__', denied) # root may read anything
    else:
        (tmp_path/name).unlink()
        (tmp_path/name/'mine').mkdir(parents=True)
    pics = cached(root, tmp_path)
    assert pics.store is None and f'No picture cache: {why}' in capsys.readouterr().out and [o.name for o in tmp_path.iterdir()] == [name]
    assert (pics.batch([0, 5]) == cached(root, False).batch([0, 5])).all()

def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    draw(tmp_path/'pics'/'0.png', 0)
    (tmp_path/'pics'/'1.png').mkdir()
    with pytest.raises(BadPicture, match='1.png: it cannot be read'): Pictures(['0.png', '1.png'], Resizing.of(16), tmp_path, root=tmp_path/'pics')

def test_an_archive_with_other_pictures_of_the_same_names_sizes_and_times(tmp_path):
    "Keys cannot tell them apart. The folder they are extracted to can: its name follows from the checksums in the archive."
    found = []
    for value in (10, 200):
        with zipfile.ZipFile(tmp_path/'cells.zip', 'w') as z:
            for i in range(3):
                Image.new('RGB', (8, 8), (value,)*3).save(tmp_path/'one.bmp')
                z.writestr(zipfile.ZipInfo(f'a/{i}.bmp', (2026, 1, 2, 3, 4, 6)), (tmp_path/'one.bmp').read_bytes())
        found.append(Pictures([f'a/{i}.bmp' for i in range(3)], Resizing.of(8), tmp_path/'cache', root=extract(tmp_path/'cells.zip', tmp_path/'data').root))
    assert (found[0].keys() == found[1].keys()).all()
    assert [int(o[0].max()) for o in found] == [10, 200] and len(list((tmp_path/'cache').iterdir())) == 2

def test_size_is_announced(root, tmp_path, capsys):
    bunch(root, cache=tmp_path/'kept', size=256)
    assert f'60 pictures decoded once: 0.01 GB in the folder {tmp_path}/kept' in capsys.readouterr().out
    bunch(root, cache=tmp_path/'kept', size=256)
    assert capsys.readouterr().out == ''

FACTORIES = dict(
    from_folder=lambda root, **kw: ImageDataBunch.from_folder(root, **kw),
    from_df=lambda root, **kw: ImageDataBunch.from_df(root, table(root)[['stem', 'kind']], suffix='.png', **kw),
    from_lists=lambda root, **kw: ImageDataBunch.from_lists(root, sorted(root.rglob('*.png')), ['a', 'b']*30, **kw),
    from_name_func=lambda root, **kw: ImageDataBunch.from_name_func(root, sorted(root.rglob('*.png')), lambda p: p.parent.name, **kw),
    from_name_re=lambda root, **kw: ImageDataBunch.from_name_re(root, sorted(root.rglob('*.png')), r'(\w+)/c', **kw),
    from_cells=lambda root, **kw: ImageDataBunch.from_cells(root, bunch(root).cells, **kw))

@pytest.mark.parametrize('name', FACTORIES)
def test_every_factory_takes_a_cache(root, tmp_path, name):
    for cache,n in ((False, 0), (tmp_path, 1), (str(tmp_path), 1)):
        pics = FACTORIES[name](root, **{**QUICK, 'cache': cache}).train_ds.pictures
        assert (pics.store is not None) == bool(n) and len(list(tmp_path.glob('*.pictures'))) == n

def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with replacing(tmp_path/'new'/'file.txt') as part:
            part.write_text('half')
            1/0
    assert list((tmp_path/'new').iterdir()) == []

def test_decoding_ahead_keeps_order_and_raises(root):
    files = sorted(root.rglob('*.png'))
    pics = Pictures(files, Resizing.of(16, ResizeMethod.SQUISH), num_workers=3)
    assert all((a == pics.decode(i)).all() for i,a in enumerate(D._map_ahead(pics.decode, range(60), 3)))
    with pytest.raises(Exception, match='gone'): list(D._map_ahead(Pictures([*files, root/'gone.png'], Resizing.of(16)).decode, range(61), 2))

# --- transforms -----------------------------------------------------------------------------------------------------------------

def kinds(tfms): return [type(o).__name__ for o in tfms[0]]
OFF = dict(do_flip=False, max_rotate=None, max_zoom=None, max_lighting=None, max_warp=None)

def test_get_transforms_is_a_pair():
    assert len(get_transforms()) == 2 and list(get_transforms()[1]) == []
    assert kinds(get_transforms(**OFF)) == []
    assert kinds(get_transforms(**{**OFF, 'max_rotate': 0, 'max_zoom': 1, 'max_lighting': 0, 'max_warp': 0.})) == []

@pytest.mark.parametrize('kw,name', [(dict(do_flip=True), 'Flip'), (dict(do_flip=True, flip_vert=True), 'Dihedral'), (dict(max_lighting=.1), 'Lighting'),
    (dict(max_stain=.1), 'Stain')])
def test_each_transform_alone(kw, name): assert kinds(get_transforms(**{**OFF, **kw})) == [name]

def test_flip_vert_needs_do_flip(): assert kinds(get_transforms(**{**OFF, 'flip_vert': True})) == [] # v1's way

@pytest.mark.parametrize('kw', [dict(max_rotate=33.), dict(max_zoom=1.7), dict(max_warp=.4)])
def test_affine_transforms_move_pixels(kw):
    x = torch.zeros(64, 3, 32, 32)
    x[:, :, 8:24, 12:20] = 1
    def moved(p):
        tfm = get_transforms(**{**OFF, **kw}, p_affine=p)[0]
        b = TensorImage(x.clone())
        with seeded(1):
            for t in tfm: b = t(b, split_idx=0)
        return float(((b.as_subclass(torch.Tensor) - x).abs().amax((1, 2, 3)) > 1e-3).float().mean())
    assert moved(0.) == 0 and moved(1.) > .95 and .6 < moved(.75) < .97 # a warp is drawn for either direction

@pytest.mark.parametrize('kw', [dict(max_rotate=40.), dict(max_warp=.4)])
def test_what_turning_fills_in(kw):
    "The corners of a turned picture: black, the nearest edge, or mirrored."
    x = torch.linspace(.2, .8, 32).expand(40, 3, 32, 32).clone()
    def turned(mode):
        tfm = get_transforms(**{**OFF, **kw}, p_affine=1., padding_mode=mode)[0]
        b = TensorImage(x.clone())
        with seeded(1):
            for t in tfm: b = t(b, split_idx=0)
        return b.as_subclass(torch.Tensor)
    zeros,border,mirrored = (turned(o) for o in ('zeros', 'border', 'reflection'))
    assert zeros.min() < .01 and min(border.min(), mirrored.min()) > .19    # black comes with zeros alone
    filled = zeros < .15
    assert .01 < filled.float().mean() < .5 and (border - mirrored)[filled].abs().max() > .05
    assert ((zeros - border).abs() < 1e-5).float().mean() > .4              # within the picture all are the same

def test_xtra_tfms_come_too(root):
    class Negative(Transform):
        order = 50
        def encodes(self, x:TensorImage): return 1 - x
    plain,neg = (bunch(root, ds_tfms=get_transforms(**OFF, xtra_tfms=o), normalize=False) for o in (None, [Negative()]))
    assert torch.allclose(pixels(plain), 1 - pixels(neg), atol=1e-6)
    assert torch.equal(pixels(plain, DatasetType.Valid), pixels(neg, DatasetType.Valid)) # training only

@pytest.mark.parametrize('kw,match', [(dict(p_affine=1.1), 'p_affine'), (dict(p_lighting=-.1), 'p_lighting'), (dict(max_zoom=-.9), 'max_zoom'), (dict(max_lighting=1.), 'max_lighting'),
    (dict(max_lighting=-.1), 'max_lighting'), (dict(max_stain=1.), 'max_stain'), (dict(max_rotate=-5), 'max_rotate'), (dict(padding_mode='mirror'), 'padding_mode')])
def test_bad_transforms(kw, match):
    with pytest.raises(ValueError, match=match): get_transforms(**kw)

def test_unknown_transform():
    with pytest.raises(TypeError, match='max_rotation'): get_transforms(max_rotation=10)

def many(t, n=600, size=(8, 8)):
    "`n` copies of one picture, transformed in one batch."
    x = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))*.8 + .1
    with seeded(7): return x,t(TensorImage(x.repeat(n, 1, 1, 1)), split_idx=0).as_subclass(torch.Tensor)

def share(y, x): return float((y - x).abs().amax((1, 2, 3)).lt(1e-6).float().mean())

@pytest.mark.parametrize('p', [0., .5, .9, 1.])
def test_flips_are_drawn_for_each_picture(p):
    x,y = many(Flip(p))
    assert abs(share(y, x.flip(-1)) - p) < .07 and abs(share(y, x) + share(y, x.flip(-1)) - 1) < 1e-6

@pytest.mark.parametrize('size', [(8, 8), (6, 9)])
def test_views_are_uniform(size):
    x,y = many(Dihedral(), size=size)
    n = n_views(size)
    shares = [share(y, view(x, k)) for k in range(n)]
    assert n == (8 if size[0] == size[1] else 4) and abs(sum(shares) - 1) < 1e-6 and all(abs(o - 1/n) < .07 for o in shares)

BYTES = TensorImage(torch.arange(256, dtype=torch.uint8).repeat(20*3*2).reshape(20, 2*16, 16, 3).permute(0, 3, 1, 2))

class Affine(Transform):
    "Something that is no function of single values."
    order = 30
    def encodes(self, x:TensorImage): return x.roll(3, -1)

@pytest.mark.parametrize('fs', [[], [Normalize.from_stats(*imagenet_stats, cuda=False)], [Affine(), Normalize.from_stats(*imagenet_stats, cuda=False)]], ids=len)
@pytest.mark.parametrize('split', [0, 1])
@pytest.mark.parametrize('light', [None, 0., 1.])
@pytest.mark.parametrize('turn', [None, Flip, Dihedral])
@pytest.mark.parametrize('square', [True, False])
def test_looked_up_is_worked_out(fs, split, light, turn, square):
    x = TensorImage(BYTES[..., :16, :]) if square else BYTES
    fs = [*([turn()] if turn else []), IntToFloatTensor(), *([Lighting(.4, light), Stain(.4, light)] if light is not None else []), *fs]
    pipe = Pipeline(fs, split_idx=split)
    with seeded(3): worked_out = pipe(x)
    with seeded(3): looked_up,y = transformed((x, 'label'), pipe)
    if light is None or split: assert torch.equal(looked_up, worked_out)  # no value is drawn: bit for bit
    else: assert torch.allclose(looked_up, worked_out, atol=1e-5)
    assert y == 'label' and type(looked_up) is TensorImage
    if len(fs) < 2: assert looked_up.is_contiguous()

def test_seeding_is_torchs():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        x = torch.rand(3)
        seed_torch(7)
        assert torch.equal(torch.rand(3), x)

def test_bytes_stay_bytes(root):
    data = bunch(root, ds_tfms=get_transforms())
    x,y = next(iter(data.train.new(after_batch=[])))
    assert x.dtype == torch.uint8 and x.shape == (8, 3, 16, 16) and len(y) == 8

@pytest.mark.parametrize('k', range(8))
def test_views_turn_back(k):
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(view(view(x, k), k, back=True), x)
    assert len({tuple(view(x, o).flatten().tolist()) for o in range(8)}) == 8

@pytest.mark.parametrize('m,p', [(.2, .75), (.5, 1.), (.3, 0.)])
def test_light_is_v1s(m, p):
    shift,scale = (o.flatten() for o in Lighting(m, p).draw(20000, 'cpu'))
    for o,off in ((shift, 0.), (scale, 1.)): assert abs(float((o != off).float().mean()) - p) < .02
    if not p: return
    bright,scale = torch.sigmoid(shift[shift != 0]),scale[scale != 1]
    lo,hi = .5*(1-m),.5*(1+m)
    assert lo <= bright.min() < lo + .01 and hi - .01 < bright.max() <= hi and abs(bright.mean() - .5) < .01       # uniform(.5(1-m), .5(1+m))
    assert abs(bright.std() - m/12**.5) < .01
    lo,hi = 1-m,1/(1-m)
    assert lo - 1e-6 <= scale.min() < lo*1.02 and hi*.98 < scale.max() <= hi + 1e-5 and abs(scale.log().mean()) < .02 # log-uniform(1-m, 1/(1-m))

def test_light_differs_within_a_batch():
    x,y = many(Lighting(.2, 1.))
    assert y.mean((1, 2, 3)).std() > .02 and y.min() >= 0 and y.max() <= 1
    x,y = many(Lighting(.2, 0.))
    assert torch.allclose(y, x.expand_as(y), atol=1e-5)
    x = torch.zeros(4, 3, 2, 2)
    assert Lighting(.5, 1.)(TensorImage(x), split_idx=0).max() < 1e-3 # black stays black

@pytest.mark.parametrize('m,p', [(.3, .75), (.6, 1.), (.3, 0.)])
def test_stain_is_drawn_for_each_picture_and_channel(m, p):
    with seeded(2): shift = Stain(m, p).draw(20000, 'cpu')[0][..., 0, 0]
    on = (shift != 0).any(1)
    assert shift.shape == (20000, 3) and abs(float(on.float().mean()) - p) < .02 and bool((shift[on] != 0).all())
    if not p: return
    bright = torch.sigmoid(shift[on])
    assert abs(bright.mean() - .5) < .01 and abs(bright.std() - m/12**.5) < .01 and .5*(1-m) - 1e-6 <= bright.min() < bright.max() <= .5*(1+m) + 1e-6
    assert bright.T.corrcoef().fill_diagonal_(0).abs().max() < .05 # one channel says nothing about another

def test_stain_keeps_black_black_and_validation_as_it_is():
    x,y = many(Stain(.4, 1.))
    assert (y.mean((2, 3)).std(0) > .02).all() and y.min() >= 0 and y.max() <= 1
    assert Stain(.9, 1.)(TensorImage(torch.zeros(4, 3, 2, 2)), split_idx=0).max() < 1e-3
    assert torch.equal(Stain(.9, 1.)(TensorImage(x[None]), split_idx=1), x[None])

def test_transforms_are_for_training(root):
    data = bunch(root, ds_tfms=get_transforms(max_lighting=.9, p_lighting=1.))
    plain = bunch(root)
    assert torch.equal(pixels(data, DatasetType.Valid), pixels(plain, DatasetType.Valid)) and not torch.equal(pixels(data), pixels(plain))

def test_own_pair_of_transforms(root):
    class Zero(Transform):
        order = 50
        def encodes(self, x:TensorImage): return x*0
    data = bunch(root, ds_tfms=([], [Zero()]), normalize=False)
    assert pixels(data).max() > 0 and pixels(data, DatasetType.Valid).max() == 0
    with pytest.raises(ValueError, match='get_transforms'): data.save('own.json')
    def black(x:TensorImage): return x*0 # a plain function, on training batches only
    data = bunch(root, ds_tfms=([black], []), normalize=False)
    assert pixels(data).max() == 0 and pixels(data, DatasetType.Valid).max() > 0

# --- printed, shown, saved ------------------------------------------------------------------------------------------------------

def test_it_prints_as_v1(root):
    data = bunch(root)
    data.path = type(root)('data')
    text,five = repr(data),','.join(['Image (3, 16, 16)']*5)
    y = ','.join(data.train_ds.cells.label[:5])
    assert text.startswith(f'ImageDataBunch;\n\nTrain: LabelList (48 items)\nx: ImageList\n{five}\ny: CategoryList\n{y}\nPath: data;\n\nValid: LabelList (12 items)\n')
    assert text.endswith('Path: data;\n\nTest: None')

@pytest.mark.parametrize('rows', [1, 2, 4])
def test_show_batch(root, rows):
    data = bunch(root)
    fig = data.show_batch(rows=rows, figsize=(3, 4))
    assert fig.get_size_inches().tolist() == [3, 4] and len(fig.axes) == rows**2
    assert {o.get_title() for o in fig.axes} <= set(CLASSES)
    shown = np.stack([o.images[0].get_array() for o in fig.axes])
    assert np.allclose(shown[:8], pixels(data).permute(0, 2, 3, 1).numpy()[:rows**2], atol=1e-6) and 0 <= shown.min() and shown.max() <= 1

def test_show_one_picture_many_times(root):
    fig = bunch(root, ds_tfms=get_transforms()).show_batch(rows=3, unique=True)
    shown = [o.images[0].get_array() for o in fig.axes]
    assert len({o.get_title() for o in fig.axes}) == 1 and len({o.tobytes() for o in map(np.asarray, shown)}) > 5
    assert len(bunch(root).show_batch(rows=4, ds_type=DatasetType.Valid).axes) == 12 # all there are

@pytest.mark.parametrize('name', ['data_save.pkl', 'bunch.json', 'no ending'])
@pytest.mark.parametrize('tfms', [None, get_transforms(flip_vert=True, max_warp=None)])
def test_save_and_load(root, name, tfms):
    data = bunch(root, ds_tfms=tfms, resize_method=ResizeMethod.PAD, padding_mode='border', size=(12, 20), bs=6, val_bs=5, seed=9, valid_pct=.3, classes=['ugly', 'good', 'bad'])
    back = load_data(root, data.save(name).name, cache=False)
    assert back.fingerprint() == data.fingerprint() and back.config() == data.config() and repr(back) == repr(data)
    for a,b in zip(data.loaders, back.loaders):
        for (x,y),(v,w) in zip(a, b): assert torch.equal(x, v) and torch.equal(y, w)
    json.loads((root/name).read_text())

def test_load_with_other_sizes(root):
    bunch(root).save()
    assert (load_data(root, bs=5, cache=False).bs, load_data(root, bs=5, cache=False).valid.bs) == (5, 5)
    assert load_data(root, val_bs=3, cache=False).valid.bs == 3
    assert load_data(root, cache=False).normalize(imagenet_stats).stats            # v1's line after loading
    assert load_data(root, no_check=True, cache=False).bs == load_data(root, cache=False).bs

def test_load_reads_or_refuses(root, tmp_path):
    file = bunch(root).save('saved.pkl')
    d = json.loads(file.read_text())
    d['cells']['split'][0] = 'valid' if d['cells']['split'][0] == 'train' else 'train'
    (root/'edited.pkl').write_text(json.dumps(d))
    assert load_data(root, 'edited.pkl', cache=False).fingerprint() != d['fingerprint'] # what a hand changed is read as it is
    for text in (b'[1, 2]', b'{}', b'\x80\x04pickle', b'{"format": "another"}'):
        (root/'other.pkl').write_bytes(text)
        with pytest.raises(ValueError, match='other.pkl: not a file that'): load_data(root, 'other.pkl')
    (tmp_path/'saved.pkl').write_text(file.read_text())
    with pytest.raises(FileNotFoundError, match='60 of 60'): load_data(tmp_path, 'saved.pkl')

def test_a_folder_that_cannot_be_written_to_says_how_to_name_another(root):
    data = bunch(root)
    data.path = root/'bad'/'c00.png' # a file, where a folder is needed
    with pytest.raises(OSError, match='cannot be written .*Name another folder with path='): data.save()

def test_cells_by_name(root):
    data = bunch(root, ds_tfms=get_transforms())
    some = data.cells.iloc[[50, 3, 20]]
    x,y = data.cells_dl(some).one_batch()
    assert [data.classes[i] for i in y] == some.label.tolist()
    assert torch.equal(x, data.test_dl([root/o for o in some.path]).one_batch()[0])

# --- a million cells --------------------------------------------------------------------------------------------------------------

MANY = """
import json,re,resource,sys,time
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.callback.core import Callback, CancelFitException
from torch import nn
from malaria_fastai.cells import ResizeMethod, Resizing
from malaria_fastai.data import ImageDataBunch, Pictures, _TABLE_ROW, _cache_name
from malaria_fastai.transforms import get_transforms
from malaria_fastai.learner import CNNLearner

torch.set_num_threads(1)
root,n = Path(sys.argv[1]),int(sys.argv[2])
rule,entries = Resizing.of(32, ResizeMethod.SQUISH),np.zeros(n, _TABLE_ROW)
entries['key'],entries['height'],entries['width'] = np.arange(n),32,32
entries['content'] = np.arange(n) # no two are alike
file = root/_cache_name(rule, root, root)
with open(file, 'wb') as f:
    np.save(f, entries)
    f.truncate(f.tell() + n*32*32*3) # a sparse file: no block of it is on the disk
del entries
Pictures.keys = lambda self: np.arange(len(self.files), dtype=np.uint64) # there are no a million files to ask for their sizes
cells = pd.DataFrame(dict(path=[f'class_{i % 2}/patient_{i//100:05d}_cell_{i:07d}.png' for i in range(n)], label=[f'class_{i % 2}' for i in range(n)],
                          split=np.where(np.arange(n) % 100 == 7, 'valid', 'train')))
start = time.perf_counter()
data = ImageDataBunch.from_cells(root, cells, ds_tfms=get_transforms(flip_vert=True, max_rotate=None, max_zoom=1., max_warp=None), size=32,
                                 resize_method=ResizeMethod.SQUISH, bs=32, cache=root, device='cpu')
seconds = time.perf_counter() - start

class Stop(Callback):
    seen = 0
    def after_batch(self):
        self.seen += 1
        if self.seen == 300: raise CancelFitException()

stop,model = Stop(),nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU()), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
learn = CNNLearner(data, model)
with learn.no_bar(): learn.fit_one_cycle(1, 1e-3, callbacks=stop)
rollup = Path('/proc/self/smaps_rollup').read_text()
anonymous = sum(int(v) for v in re.findall(r'^Anonymous: +(\\d+) kB', rollup, re.M))/1024
print(json.dumps(dict(cells=len(data.cells), batches=stop.seen, opened=seconds, anonymous=anonymous)))
"""

@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='reads the memory of a process as Linux reports it')
def test_memory_does_not_grow_with_the_set(tmp_path, record_property):
    """A million cells are to open in 5 s; a slow, busy machine gets three times that. Left out: the million calls of `os.stat` that make
    the keys. There are no a million files here, so numbers stand in for keys; a call takes some microseconds on a local disk."""
    few,many = ((tmp_path/str(n), n) for n in (10_000, 1_000_000))
    found = []
    for folder,n in (few, many):
        folder.mkdir()
        out = subprocess.run([sys.executable, '-W', 'ignore', '-c', MANY, str(folder), str(n)], capture_output=True, text=True, env={**os.environ, 'TQDM_DISABLE': '1'})
        assert not out.returncode, out.stderr
        found.append(json.loads(out.stdout.splitlines()[-1]))
        assert found[-1]['cells'] == n and found[-1]['batches'] == 300
    record_property('shown', f"a million cells: opened in {found[1]['opened']:.1f} s (without os.stat), {found[1]['anonymous'] - found[0]['anonymous']:.0f} MB more than ten thousand")
    assert found[1]['opened'] < 3*5, found
    assert 50 < found[0]['anonymous'] and found[1]['anonymous'] - found[0]['anonymous'] < 500, found # MB
