"fastai 1's chain: every verb, any order, the numbers of 1.0.61, and what is refused."
import itertools,re,shutil
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from malaria_fastai.data import DatasetType,ImageDataBunch,get_files,get_image_files
from malaria_fastai.datablock import Image,ImageList,ItemLists,open_image
from malaria_fastai.split import Leak
from malaria_fastai.transforms import get_transforms
from malaria_fastai.v1 import Picture,v1_words
from properties import cases

@pytest.fixture(scope='module')
def root(sample_root, tmp_path_factory):
    "40 cells in folders of classes, in parts, and beside tables; 6 more to test."
    new = tmp_path_factory.mktemp('chain')
    for label,name in enumerate(('Parasitized', 'Uninfected')):
        for i,file in enumerate(sorted(sample_root.glob(f'{name}/*.png'))[:230:10]):
            places = [f"parts/{'valid' if i < 5 else 'train'}/{name}/{i}.png", f'all/{name}/{label}{i:02}.png', f'flat/pictures/{label}{i:02}.png'] if i < 20 else [f'parts/test/{label}{i}.png']
            for place in places:
                (new/place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, new/place)
    table = pd.DataFrame(dict(name=[f'{label}{i:02}' for i in range(20) for label in (1, 0)], kind=[['no', 'yes'][label] for i in range(20) for label in (1, 0)]))
    table['is_valid'] = table.name.str.endswith('3')
    table['grade'] = table.name.str[0].astype(int)
    table.to_csv(new/'flat/labels.csv', index=False)
    (new/'flat/valid.txt').write_text('103.png\n007.png\n')
    return new

def table(root): return pd.read_csv(root/'flat/labels.csv', dtype=dict(name=str))
def from_df(root, **kwargs): return ImageList.from_df(table(root), root/'flat', folder='pictures', suffix='.png', **kwargs)
def stems(ds): return [Path(o).stem for o in ds.items]

# ---- sources

def test_lists(root):
    every = ImageList.from_folder(root/'all')
    assert len(every)==40 and [*every.items]==sorted(every.items) and every[0].shape[0]==3
    assert len(ImageList.from_folder(root/'all', include=['Uninfected']))==20 and len(ImageList.from_folder(root/'flat/pictures', recurse=False))==40
    assert len(ImageList.from_folder(root/'all', extensions=['.jpg', '.png']))==40
    assert stems(from_df(root))==table(root).name.tolist() and isinstance(from_df(root).items[0], str) # v1: text from a table, paths from a folder
    assert stems(ImageList.from_csv(root/'flat', 'labels.csv', folder='pictures', suffix='.png'))==table(root).name.tolist()
    assert stems(from_df(root, cols='name'))==stems(from_df(root, cols=['name']))==stems(from_df(root, cols=0))
    part = from_df(root)[[5, 3]]
    assert stems(part)==[table(root).name[5], table(root).name[3]] and part.inner_df.index.tolist()==[5, 3]
    assert len(from_df(root)[:7])==7 and len(from_df(root)[np.arange(40) % 2==0])==20

def test_it_prints_as_in_2019(root):
    split = ImageList.from_folder(root/'all').split_by_idx([0, 39])
    shapes = ','.join(f'Image (3, {h}, {w})' for h,w in (open_image(o).size for o in split.train.items[:5]))
    assert str(split).startswith(f"ItemLists;\n\nTrain: ImageList (38 items)\n{shapes}\nPath: {root/'all'};\n\nValid: ImageList (2 items)\n")
    labelled = str(split.label_from_folder())
    assert labelled.startswith(f'LabelLists;\n\nTrain: LabelList (38 items)\nx: ImageList\n{shapes}\ny: CategoryList\nParasitized,Parasitized,Parasitized,Parasitized,Parasitized\nPath: ')
    assert labelled.endswith('\n\nTest: None') and 'y: CategoryList\nParasitized,Uninfected\nPath' in labelled

# ---- splits

@pytest.mark.door
@cases(60)
@given(n=st.integers(2, 300), pct=st.floats(.01, .99), seed=st.one_of(st.none(), st.integers(0, 2**32-1)))
def test_the_draw_is_that_of_fastai_1(n, pct, seed):
    items = [f'{i}.png' for i in range(n)]
    order = np.random.RandomState(42 if seed is None else seed).permutation(n) # after np.random.seed(seed), as v1 wrote it
    split = ImageList(items).split_by_rand_pct(pct, seed=seed)
    assert [*split.valid.items]==[items[i] for i in order[:int(pct*n)]]
    assert sorted([*split.valid.items, *split.train.items])==sorted(items) and [*split.train.items]==[o for o in items if o in {*split.train.items}]

SPLITS = dict(rand=lambda o: o.split_by_rand_pct(.25, seed=3), old=lambda o: o.random_split_by_pct(.25, seed=3), idx=lambda o: o.split_by_idx([1, 2, 7]),
    idxs=lambda o: o.split_by_idxs(range(10, 40), range(10)), array=lambda o: o.split_by_idx(np.array([1, 2, 7])), df=lambda o: o.split_from_df(), col=lambda o: o.split_from_df(col='is_valid'),
    func=lambda o: o.split_by_valid_func(lambda f: '07' in str(f)), files=lambda o: o.split_by_files(['103.png', '007.png']), file=lambda o: o.split_by_fname_file('valid.txt'),
    list=lambda o: o.split_by_list(o[:30], o[30:]))
VALID = dict(rand=10, old=10, idx=3, idxs=10, array=3, df=4, col=4, func=2, files=2, file=2, list=10)

@pytest.mark.parametrize('how', SPLITS)
def test_splits(how, root):
    split = SPLITS[how](from_df(root))
    assert isinstance(split, ItemLists) and (len(split.train), len(split.valid))==(40-VALID[how], VALID[how])
    data = split.label_from_df('kind').databunch(bs=4)
    assert {*stems(data.valid_ds)}=={*stems(split.valid)} and {*stems(data.train_ds)}=={*stems(split.train)}

def test_split_by_folder(root):
    split = ImageList.from_folder(root/'parts').split_by_folder()
    assert (len(split.train), len(split.valid))==(30, 10)
    data = split.label_from_folder().add_test_folder().databunch(bs=4)
    assert (len(data.train_ds), len(data.valid_ds), len(data.test_ds), data.classes)==(30, 10, 6, ['Parasitized', 'Uninfected'])

# ---- labels

LABELS = dict(folder=lambda o: o.label_from_folder(), func=lambda o: o.label_from_func(lambda f: Path(f).parent.name), re=lambda o: o.label_from_re(r'/(\w+)/\d+\.png$'),
    full=lambda o: o.label_from_re(r'/(\w+)/\d+\.png$', full_path=True))

@pytest.mark.parametrize('how', LABELS)
@pytest.mark.parametrize('before', [False, True])
def test_labels_before_and_after_the_split(how, before, root):
    items = ImageList.from_folder(root/'all')
    chain = LABELS[how](items).split_by_rand_pct() if before else LABELS[how](items.split_by_rand_pct())
    assert chain.classes==['Parasitized', 'Uninfected'] and chain.c==2 and [*chain.train.labels]==[Path(o).parent.name for o in chain.train.items]
    data = chain.databunch(bs=4)
    assert all(row.label==Path(row.path).parent.name for row in data.cells.itertuples())

def test_labels_of_a_table(root):
    split = from_df(root).split_from_df()
    for cols in (1, 'kind', ['kind']): assert split.label_from_df(cols).databunch(bs=4).classes==['no', 'yes']
    assert split.label_from_df('kind', classes=['yes', 'no']).databunch(bs=4).classes==['yes', 'no']
    assert split.label_from_df('grade').databunch(bs=4).classes==[0, 1] # numbers, as in v1
    read = ImageList.from_csv(root/'flat', 'labels.csv', folder='pictures', suffix='.png').split_from_df().label_from_df('grade')
    assert read.databunch(bs=4).classes==[0, 1]
    assert from_df(root).label_from_list(['a', 'b']*20).split_by_rand_pct().databunch(bs=4).classes==['a', 'b']

# ---- any order of the verbs

VERBS = dict(split=lambda o, root: o.split_by_rand_pct(.2, seed=5), label=lambda o, root: o.label_from_df('kind'), transform=lambda o, root: o.transform(get_transforms(), size=16),
    test=lambda o, root: o.add_test(ImageList.from_folder(root/'parts/test')))
ORDERS = [o for o in itertools.permutations(VERBS) if o.index('split')<min(o.index('transform'), o.index('test'))]

@pytest.mark.parametrize('order', ORDERS, ids='-'.join)
def test_any_order_gives_the_same_batches(order, root):
    chain,plain = from_df(root),from_df(root)
    for verb in order: chain = VERBS[verb](chain, root)
    for verb in ('split', 'label', 'test', 'transform'): plain = VERBS[verb](plain, root)
    one,other = chain.databunch(bs=8).normalize(),plain.databunch(bs=8).normalize()
    assert one.cells.equals(other.cells) and one.fingerprint()==other.fingerprint() and len(ORDERS)==8
    assert one.one_batch()[0].equal(other.one_batch()[0])

def test_it_is_the_bunch_of_the_other_constructors(root):
    chain = ImageList.from_folder(root/'all').split_by_rand_pct(.25, seed=9).label_from_folder().transform(get_transforms(), size=16).databunch(bs=8, seed=9)
    plain = ImageDataBunch.from_folder(root/'all', valid_pct=.25, seed=9, ds_tfms=get_transforms(), size=16, bs=8)
    assert chain.fingerprint()==plain.fingerprint() and chain.one_batch()[0].equal(plain.one_batch()[0])

def test_test_pictures_keep_their_order(root):
    names = pd.DataFrame(dict(name=['022', '120', '021', '122', '020', '121']))
    data = from_df(root).split_by_rand_pct().label_from_df('kind').add_test(ImageList.from_df(names, root/'parts', folder='test', suffix='.png')).databunch(bs=4, val_bs=4, path=root)
    assert stems(data.test_ds)==names.name.tolist() and data.path==root
    seen = [tuple(x.shape) for x,*_ in [data.test_ds[i] for i in range(6)]]
    assert seen==[open_image(o).shape for o in data.test_ds.items]
    assert len(from_df(root).split_by_rand_pct().label_from_df().add_test(get_image_files(root/'parts/test')).databunch(bs=4).test_ds)==6

@pytest.mark.parametrize('path', [None, '.', 'elsewhere'])
def test_relative_names_and_test_pictures_of_another_folder(path, root, monkeypatch):
    "As on Kaggle: two folders side by side, named from where the program runs, and a third to write to."
    monkeypatch.chdir(root)
    chain = ImageList.from_folder('all').split_by_rand_pct().label_from_folder().add_test(ImageList.from_folder('parts/test')).transform(size=16)
    data = chain.databunch(path, bs=8, cache=False)
    assert data.path==Path(path or 'all') and len(data.test_ds)==6 and all(o.is_file() for o in [*data.train_ds.items, *data.test_ds.items])
    assert stems(data.test_ds)==[o.stem for o in sorted(Path('parts/test').iterdir())] and data.one_batch(DatasetType.Test)[0].shape==(6, 3, 16, 16)

# ---- what is refused, in one line with the reason

REFUSED = dict(label_delim=('one label', lambda o: o.split_by_rand_pct().label_from_df(label_delim=' ')), label_cls=('labels are classes', lambda o: o.split_by_rand_pct().label_from_df(label_cls=float)),
    several=('Name one column', lambda o: o.label_from_df(cols=['kind', 'grade'])), no_column=("no column 'label'", lambda o: o.label_from_df('label')), no_label=('no labels', lambda o: o.split_by_rand_pct().databunch()),
    floats=('numbers to be estimated', lambda o: o.label_from_list([.5, .7]*20).split_by_rand_pct().databunch(bs=4)), empty=('label', lambda o: o.label_from_list([None, 'a']*20).split_by_rand_pct().databunch(bs=4)),
    one_class=('class', lambda o: o.label_const(1).split_by_rand_pct().databunch(bs=4)), share=(r'in \(0, 1\)', lambda o: o.split_by_rand_pct(20)), files=('not in the list', lambda o: o.split_by_files(['pictures/103.png'])),
    folders=('no picture of this list lies in .*Training', lambda o: o.split_by_folder('Training', 'Testing')), flags=('True or False', lambda o: o.split_from_df('kind')), pattern=('finds no label', lambda o: o.label_from_re(r'(\d{9})')), tfm_y=('only pictures are transformed', lambda o: o.split_by_rand_pct().transform(tfm_y=True)),
    test_label=('test pictures have no label', lambda o: o.split_by_rand_pct().add_test([], label='no')), twice=('twice', lambda o: o[[0, 1, 2, 0, 5, 6]].label_from_df('kind').split_by_idx([0]).databunch(bs=2)))

@pytest.mark.parametrize('what', REFUSED)
def test_refused(what, root):
    said,use = REFUSED[what]
    with pytest.raises(ValueError, match=said): use(from_df(root))

def test_missing_files_and_copies(root, tmp_path):
    with pytest.raises(FileNotFoundError, match='20 of 30 pictures are not under'):
        names = pd.DataFrame(dict(name=[f'{i}.png' for i in range(20)] + [f'{k}{i:02}.png' for k in (0, 1) for i in range(10)], kind=['a', 'b']*20))
        ImageList.from_df(names, root/'flat', folder='pictures').split_by_idx(range(30, 40)).label_from_df().databunch(bs=4)
    shutil.copytree(root/'all', tmp_path/'all')
    shutil.copyfile(tmp_path/'all/Uninfected/100.png', tmp_path/'all/Uninfected/z.png')
    items = ImageList.from_folder(tmp_path/'all') # the same picture, by content, is not on two sides
    try: data = items.split_by_idx([i for i,o in enumerate(items.items) if o.stem in ('100', '000')]).label_from_folder().databunch(bs=4)
    except ValueError: return
    assert not {'100', 'z'} <= {*stems(data.train_ds), *stems(data.valid_ds)}

def test_of_copies_one_is_drawn(root, tmp_path, capsys):
    "An archive that holds everything twice: one copy of each picture, as by the constructors. A split by hand is refused."
    for place in ('', 'again'): shutil.copytree(root/'all', tmp_path/'cells'/place, dirs_exist_ok=True)
    items = ImageList.from_folder(tmp_path/'cells')
    data = items.split_by_rand_pct(.25, seed=1).label_from_folder().add_test_folder(root/'parts/test').databunch(tmp_path, 4, cache=False)
    assert '40 of 86 pictures are copies of others' in capsys.readouterr().out and len(data.cells)==46 and len(data.test_ds)==6
    assert not {*stems(data.train_ds)} & {*stems(data.valid_ds)} and 'drawn' not in data.cells
    with pytest.raises(Leak, match='on two sides'): items.split_by_idx(range(40)).label_from_folder().databunch(bs=4, cache=False)
    shutil.copytree(root/'all', tmp_path/'apart')
    with pytest.raises(Leak, match='on two sides'): items.split_by_rand_pct(.25).label_from_folder().add_test_folder(tmp_path/'apart').databunch(bs=4, cache=False)

def test_sizes_of_batches_may_be_named_by_place(root):
    data = from_df(root).split_by_rand_pct().label_from_df('kind').databunch(root, 5, 3)
    assert (data.train.bs, data.valid.bs, data.path)==(5, 3, root)

def test_hints():
    items = ImageList(['a.png', 'b.png'])
    for word in ('filter_by_folder', 'use_partial_data', 'split_none', 'transform', 'databunch', 'normalize', 'add_test'):
        with pytest.raises(AttributeError, match=f'ImageList.{word} is a word of fastai v1: '): getattr(items, word)
    with pytest.raises(AttributeError, match='ItemLists.transform_y is a word'): items.split_by_idx([0]).transform_y
    with pytest.raises(AttributeError, match='no wrods'): items.wrods
    with pytest.raises(NotImplementedError, match='convert the files'): type('Mine', (ImageList,), {})
    there = {*dir(ImageList), *dir(ItemLists), *vars(items), *vars(items.split_by_idx([0])), 'normalize'} # the last after .databunch()
    assert [word for (word,of),(kind,_) in v1_words().items() if of=='ImageList' and kind=='support' and word not in there]==[]

# ---- pictures

def test_open_image(root):
    file = next((root/'all').glob('*/*.png'))
    img = open_image(file)
    assert isinstance(img, Picture) and isinstance(img, Image) and img.shape==(3, *img.size)==tuple(img.data.shape) and img.px.equal(img.data)
    assert img.px.min()>=0 and img.px.max()<=1 and np.array_equal(np.asarray(img), (img.px*255).round().permute(1, 2, 0).byte().numpy())
    assert np.array_equal(np.asarray(Image(img.px)), np.asarray(img))
    img.save(root/'flat/saved.png')
    assert np.array_equal(np.asarray(open_image(root/'flat/saved.png')), np.asarray(img))
    (root/'flat/saved.png').unlink()
    for bad in (dict(convert_mode='L'), dict(div=False), dict(cls=int)):
        with pytest.raises(ValueError, match='RGB'): open_image(file, **bad)

def test_get_files(root):
    assert get_image_files(root/'all')==[] and len(get_image_files(root/'all', recurse=True))==40 and len(get_files(root/'flat', recurse=True))==42
    assert [o.name for o in get_files(root/'flat')]==['labels.csv', 'valid.txt'] and len(get_files(root/'flat', extensions=['.txt']))==1
    assert len(get_files(root/'all', recurse=True, include=['Parasitized']))==20

def test_predict_says_the_same_of_a_picture_and_of_its_path(root):
    from torchvision import models
    from malaria_fastai.learner import cnn_learner
    data = from_df(root).split_by_rand_pct().label_from_df('kind').add_test_folder('../parts/test').transform(size=16).databunch(bs=4).normalize()
    learn = cnn_learner(data, models.resnet18, pretrained=False)
    for file in data.test_ds.items[:3]:
        want = learn.predict(file)
        for other in (open_image(file), open_image(file).pil, open_image(file).px): assert learn.predict(other)[2].equal(want[2])
    preds,y = learn.get_preds(DatasetType.Test)
    assert preds.shape==(6, 2) and y.tolist()==[0]*6
