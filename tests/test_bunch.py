"The one check that every constructor of a bunch passes: labels, classes, copies of a picture, parts. And the words of 2019."
import os, pickle
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
from malaria_fastai.cells import NoCells, ResizeMethod
from malaria_fastai.data import DatasetType, ImageDataBunch, load_data
from malaria_fastai.split import Leak, SplitError
from malaria_fastai.transforms import V1_TFMS, get_transforms
from malaria_fastai.v1 import Picture
from properties import cases

QUICK = dict(size=8, resize_method=ResizeMethod.SQUISH, bs=4, cache=False, device='cpu')

def draw(path, content):
    "A small picture; the same content is the same file, byte by byte."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(content).randint(0, 256, (6, 6, 3)).astype(np.uint8)).save(path)

def folder_of(root, names):
    "Pictures of these names, each of another content."
    for i,name in enumerate(names): draw(root/name, i)
    return root

# --- every constructor, from the same rows ----------------------------------------------------------------------------------------

def rows_as_csv(root, rows, **kw):
    pd.DataFrame(dict(name=[*rows], label=[*rows.values()])).to_csv(root/'rows.csv', index=False)
    return ImageDataBunch.from_csv(root, csv_labels='rows.csv', **kw)

MAKE = dict(
    from_cells=lambda root, rows, **kw: ImageDataBunch.from_cells(root, pd.DataFrame(dict(path=[*rows], label=pd.Series([*rows.values()], dtype=object))), **kw),
    from_lists=lambda root, rows, **kw: ImageDataBunch.from_lists(root, [*rows], [*rows.values()], **kw),
    from_df=lambda root, rows, **kw: ImageDataBunch.from_df(root, pd.DataFrame(dict(a=[*rows], b=pd.Series([*rows.values()], dtype=object))), **kw),
    from_csv=rows_as_csv,
    from_name_func=lambda root, rows, **kw: ImageDataBunch.from_name_func(root, [*rows], lambda p: rows[p.relative_to(root).as_posix()], **kw))
every = pytest.mark.parametrize('name', MAKE)
NAMES = [f'{i:02d}.png' for i in range(20)]

@every
@pytest.mark.parametrize('gap', [None, np.nan, pd.NA, '', ' ', 'NA', 'nan', 'NaN', 'None', '<NA>', 'N/A', 'null', '#N/A', 'n/a'])
def test_a_missing_label_is_refused_with_its_rows(tmp_path, name, gap):
    rows = {file: 'ab'[i % 2] for i,file in enumerate(NAMES)} | {'03.png': gap, '07.png': gap}
    with pytest.raises(ValueError, match=r"2 of \d+ cells in the part '\w+' are without a label: 03.png, 07.png|1 of \d+ .* without a label: 0[37].png"):
        MAKE[name](folder_of(tmp_path, NAMES), rows, **QUICK)

def test_a_test_part_is_labelled_or_not(tmp_path):
    folder_of(tmp_path, NAMES)
    cells = pd.DataFrame(dict(path=NAMES, label=['a', 'b']*10, split=['train']*12 + ['valid']*4 + ['test']*4))
    assert ImageDataBunch.from_cells(tmp_path, cells, **QUICK).test_ds.labelled
    assert not ImageDataBunch.from_cells(tmp_path, cells.assign(label=cells.label.mask(cells.split == 'test')), **QUICK).test_ds.labelled
    with pytest.raises(ValueError, match='2 of 4 cells in the part .test.*18.png, 19.png'):
        ImageDataBunch.from_cells(tmp_path, cells.assign(label=cells.label.mask(cells.index > 17)), **QUICK)

NUMBERS = [0, 1, 2, 10, 11]

@every
@pytest.mark.parametrize('kind', [int, float, np.int64, np.float32, str, 'both'])
def test_numbers_are_sorted_as_numbers(tmp_path, name, kind):
    "`preds.argmax(1)` is the label then. 1.0 and 1 are one class; text stays text, except in a CSV file, where v1 read numbers."
    value = (lambda i: float(i) if i % 3 else int(i)) if kind == 'both' else kind
    rows = {file: value(NUMBERS[i % 5]) for i,file in enumerate(NAMES)}
    data = MAKE[name](folder_of(tmp_path, NAMES), rows, **QUICK)
    as_text = kind is str and name != 'from_csv'
    assert data.classes == ([*map(str, NUMBERS)] if as_text else NUMBERS) and {type(o) for o in data.classes} == {str if as_text else int}
    for part in (data.train_ds, data.valid_ds):
        assert [int(data.classes[i]) for i in part.targets] == [int(rows[path]) for path in part.cells.path]
    back = load_data(tmp_path, data.save('saved.json').name, cache=False)
    assert back.classes == data.classes and back.fingerprint() == data.fingerprint() and repr(back) == repr(data)
    assert len(data.show_batch(rows=2).axes) == 4 and plt.close('all') is None and str(data.valid_ds.y[0]) in map(str, NUMBERS)

def test_class_folders_that_are_numbers(tmp_path):
    assert ImageDataBunch.from_folder(folder_of(tmp_path, [f'{i % 12}/{i}.png' for i in range(60)]), **QUICK).classes == [*map(str, range(12))]
    assert ImageDataBunch.from_folder(folder_of(tmp_path/'b', [f'c{i % 11}/{i}.png' for i in range(44)]), **QUICK).classes == sorted(f'c{i}' for i in range(11)) # v1's

@every
@pytest.mark.parametrize('label,match', [(.5, 'no name of a class'), ('5', 'some are text'), (['a', 'b'], 'one label|name of a class|some are text'), (('a', 'b'), 'name of a class|some are text')])
def test_what_is_no_class(tmp_path, name, label, match):
    if name == 'from_csv' and label != .5: return # a file knows text alone
    rows = {file: 1 + i % 2 for i,file in enumerate(NAMES)} | {'03.png': label}
    with pytest.raises(ValueError, match=match): MAKE[name](folder_of(tmp_path, NAMES), rows, **QUICK)

@every
def test_one_class_is_refused(tmp_path, name):
    folder_of(tmp_path, NAMES)
    with pytest.raises(NoCells, match="at least two classes apart, and training has only work"): MAKE[name](tmp_path, dict.fromkeys(NAMES, 'work'), **QUICK)
    with pytest.raises(NoCells, match="training has only work"): MAKE[name](tmp_path, dict.fromkeys(NAMES, 'work'), classes=['work', 'play'], **QUICK)

def test_a_pattern_that_finds_the_first_folder(tmp_path):
    files = [*folder_of(tmp_path/'work', [f'{"ab"[i % 2]}/{i:02d}.png' for i in range(20)]).rglob('*.png')]
    with pytest.raises(NoCells, match='training has only tmp'): ImageDataBunch.from_name_re(tmp_path/'work', files, r'^/(tmp|var|private|home|root)/', **QUICK)
    with pytest.raises(NoCells, match='only c'): ImageDataBunch.from_folder(folder_of(tmp_path/'one', [f'c/{i}.png' for i in range(20)]), **QUICK)
    with pytest.raises(NoCells): ImageDataBunch.from_cells(tmp_path, pd.DataFrame(dict(path=[], label=[])), **QUICK)
    with pytest.raises(NoCells, match='only x'): ImageDataBunch.single_from_classes(tmp_path, ['x'])

def test_a_class_that_training_lacks(tmp_path, capsys):
    cells = pd.DataFrame(dict(path=NAMES, label=['a', 'b']*9 + ['c', 'c'], split=['train']*12 + ['valid']*8))
    folder_of(tmp_path, NAMES)
    with pytest.raises(SplitError, match='the label c is no label of a training cell'): ImageDataBunch.from_cells(tmp_path, cells, **QUICK)
    with pytest.raises(SplitError, match='the label c'): ImageDataBunch.from_cells(tmp_path, cells.assign(split=['train']*12 + ['valid']*6 + ['test']*2), **QUICK)
    one = cells.assign(label=['c'] + ['a']*10 + ['b']*9)
    for seed in range(12): # drawn: the only cell of a class must not be a validation cell
        try: data = ImageDataBunch.from_lists(tmp_path, one.path, one.label, .4, seed, **QUICK)
        except SplitError: continue
        assert 'c' in set(data.train_ds.cells.label)
    ImageDataBunch.from_cells(tmp_path, cells.assign(label=['a', 'b']*10), classes=['b', 'never', 'a'], **QUICK)
    assert 'no picture is of the class never' in capsys.readouterr().out

# --- copies -------------------------------------------------------------------------------------------------------------------------

@every
def test_of_copies_one_is_drawn(tmp_path, name, capsys):
    for i,file in enumerate(NAMES): draw(tmp_path/file, i // 2) # everything twice
    data = MAKE[name](tmp_path, {file: 'ab'[i // 2 % 2] for i,file in enumerate(NAMES)}, **QUICK)
    assert '10 of 20 pictures are copies of others and are left out' in capsys.readouterr().out
    assert len(data.cells) == 10 and (len(data.train_ds), len(data.valid_ds)) == (8, 2)
    assert torch.equal(data.cells_dl(data.cells).one_batch()[0], data.test_dl([tmp_path/o for o in data.cells.path]).one_batch()[0])
    small = data.resized(4)
    assert small.fingerprint() == data.fingerprint() and small.content_digest() == data.content_digest()

@every
def test_one_picture_under_two_labels(tmp_path, name):
    folder_of(tmp_path, NAMES)
    draw(tmp_path/'19.png', 4)
    with pytest.raises(ValueError, match=r'1 pictures are under two labels, for example 04.png \(a\) and 19.png \(b\)'):
        MAKE[name](tmp_path, {file: 'ab'[i % 2] for i,file in enumerate(NAMES)}, **QUICK)

def test_copies_on_two_sides_of_a_given_split(tmp_path):
    folder_of(tmp_path, NAMES)
    draw(tmp_path/'18.png', 4)
    cells = pd.DataFrame(dict(path=NAMES, label=['a', 'b']*10, split=['train']*12 + ['valid']*8))
    with pytest.raises(Leak, match=r'on two sides, for example 04.png \(train\) and 18.png \(valid\)'): ImageDataBunch.from_cells(tmp_path, cells, **QUICK)
    ImageDataBunch.from_cells(tmp_path, cells.assign(split=['train']*5 + ['valid']*7 + ['train']*8), **QUICK) # on one side they may stay
    with pytest.raises(Leak, match='test'): ImageDataBunch.from_cells(tmp_path, cells.assign(split=[None]*12 + ['test']*8), **QUICK)

def test_the_archive_that_holds_everything_twice(tmp_path, capsys):
    "Kaggle's: `cell_images/X` and `cell_images/cell_images/X`. 80 of 88 validation names were training names as well."
    for i in range(44):
        for folder in ('', 'cell_images/'): draw(tmp_path/folder/('Parasitized', 'Uninfected')[i % 2]/f'{i}.png', i)
    data = ImageDataBunch.from_folder(tmp_path, valid_pct=.2, **QUICK)
    assert '44 of 88 pictures are copies' in capsys.readouterr().out and len(data.cells) == 44
    names = [{path.split('/')[-1] for path in part.cells.path} for part in (data.train_ds, data.valid_ds)]
    assert not names[0] & names[1] and [*map(len, names)] == [36, 8]

def test_copies_are_known_again_from_the_picture_file(tmp_path, monkeypatch):
    "The second time nothing is read to find them."
    root = folder_of(tmp_path/'pics', [f'{"ab"[i % 2]}/{i}.png' for i in range(20)])
    draw(root/'a'/'x.png', 0)
    kw = {**QUICK, 'cache': tmp_path/'kept'}
    first = ImageDataBunch.from_folder(root, **kw)
    monkeypatch.setattr('malaria_fastai.data.file_digest', None)
    again = ImageDataBunch.from_folder(root, **kw)
    assert again.fingerprint() == first.fingerprint() and again.content_digest() == first.content_digest() and len(again.cells) == 20

def test_the_digest_of_contents_follows_the_pictures(tmp_path):
    root = folder_of(tmp_path, [f'{"ab"[i % 2]}/{i:02d}.png' for i in range(20)])
    before = ImageDataBunch.from_folder(root, **QUICK)
    draw(root/'a'/'04.png', 99)
    after = ImageDataBunch.from_folder(root, **QUICK)
    assert before.fingerprint() == after.fingerprint() and before.content_digest() != after.content_digest()

# --- parts by the names of folders -------------------------------------------------------------------------------------------------

def parts_of(root, **kw):
    data = ImageDataBunch.from_folder(root, **{**QUICK, 'bs': 2, **kw})
    return data,[sorted({path.rsplit('/', 2)[0] for path in part.cells.path}) for part in (data.train_ds, data.valid_ds, data.test_ds) if part]

def parted(root, *folders, n=8): return folder_of(root, [f'{folder}/{"ab"[i % 2]}/{i}.png' for folder in folders for i in range(n)])

@pytest.mark.parametrize('names', ['Training Validation Testing', 'TRAIN VAL TEST', 'train_set val_set test_set', 'train valid test', 'Train val Test', 'in/train in/val in/test'])
def test_known_names_are_parts(tmp_path, names, capsys):
    train,valid,test = names.split()
    root = parted(tmp_path, train, valid, test)
    data,parts = parts_of(root)
    assert parts == [[train], [valid]] and data.classes == ['a', 'b'] and f'8 pictures outside' in capsys.readouterr().out
    data,parts = parts_of(root, test=test)
    assert parts == [[train], [valid], [test]] and data.test_ds.labelled
    data,parts = parts_of(root, valid_pct=.25)
    assert [len(data.train_ds), len(data.valid_ds)] == [12, 4] and not any(test in part for part in parts)

def test_training_without_validation_is_drawn_from(tmp_path):
    data,parts = parts_of(parted(tmp_path, 'Training', 'Testing', n=20))
    assert parts == [['Training'], ['Training']] and (len(data.train_ds), len(data.valid_ds)) == (16, 4)

@pytest.mark.parametrize('folders,match,kw', [
    (['train', 'Training'], 'Training, train may all be for train', dict(train='Training')),
    (['train', 'valid', 'val'], 'val, valid may all be for valid', dict(valid='val')),
    (['train', '.'], 'the classes may be a, b below it, or those in train', None),
    (['val', '.'], 'the classes may be a, b below it, or those in val', dict(train='.')),
    (['val', 'more'], 'a folder for validation, but none for training', dict(train='.'))])
def test_two_readings_show_both(tmp_path, folders, match, kw):
    root = parted(tmp_path, *folders)
    with pytest.raises(ValueError, match=match): parts_of(root)
    if kw: assert len(parts_of(root, **kw)[0].cells) == (8 if 'Training' in folders else 16)

def test_a_class_with_the_name_of_a_part(tmp_path):
    root = folder_of(tmp_path, [f'{"train bus".split()[i % 2]}/{i}.png' for i in range(20)])
    with pytest.raises(ValueError, match='no class folder: train/.*whose name is not that of a part'): parts_of(root)

def test_test_folders_whose_folders_are_no_classes(tmp_path):
    root = folder_of(parted(tmp_path, 'train', n=20), [f'test/unknown/{i}.jpg' for i in range(100, 104)])
    for i in range(4): draw(root/'test'/'unknown'/f'{100 + i}.jpg', 500 + i)
    data = ImageDataBunch.from_folder(root, test='test', **QUICK)
    assert data.classes == ['a', 'b'] and len(data.test_ds) == 4 and not data.test_ds.labelled

def test_train_means_nothing_beside_valid_pct(tmp_path, capsys):
    "v1: drawn from all pictures."
    root = folder_of(tmp_path, [f'{"ab"[i % 2]}/{i}.png' for i in range(20)])
    plain,_ = parts_of(root, valid_pct=.25)
    assert capsys.readouterr().out == ''
    for train in ('.', root, 'a', 'nowhere'):
        data,_ = parts_of(root, train=train, valid_pct=.25)
        assert data.fingerprint() == plain.fingerprint()
        assert capsys.readouterr().out.count('means nothing beside valid_pct') == (train != '.')

def test_the_cache_is_no_class(tmp_path, monkeypatch):
    monkeypatch.setenv('MALARIA_CACHE', str(tmp_path/'kept'))
    root = folder_of(tmp_path/'pics', [f'{"ab"[i % 2]}/{i}.png' for i in range(20)])
    ImageDataBunch.from_folder(root, **{**QUICK, 'cache': True})
    assert sorted(os.listdir(root)) == ['a', 'b'] and len(os.listdir(tmp_path/'kept')) == 1

# --- statistics, predictions, views --------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def coloured(tmp_path_factory):
    "Class a is dark, class b is bright, c is rare and brightest: a batch in file order is of one class."
    root = tmp_path_factory.mktemp('coloured')
    for i in range(100):
        label,value = ('a', 40) if i < 48 else ('b', 160) if i < 96 else ('c', 240)
        (root/label).mkdir(exist_ok=True)
        Image.fromarray(np.random.RandomState(i).randint(value - 10, value + 10, (8, 8, 3)).astype(np.uint8)).save(root/label/f'{i:02d}.png')
    return root

@pytest.mark.parametrize('bs', [4, 8, 64])
@pytest.mark.parametrize('tfms', [None, get_transforms(max_lighting=.9, p_lighting=1.)])
def test_statistics_are_those_of_all_classes(coloured, bs, tfms):
    def make(**kw): return ImageDataBunch.from_folder(coloured, **{**QUICK, 'bs': bs, 'ds_tfms': tfms, **kw})
    data = make()
    mean,std = data.batch_stats()
    x = torch.cat([x for x,_ in make(normalize=False).fix_dl])
    assert np.allclose(mean, x.mean((0, 2, 3)), atol=.04) and np.allclose(std, x.std((0, 2, 3)), atol=.04) and std[0] > .2
    data.train.epoch = 5
    assert data.batch_stats() == [mean, std] and np.allclose(make().normalize().stats, [mean, std])
    rare = make(classes=['c', 'a', 'b'])
    assert np.allclose(rare.batch_stats()[0], mean) # whatever the order of the classes

def test_one_loader_to_predict_from(coloured):
    data = ImageDataBunch.from_folder(coloured, **QUICK, ds_tfms=get_transforms(flip_vert=True, max_lighting=.9, p_lighting=1.))
    expected = data.cells_dl(data.train_ds.cells)
    for of in (DatasetType.Train, 0, DatasetType.Fix, data.train_dl, data.train, data.train_dl.new(bs=3), data.train.new(shuffle=False), data.fix_dl):
        loader = data.fixed_dl(of)
        x,y = (torch.cat(o) for o in zip(*loader))
        assert torch.equal(x, torch.cat([x for x,_ in expected])) and y.tolist() == data.train_ds.targets.tolist() and len(x) == len(data.train_ds)
    for loader in (data.valid_dl, data.test_dl([coloured/'a'/'00.png']), data.cells_dl(data.cells[:5])): assert data.fixed_dl(loader) is loader
    assert data.fixed_dl() is data.valid_dl and data.train_ds.split_idx == 0
    shuffled = data.valid_dl.new(shuffle=True, drop_last=True)
    assert torch.equal(torch.cat([x for x,_ in data.fixed_dl(shuffled)]), torch.cat([x for x,_ in data.valid_dl]))
    lossy = data.valid_dl.new(drop_last=True, bs=7)
    assert sum(len(x) for x,_ in data.fixed_dl(lossy)) == len(data.valid_ds)

@pytest.mark.parametrize('tfms,size,n', [(None, 8, 1), (get_transforms(do_flip=False), 8, 1), (get_transforms(), 8, 2), (get_transforms(flip_vert=True), 8, 8), (get_transforms(flip_vert=True), (8, 6), 4)])
def test_views_are_those_that_training_shows(coloured, tfms, size, n):
    assert ImageDataBunch.from_folder(coloured, **{**QUICK, 'size': size}, ds_tfms=tfms).views == n

# --- the words of 2019 -----------------------------------------------------------------------------------------------------------------

def test_items_of_a_part(coloured):
    data = ImageDataBunch.from_folder(coloured, **QUICK)
    part = data.train_ds
    assert list(part.items) == list(part.x.items) == [coloured/path for path in part.cells.path] and data.items == part.items
    assert isinstance(part.y.items, np.ndarray) and [data.classes[i] for i in part.y.items] == part.cells.label.tolist() == [str(o) for o in part.y]
    assert len(part.x) == len(part.y) == len(part) and part.y.classes == data.classes and part.y.c == 3
    image,label = part[3]
    assert isinstance(image, Picture) and image.shape == (3, 8, 8) and image.size == (8, 8) and str(label) == part.cells.label.iloc[3]
    assert torch.allclose(image.data, data.one_batch(DatasetType.Fix)[0][3], atol=1e-6) and torch.equal(part.x[3].data, image.data)
    assert data.label_list.train is part and data.label_list.valid.y.items.tolist() == data.valid_ds.targets.tolist() and data.label_list.test is None
    assert 'Image (3, 8, 8),Image (3, 8, 8)' in repr(data)

def test_one_item_and_denorm(coloured):
    data = ImageDataBunch.from_folder(coloured, **QUICK)
    path = data.valid_ds.items[0]
    for item in (path, str(path), data.valid_ds[0][0], Image.open(path)):
        x,y = data.one_item(item)
        if not isinstance(item, Picture): assert torch.equal(x, data.valid_dl.one_batch()[0][:1])
        assert x.shape == (1, 3, 8, 8) and y.tolist() == [0]
    assert torch.allclose(data.denorm(x), data.one_item(Image.open(path), denorm=True, cpu=True)[0]) and torch.allclose(data.denorm(x)[0], data.valid_ds[0][0].data, atol=1e-6)

def test_batch_size_may_be_set(coloured):
    data = ImageDataBunch.from_folder(coloured, **QUICK)
    data.batch_size = 10
    assert [len(y) for _,y in data.train_dl] == [10]*8 and data.batch_size == data.bs == 10 and data.valid_dl.bs == 10 and data.resized(4).bs == 10
    for bad in (0, 81): # of 80 training cells
        with pytest.raises(ValueError): data.batch_size = bad
    assert data.batch_size == 10

def test_test_pictures_keep_the_order_they_are_given_in(coloured, tmp_path):
    "`sub['label'] = preds.argmax(1)` relies on it."
    folder_of(tmp_path, NAMES)
    cells = pd.DataFrame(dict(path=NAMES, label=['a', 'b']*7 + [None]*6, split=['train']*10 + ['valid']*4 + ['test']*6)).sample(frac=1, random_state=3)
    data = ImageDataBunch.from_cells(tmp_path, cells, **QUICK)
    assert data.test_ds.cells.path.tolist() == cells.path[cells.split == 'test'].tolist() != sorted(data.test_ds.cells.path)
    assert data.train_ds.cells.path.is_monotonic_increasing
    x,y = data.one_batch(DatasetType.Test)
    assert y.tolist() == [0]*len(x) and str(data.test_ds[0][1]) == '' and data.test_ds.y.items.tolist() == [0]*6
    back = load_data(tmp_path, data.save().name, cache=False)
    assert back.test_ds.items == data.test_ds.items and back.fingerprint() == data.fingerprint()

def test_a_word_of_v1_says_what_to_write(coloured):
    data = ImageDataBunch.from_folder(coloured, **QUICK)
    for word in 'add_tfm fix_ds sanity_check single_ds c2i'.split():
        with pytest.raises(AttributeError, match=f'ImageDataBunch.{word} is a word of fastai v1: '): getattr(data, word)
    with pytest.raises(AttributeError, match="no 'valid_dss'"): data.valid_dss
    assert not hasattr(data, 'nothing') and data.c == 3 and len(pickle.loads(pickle.dumps(data)).train_ds) == 80

@pytest.mark.parametrize('zoom', [.9, .5, 0., 0])
def test_no_zoom_below_one(zoom, capsys):
    tfms = get_transforms(do_flip=False, max_lighting=None, max_rotate=None, max_warp=None, max_zoom=zoom)
    assert list(tfms[0]) == [] and capsys.readouterr().out == f'max_zoom={zoom} is below 1: nothing is zoomed, as in fastai 1\n'

@pytest.mark.parametrize('name,args', [('flip_lr', dict(p=.5)), ('dihedral', {}), ('rotate', dict(degrees=(-20, 20), p=.7)), ('rotate', dict(degrees=30)), ('symmetric_warp', dict(magnitude=(-.2, .2), p=.5)),
    ('rand_zoom', dict(scale=(1., 1.5))), ('zoom_crop', dict(scale=(.75, 2), do_rand=True, p=.5))])
def test_transforms_of_v1_by_name(coloured, name, args):
    tfm = V1_TFMS[name](**args)
    tfms = get_transforms(do_flip=False, max_lighting=None, max_rotate=None, max_warp=None, max_zoom=None, xtra_tfms=tfm if isinstance(tfm, list) else [tfm])
    data,plain = (ImageDataBunch.from_folder(coloured, **QUICK, ds_tfms=o) for o in (tfms, None))
    assert not torch.equal(data.one_batch()[0], plain.one_batch()[0]) and torch.equal(data.one_batch(1)[0], plain.one_batch(1)[0])
    assert torch.equal(data.one_batch()[0], data.one_batch()[0])

# --- the door -------------------------------------------------------------------------------------------------------------------------

GAPS = [None, '', 'NA', 'nan', float('nan')]

@st.composite
def tables(draw):
    "Rows (label, content, part): labels of one kind mostly, some missing; copies; parts drawn, given, or some apart for a test."
    kind = draw(st.sampled_from([['a', 'b'], ['a', 'b', 'c'], ['1', '2', '10'], [1, 2., 10, 2], ['x'], ['a', 1]]))
    n = draw(st.integers(6, 16))
    labels = draw(st.lists(st.sampled_from(kind), min_size=n, max_size=n))
    if draw(st.integers(0, 3)) == 0: labels[draw(st.integers(0, n-1))] = draw(st.sampled_from(GAPS))
    contents = [*range(n)]
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))): contents[draw(st.integers(0, n-1))] = draw(st.integers(0, n-1))
    if draw(st.booleans()): labels = [labels[content] for content in contents]
    parts = draw(st.sampled_from([None, ['train', 'valid'], [None, 'test'], ['train', 'valid', 'test']]))
    return labels,contents,[parts and draw(st.sampled_from(parts)) for _ in range(n)]

def missing(label): return label is None or label != label or label in ('', 'NA', 'nan')

def objections(labels, contents, parts):
    "Why a table must be refused, worked out row by row; what only the draw decides is left out."
    rows,found = [*zip(labels, contents, parts)],set()
    own = [row for row in rows if row[2] != 'test']
    if any(missing(label) for label,_,_ in own): found.add('label')
    gaps = [missing(label) for label,_,part in rows if part == 'test']
    if any(gaps) and not all(gaps): found.add('label')
    names = {label for label in labels if not missing(label)}
    if len({isinstance(o, str) for o in names}) > 1: found.add('kinds')
    if len({label for label,_,_ in own if not missing(label)}) < 2: found.add('one class')
    for content in set(contents):
        same = [row for row in rows if row[1] == content]
        if len({label for label,_,_ in same if not missing(label)}) > 1: found.add('two labels')
        if len({part for *_,part in same}) > 1: found.add('two sides')
    given = {part for *_,part in own} - {None}
    if given and given != {'train', 'valid'}: found.add('empty part')
    if given: found |= {'untrained'} if names - {label for label,_,part in rows if part == 'train'} else set()
    if not own or (not given and len({content for _,content,_ in own})*.3 < 1): found.add('empty part')
    return found

@pytest.mark.door
@cases(40)
@given(table=tables(), name=st.sampled_from(['from_cells', 'from_lists', 'from_df']), seed=st.integers(0, 99))
def test_a_bunch_is_right_or_refused(tmp_path_factory, table, name, seed):
    "Whatever labels, copies and parts a table has: refused for a reason, or each picture once, known labels, all classes trained."
    labels,contents,parts = table
    root = tmp_path_factory.mktemp('door')
    files = [f'{i:02d}.png' for i in range(len(labels))]
    for file,content in zip(files, contents): draw(root/file, content)
    kw,why = dict(QUICK, bs=1, valid_pct=.3, seed=seed),objections(*table)
    try:
        if any(parts): data = ImageDataBunch.from_cells(root, pd.DataFrame(dict(path=files, label=pd.Series(labels, dtype=object), split=parts)), **kw)
        else: data = MAKE[name](root, dict(zip(files, labels)), **kw)
    except ValueError as error:
        drawn = isinstance(error, (SplitError, NoCells)) and not set(parts) & {'train', 'valid'} # a rare class may be drawn for validation or test alone
        assert why or drawn, error
        return
    assert not why
    of = dict(zip(files, contents))
    sides = [{of[path] for path in loader.dataset.cells.path} for loader in data.loaders]
    assert not any(a & b for i,a in enumerate(sides) for b in sides[:i]) and set.union(*sides) == set(contents)
    label_of = dict(zip(files, labels))
    for loader in data.loaders[:2]:
        part = loader.dataset
        assert [data.classes[i] for i in part.targets] == [label_of[path] for path in part.cells.path]
    trained = {data.classes[i] for i in data.train_ds.targets}
    assert trained == set(data.classes) and len(trained) > 1
    assert data.classes == sorted(data.classes, key=(lambda o: int(o)) if all(str(o).isdigit() for o in data.classes) else str)
    back = load_data(root, data.save('saved.json').name, cache=False)
    assert back.fingerprint() == data.fingerprint() and back.classes == data.classes and len(back.cells) == len(data.cells)
