"What a notebook cannot say about prediction: hostile files and folders, faults of the disk, memory, real cells."
import csv,io,json,os,pickle,shutil,struct,subprocess,sys,zipfile,zlib
from collections import Counter
from itertools import islice
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from malaria_fastai import predict as P
from malaria_fastai.cells import BadPicture,Resizing,ResizeMethod,open_picture
from malaria_fastai.cli import main
from malaria_fastai.files import ModelRefused
from malaria_fastai.learner import load_learner
from malaria_fastai.predict import _MAX_BYTES,Found,Predictor,find_pictures,predict_files,read_folder
from test_export import alike,exported_run,files,folder,needs_onnx,predict,rewritten,run,said # fixtures and helpers

# ---- the folder

def crafted(said):
    "Descriptions that somebody sealed correctly: (which key is complained of, what replaces it)."
    deep = 1.
    for _ in range(400): deep = [deep]
    for k in ('classes','positive','resize','temperature','threshold','unsure','content','files','refused_as'):
        yield k,{k: ...}
        for v in (7, 'x', [], {}, deep, float('nan'), True): yield k,{k: v}
    c,r = said['content'],said['resize']
    for k in c: yield 'content',dict(content={i: v for i,v in c.items() if i!=k})
    for k in [o for o in c if o!='about']:
        for v in ('x', None, deep, [[1.]], ['x']*len(c['names'])): yield 'content',dict(content=c|{k: v})
    yield 'content',dict(content=c|dict(more=1))
    yield 'content',dict(content=c|dict(frame={'cover': ['0','1']}))
    for v in ([32], [32,0], [-1,32], [32.5,32], [10**6,10**6], ['32','32'], [10**30,1]): yield 'resize',dict(resize=r|dict(size=v))
    for k,v in (('method','NO'),('method',['SQUISH']),('padding_mode','wrap'),('padding_mode',{})): yield 'resize',dict(resize=r|{k: v})
    yield 'positive',dict(positive='cat')
    yield 'classes',dict(classes=['Parasitized','Parasitized'])
    yield 'unsure',dict(unsure=said['unsure']|dict(low=.9, high=.1))
    yield 'files',dict(files={'../../etc/passwd': said['files']['export.pkl']})
    for v in ({}, {'file': {}}, {'file': None}, 3): yield 'files',dict(files={'export.pkl': v})
    yield 'temperature',dict(temperature=0)

def test_a_description_that_somebody_crafted_is_refused(folder):
    _,said = read_folder(folder)
    was = (folder/'model.json').read_bytes()
    for key,changes in crafted(said):
        if changes in (dict(refused_as='x'),dict(temperature=7)): continue # nothing is wrong with these
        new = {k: v for k,v in (json.loads(was)|changes).items() if v is not ...}
        new['sha256'] = P.seal(new)
        (folder/'model.json').write_text(json.dumps(new), 'utf-8')
        with pytest.raises(ModelRefused, match=key): Predictor(folder, 'torch')

def test_a_network_for_something_else_is_refused(folder):
    "model.json speaks of three classes, and of files that onnxruntime cannot open."
    with pytest.raises(ModelRefused, match='3 classes'): Predictor(rewritten(folder, classes=['Parasitized','Uninfected','Other']), 'torch')

@needs_onnx
def test_a_network_that_onnxruntime_cannot_open_is_refused(folder):
    (folder/'model.onnx').write_bytes(b'no network')
    files = read_folder(folder)[1]['files']|{'model.onnx': dict(file=P.facts_of(folder/'model.onnx'))}
    with pytest.raises(ModelRefused, match='model.onnx: it cannot be opened'): Predictor(rewritten(folder, files=files), 'onnx')

def test_no_number_is_no_answer(run, files):
    predict = Predictor(run, 'torch')
    predict._ask = lambda x: np.full((len(x),2), np.nan, np.float32)
    table = predict(files[:3])
    assert (table.decision=='not a cell').all() and table.reason.str.contains('no number').all()

def test_a_changed_byte_is_refused_in_every_file(folder):
    rng = np.random.default_rng(0)
    engines = {'export.pkl':'torch','model.onnx':'onnx','model.int8.onnx':'int8','model.json':None}
    for name in [o for o in engines if (folder/o).exists()]:
        was = (folder/name).read_bytes()
        for at in [0, len(was)-1, *rng.integers(0, len(was), 6)]:
            b = bytearray(was)
            b[at] ^= 1 << int(rng.integers(8))
            (folder/name).write_bytes(b)
            if name=='model.json' and b.strip()==was.strip(): continue
            with pytest.raises((ModelRefused,UnicodeDecodeError)): Predictor(folder, engine=engines[name])
        (folder/name).write_bytes(was)
    Predictor(folder, engine='torch')

def test_another_sound_model_is_refused_too(folder, run, sample_root):
    learn = load_learner(folder)
    with torch.no_grad(): next(learn.model.parameters()).add_(1.)
    learn.path = folder
    learn.export('export.pkl', extra=dict(positive='Parasitized'))
    with pytest.raises(ModelRefused, match='not what model.json says'): Predictor(folder, engine='torch')

class Hostile:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system,(f'touch {self.mark}',)

@pytest.mark.parametrize('how', ['plain','torch'])
def test_a_hostile_pickle_does_not_run(how, folder, tmp_path):
    mark = tmp_path/'it-ran'
    (pickle.dump if how=='plain' else torch.save)(Hostile(mark), open(folder/'export.pkl', 'wb'))
    with pytest.raises(ModelRefused): Predictor(folder, engine='torch')
    with pytest.raises(ModelRefused, match='pickle'): load_learner(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists() # the bait works

def test_normalisation_is_that_of_training(run, predict, files):
    learn = load_learner(run/'model')
    with learn.no_bar(): p = learn.get_preds(dl=learn.dls.test_dl(files[:40]))[0].numpy()
    x = np.stack([predict.rule.crop(predict.rule.fixed(Image.open(o).convert('RGB'))) for o in files[:40]])
    z = predict._ask(x)
    e = np.exp(z-z.max(1, keepdims=True))
    assert abs(e/e.sum(1, keepdims=True) - p).max() < 1e-4

ALONE = """
import sys
from malaria_fastai.cli import main
assert main(['predict', *sys.argv[1:3], '-o', sys.argv[3], '--engine', 'onnx'])==0
print(sorted({'torch', 'fastai'} & sys.modules.keys()))
"""

@needs_onnx
def test_with_onnx_neither_torch_nor_fastai_is_loaded(run, files, tmp_path):
    done = subprocess.run([sys.executable, '-c', ALONE, str(run), str(files[0]), str(tmp_path/'out.csv')], capture_output=True, text=True)
    assert done.stdout.endswith('\n[]\n') and (tmp_path/'out.csv').exists(), done.stderr

@needs_onnx
def test_same_decisions_by_torch_and_onnx(folder, files):
    "Bounds are made: as many cells below, between and above."
    some = files[::12]
    p = Predictor(rewritten(folder, content=None, temperature=1), 'torch')(some).p
    low,threshold,high = (float(o) for o in p.quantile([.33, .5, .67]))
    rewritten(folder, threshold=threshold, unsure=dict(low=low, high=high))
    one,two = (Predictor(folder, o) for o in ('torch','onnx'))
    a,b = one(some),two(some)
    assert alike(a, b, one.facts) and set(a.decision)=={'Parasitized','Uninfected','unsure'}

@needs_onnx
@pytest.mark.real
def test_200_real_cells_from_file_to_probability(run, nih_root):
    some = sorted(nih_root.rglob('*.png'))[::60][:200]
    one,two = (Predictor(run, o) for o in ('torch','onnx'))
    for o in (one,two): o.content = None
    a,b = one(some),two(some)
    assert len(a)==200 and a.p.notna().all() and alike(a, b, one.facts)

# ---- content

def cut(im, outline, rng):
    "A piece of a picture, three times as large as an outline where there is so much, in this outline on black."
    h,w = (min(3*n, m) for n,m in zip(outline.shape, im.size[::-1]))
    y,x = int(rng.integers(im.height-h+1)),int(rng.integers(im.width-w+1))
    piece = im.crop((x, y, x+w, y+h)).resize(outline.shape[::-1], Image.Resampling.BILINEAR)
    return Image.fromarray(np.asarray(piece)*outline[...,None])

def test_what_is_no_cell_is_refused(predict):
    "On drawn cells; the rates on real ones are in results/refusal.csv."
    rng,disc = np.random.default_rng(0),np.hypot(*np.mgrid[-1:1:90j,-1:1:90j]) < .95
    from sklearn.datasets import load_sample_images
    photos = [Image.fromarray(o) for o in load_sample_images().images]
    noise = [Image.fromarray(rng.integers(0, 256, (90,90,3)).astype(np.uint8)) for _ in range(20)]
    blank = [Image.new('RGB', (90,90), tuple(int(o) for o in rng.integers(0, 256, 3))) for _ in range(20)]
    for kind in (photos*10,noise,blank):
        for some in (kind,[cut(o, disc, rng) for o in kind]):
            assert (predict(some).decision=='not a cell').mean() >= .95

def test_no_answer_has_no_label(predict):
    row = predict(Image.new('RGB', (50,50))).iloc[0]
    assert row.decision=='not a cell' and row.pred=='' and np.isnan(row.p) and row.reason

@pytest.mark.parametrize('shape', [(1,1),(1,500),(3,2),(64,64),(700,40)])
def test_any_shape_gets_an_answer(predict, shape):
    for fill in (0, 128, 255): assert len(predict(np.full((*shape,3), fill, np.uint8)))==1

def test_odd_objects_are_one_row(predict, files):
    cut = Image.open(io.BytesIO(files[0].read_bytes()[:500])) # opened, not loaded yet
    closed = Image.open(open(files[0], 'rb'))
    closed.close()
    odd = [np.full((4,4), .123), np.zeros((0,4,3), np.uint8), Found('x', b''), Found('y', b'GIF89a'), Image.new('RGB', (0,5)), Image.new('F', (40,40), .123), cut, closed, None, 7, b'', {}, object()]
    table = predict(odd)
    assert len(table)==len(odd) and (table.decision=='not a cell').all() and table.reason.str.startswith('cannot be read').all()
    assert [len(predict(o)) for o in (None, 7, b'', np.full((4,4), .123))]==[1]*4

def same_picture(im):
    "One picture in many modes: name -> (picture, how it is saved)."
    a,turned = np.asarray(im),Image.Exif()
    turned[0x112] = 6
    alpha = np.linspace(0, 255, a.shape[0]).astype(np.uint8)[:,None].repeat(a.shape[1], 1)
    kept = im.copy()
    kept.info['exif'] = turned.tobytes()
    return dict(rgb=im, grey=im.convert('L'), wide=Image.fromarray(a[...,1].astype(np.uint16)*257), alpha=Image.fromarray(np.dstack([a, alpha])), la=Image.fromarray(np.dstack([a, alpha])).convert('LA'),
                palette=im.quantize(64), turned=kept)

def test_no_more_pictures_are_taken_than_are_needed(run):
    "Of an endless row: a batch, and what the threads read ahead."
    predict,taken = Predictor(run, 'torch', bs=4, threads=2),[]
    def endless():
        while True:
            taken.append(1)
            yield Image.new('RGB', (20,20))
    assert len(list(islice(predict.rows(endless()), 8)))==8 and len(taken) <= 8+4*predict.threads

def test_an_open_picture_is_read_as_its_file_is(predict, files, tmp_path):
    for name,im in same_picture(open_picture(files[0])).items():
        im.save(file := tmp_path/f'{name}.png', **(dict(exif=im.info['exif']) if name=='turned' else {}))
        want = open_picture(file)
        assert (np.asarray(Found('x', Image.open(file)).open())==np.asarray(want)).all(), name
        if name!='turned': assert (np.asarray(Found('x', im).open())==np.asarray(want)).all(), name
    paths = sorted(tmp_path.iterdir())
    assert predict(paths).drop(columns='path').equals(predict([Image.open(o) for o in paths]).drop(columns='path'))
    one = Image.open(files[0])
    p = predict([one]*20).p # one file, read by several threads
    assert p.isna().all() or np.ptp(p) < 1e-5

def test_a_narrow_picture_does_not_fill_the_memory(run, tmp_path):
    "CROP makes the shorter side fit: 3 pixels to 32, and 4,000,000 to 42 million."
    from malaria_fastai.cells import BadPicture
    im = Image.new('RGB', (4_000_000,3))
    for size in ((3,4_000_000),(4_000_000,3)):
        with pytest.raises(BadPicture, match='long and narrow'): P._prepared(im.resize(size), Resizing((32,32), ResizeMethod.CROP))
    assert P._prepared(im, Resizing((32,32), ResizeMethod.SQUISH)).shape==(32,32,3)
    predict = Predictor(run, 'torch', threads=1)
    predict.content,predict.rule = None,Resizing((32,32), ResizeMethod.CROP)
    assert predict([im]).reason[0].startswith('cannot be read')

# ---- files

def png(w=40, h=30, colour=(200,120,140)):
    f = io.BytesIO()
    Image.new('RGB', (w,h), colour).save(f, 'PNG')
    return f.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def bomb_png(w=30000, h=30000):
    "A few KB that claim so many pixels."
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(bytes(10**6)))+chunk(b'IEND', b'')

@pytest.fixture
def zoo(tmp_path, files):
    "A folder of good and bad files: name -> whether it can be read."
    good,d = files[0].read_bytes(),tmp_path/'zoo'
    d.mkdir()
    os.mkfifo(d/'pipe.png')
    (d/'loop.png').symlink_to(d/'loop.png')
    (d/'gone.png').symlink_to(d/'nothing')
    made = {'good.png':good, '=cmd|x.png':good, '-rf.png':good, '+1.png':good, '@sum.png':good, 'a\nb.png':good, 'é ü.png':good, 'com,ma"q.png':good, '%s{}.png':good,
            'empty.png':b'', 'cut.png':good[:len(good)//2], 'text.png':b'hello', 'bomb.png':bomb_png(), 'web.jpg':b'<html>', 'zip.png':b'PK\x03\x04'+bytes(50),
            'large.bmp':b'BM'+bytes(_MAX_BYTES+10)}
    for k,v in made.items(): (d/k).write_bytes(v)
    (d/os.fsdecode(b'\xff\xfe.png')).write_bytes(good)
    return d,{**{k: v==good for k,v in made.items()}, 'pipe.png':False, 'loop.png':False, 'gone.png':False, os.fsdecode(b'\xff\xfe.png'):True}

def test_every_file_is_one_row(zoo, predict, tmp_path):
    d,want = zoo
    done = predict_files(predict, d, tmp_path/'out.csv', quiet=True)
    rows = list(csv.DictReader(open(tmp_path/'out.csv', newline='')))
    assert len(rows)==len(want)==sum(done['decisions'].values())
    read = [not o['reason'].startswith('cannot be read') for o in rows]
    assert sum(read)==sum(want.values())
    assert all(o['reason'] for o in rows if o['decision'] in ('unsure','not a cell'))
    text = (tmp_path/'out.csv').read_bytes()
    assert text.count(b'\n')==len(want)+1 and text.decode()

RUNS = '=cmd|x.png','-rf.png','+1.png','@sum.png'

def is_harmless(text):
    "No cell of a spreadsheet begins like a formula, whether lines are cut at commas or at semicolons."
    return all(o.strip().strip('"').strip()[:1] not in set('=+-@') for cut in (',',';') for o in next(csv.reader([text], delimiter=cut)))

def test_a_spreadsheet_runs_no_name(zoo, predict, files, tmp_path, monkeypatch):
    d,_ = zoo
    monkeypatch.chdir(d)
    more = 'a;=cmd|x.png','a; @x.png'
    for o in more: shutil.copy(files[0], o)
    predict_files(predict, [*RUNS,*more], tmp_path/'out.csv', quiet=True)
    rows = list(csv.DictReader(open(tmp_path/'out.csv', newline='', encoding='utf-8')))
    assert [o['path'] for o in rows]==["'"+o for o in RUNS]+["a;'=cmd|x.png","a;' @x.png"]
    assert all(map(is_harmless, (tmp_path/'out.csv').read_text('utf-8').splitlines()))

def test_a_spreadsheet_runs_no_class(folder, files, tmp_path):
    "Folders of classes may be called +ve and -ve, and a stranger may call a class as he likes."
    (gone := tmp_path/'gone.png').write_bytes(b'cut')
    for names in (['+ve','-ve'],['=HYPERLINK("x")','@x'],['a;=cmd','\x1b[31m\n=x']):
        predict_files(predict := Predictor(rewritten(folder, classes=names, positive=names[0], refused_as='=1+1'), 'torch'), [*files[::40],gone], tmp_path/'out.csv', quiet=True)
        lines = (tmp_path/'out.csv').read_text('utf-8').splitlines()
        assert len(lines)==len(files[::40])+2 and all(map(is_harmless, lines)) and '\x1b' not in ''.join(lines)

def test_each_picture_that_fits_a_pattern_is_one_row(predict, files, tmp_path, monkeypatch):
    (tmp_path/'cells/a/b').mkdir(parents=True)
    for o in ('cells/1.png','cells/a/2.png','cells/a/b/3.png'): shutil.copy(files[0], tmp_path/o)
    (tmp_path/'cells/a/notes.txt').write_text('x')
    monkeypatch.chdir(tmp_path)
    for o in ('cells/**','./cells/**','**','./**','cells/','*',str(tmp_path/'cells/**'),'cells/**/*.png','*/**'):
        assert sorted(os.path.relpath(r['path'], tmp_path) for r in predict.rows([o]))==['cells/1.png','cells/a/2.png','cells/a/b/3.png'], o
    for name in ('*.jpg','a\0*','a\0/*'):
        one, = find_pictures([name])
        with pytest.raises(BadPicture): one.open()

def test_a_folder_that_cannot_be_listed_is_a_row(predict, files, tmp_path, monkeypatch):
    "One vanishes while its neighbour is read; others belong to somebody else."
    for o in 'abc': (tmp_path/'d'/o).mkdir(parents=True)
    for o in 'abc': shutil.copy(files[0], tmp_path/'d'/o/'1.png')
    found = find_pictures([tmp_path/'d'])
    first = next(found)
    shutil.rmtree(tmp_path/'d/b')
    rest = list(found)
    assert [Path(o.name).parent.name if o.file else o.reason for o in (first,*rest)]==['a','this folder cannot be listed (No such file or directory)','c']
    scan = os.scandir
    def denied(path='.'):
        if Path(path).name=='mine': raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)
    (tmp_path/'d/mine').mkdir()
    monkeypatch.setattr(os, 'scandir', denied)
    for top,n in ((tmp_path/'d',3),(tmp_path/'d/mine',1)):
        rows = list(predict.rows([top]))
        assert len(rows)==n and 'Permission denied' in rows[-1]['reason'] and rows[-1]['path'].endswith('mine')

def test_what_a_folder_holds_beside_pictures_is_counted(files, tmp_path):
    d = tmp_path/'d'
    for o in ('a','.git','other'): (d/o).mkdir(parents=True)
    shutil.copy(files[0], d/'a/1.png')
    (d/'link').symlink_to(d/'other', target_is_directory=True)
    for o in ('x.txt','y.txt','.hidden','Thumbs.db','read me','\x1b[31m.\x1b]0;x\x07',os.fsdecode(b'n.\xff\xfe'),'long.'+'x'*200): (d/o).write_bytes(b'')
    for i in range(50): (d/f'no-extension-{i}').write_bytes(b'')
    for i in range(50): (d/f'a.ending with blanks {i}').write_bytes(b'')
    left = Counter()
    assert len(list(find_pictures([d], left)))==1
    assert left=={'.txt':2,'hidden file':1,'Thumbs.db':1,'no extension':51,'other endings':53,'hidden folder':1,'link to a folder':1}
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for o in ('1.png','x.txt','a.\x7fx','b.ü \u202e'): z.writestr(o, files[0].read_bytes())
    left = Counter()
    list(find_pictures([tmp_path/'a.zip'], left))
    assert left=={'.txt':1,'other endings':2}

def test_the_time_left_knows_what_zips_and_patterns_hold(files, tmp_path):
    (tmp_path/'d').mkdir()
    for o in ('1.png','2.png','.3.png','x.txt'): shutil.copy(files[0], tmp_path/'d'/o)
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for o in ('1.png','2.png','3.png','x.txt'): z.writestr(o, b'')
    (tmp_path/'bad.zip').write_bytes(b'no zip')
    for path,n in (('d',2),('d/*.png',2),('a.zip',3),('bad.zip',1),('*',6),('d/1.png',1),('gone.png',1)): assert sum(1 for _ in find_pictures([tmp_path/path]))==n, path

# ---- the command

def test_the_command_predicts_patterns_and_names_with_a_dash(run, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for o in ('a1.png','a2.png','-o.png','b1.png'): shutil.copy(files[0], o)
    Path('d').mkdir()
    Path('cut.png').write_bytes(b'cut')
    for o in ('d/1.png','d/x.txt','d/none',b'd/n.\xff',b'd/\xff.png'): shutil.copy(files[0], os.fsdecode(o))
    out,err,status = said(capsys, 'predict', run, '-o', 'out.csv', '--engine', 'torch', '--', 'a*.png', '-o.png', 'd', 'cut.png')
    rows = list(csv.DictReader(open('out.csv', newline='', encoding='utf-8')))
    assert status==0 and [o['path'] for o in rows]==['a1.png','a2.png',"'-o.png",'d/1.png','d/\\udcff.png','cut.png'] and rows[-1]['reason'].startswith('cannot be read: ')
    assert all(o in out for o in ('left out: ','1 .txt','1 no extension','1 other endings','Table: out.csv','1 not a cell'))

def test_the_command_shows_names_and_does_not_obey_them(folder, files, tmp_path, monkeypatch):
    "Through a pipe in ASCII, with classes and files of a stranger. Any p is enough for the class that ASCII does not have."
    rewritten(folder, classes=['\x1b[31mred','π'], positive='π', threshold=0, unsure=dict(low=0, high=0), content=None)
    d,pipes = tmp_path/os.fsdecode(b'd\xff\x1b'),[io.TextIOWrapper(io.BytesIO(), encoding='ascii', write_through=True) for _ in range(2)]
    d.mkdir()
    with monkeypatch.context() as patch:
        for name,pipe in zip(('stdout','stderr'), pipes): patch.setattr(sys, name, pipe)
        status = main(['predict', folder, *files[::60], '-o', d/'out.csv', '--engine', 'torch'])
    out,err = (o.buffer.getvalue() for o in pipes)
    assert status==0 and b'\x1b' not in out+err and b'\\u03c0' in out and b'Table: ' in out, err
    assert (d/'out.csv').read_text('utf-8').count('π')==2*len(files[::60]) # label and decision

def test_whoever_names_no_model_gets_the_network_of_the_package(folder, files, tmp_path, monkeypatch, capsys):
    "Whatever stands first; its one line is beside the answers, not among them."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(P.resources, 'files', lambda package: tmp_path/package)
    assert said(capsys, 'predict', *files[:2])[1:]==('malaria-fastai: no model is named, and none came with this package: name a run or a model folder\n', 2)
    shutil.copytree(folder, 'malaria_fastai/network')
    named = said(capsys, 'predict', folder, '--engine', 'torch', *files[:2])
    for words in (['--engine', 'torch', *files[:2]], [*files[:2], '--engine', 'torch']):
        out,err,status = said(capsys, 'predict', *words)
        assert (out, status)==(named[0], 0) and err.startswith('No model is named: the network of the package answers')
    assert len(err.splitlines())==len(named[1].splitlines())+1 and Predictor(engine='torch').folder==Path('malaria_fastai/network').absolute()

def test_eight_views_of_one_picture_have_one_answer(folder, files):
    eight = Predictor(rewritten(folder, views=8, content=None), 'torch')
    picture = open_picture(files[0]).resize((32, 32))
    turned = [picture.transpose(turn) for turn in Image.Transpose]
    assert np.ptp(eight([picture, *turned]).p)<1e-6 and len({*eight(turned).pred})==1

@pytest.mark.parametrize('words', [['-o','there'],['-o','gone.png/out.csv'],['-o','there','--engine','onnx'],['--bs','0','-o','x.csv'],['--engine','cat','-o','x.csv']])
def test_the_command_says_in_one_line_what_is_wrong(words, run, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'there').mkdir()
    shutil.copy(files[0], 'gone.png')
    opened = []
    monkeypatch.setattr(Found, 'open', lambda self: opened.append(self))
    try: status = main(['predict', str(run), 'gone.png', *words])
    except SystemExit as e: status = e.code
    err = capsys.readouterr().err
    assert status==2 and 'Traceback' not in err and not opened and sorted(o.name for o in tmp_path.iterdir())==['gone.png','there']

# ---- order, batches, zips

def test_the_order_is_that_of_the_input(predict, files):
    some = [str(o) for o in np.random.default_rng(1).permutation(files)[:70]]
    assert list(predict(some).path)==some

def test_answers_do_not_depend_on_the_batch(run, files, predict):
    assert alike(predict(files[:50]), Predictor(run, 'torch', bs=7, threads=1)(files[:50]), predict.facts)

def test_a_file_that_vanishes_is_one_row(run, files, tmp_path):
    "The first batch is there; of forty files the second half goes before anybody has come so far."
    predict = Predictor(run, 'torch', bs=4, threads=2)
    for i,o in enumerate(files[:40]): shutil.copy(o, tmp_path/f'{i:02}.png')
    rows = predict.rows([tmp_path])
    first = list(islice(rows, predict.bs))
    for i in range(20, 40): (tmp_path/f'{i:02}.png').unlink()
    rest = list(rows)
    assert [Path(o['path']).stem for o in first+rest]==[f'{i:02}' for i in range(40)]
    assert ['No such file' in o['reason'] for o in first+rest]==[False]*20+[True]*20

WRITES = []

def watch(event, args):
    if WRITES and event in ('os.mkdir','os.rename','os.link','os.symlink','os.truncate'): WRITES.append((event, args[:2]))
    if WRITES and event=='open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY|os.O_RDWR|os.O_CREAT): WRITES.append((event, args[0]))

@pytest.fixture
def writes():
    "All that is opened for writing, made or moved, anywhere, while the test runs."
    if not getattr(watch, 'on', False): sys.addaudithook(watch)
    watch.on = True
    WRITES[:] = ['on']
    yield lambda: WRITES[1:]
    WRITES.clear()

def test_the_watch_sees_a_file(writes, tmp_path):
    (tmp_path/'x').write_bytes(b'')
    (tmp_path/'d').mkdir()
    assert {(tmp_path/'x','open'),(tmp_path/'d','os.mkdir')} <= {(Path(str(o[0] if isinstance(o, tuple) else o)),k) for k,o in writes()}

def test_zips_are_read_member_by_member(predict, files, tmp_path, writes):
    good = files[0].read_bytes()
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for i in range(5): z.writestr(f'x/{i}.png', good)
        z.writestr('x/Thumbs.db', b'x')
        z.writestr('x/cut.png', good[:200])
    b = bytearray((tmp_path/'a.zip').read_bytes())
    b[b.index(good)+300] ^= 1 # damages the first member: its checksum tells
    (tmp_path/'a.zip').write_bytes(b)
    before,made = sorted(tmp_path.rglob('*')),len(writes())
    rows = list(predict.rows([tmp_path/'a.zip']))
    assert len(rows)==6 and sum(o['reason'].startswith('cannot be read') for o in rows)==2
    assert made and not writes()[made:] and sorted(tmp_path.rglob('*'))==before

@pytest.mark.parametrize('name', ['../../evil.png','/abs/evil.png','..\\..\\evil.png','C:\\evil.png'])
def test_a_zip_slip_is_refused(name, predict, files, tmp_path, writes):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(name, files[0].read_bytes())
    made = len(writes())
    rows = list(predict.rows([tmp_path/'a.zip']))
    assert len(rows)==1 and rows[0]['decision']=='not a cell' and 'entry' in rows[0]['reason']
    assert made and not writes()[made:] # nothing is written, neither here nor where the name leads

def test_bombs_are_refused_before_they_unfold(predict, tmp_path, monkeypatch):
    "Before anything is unfolded; one PNG is stopped by Pillow's limit, one by ours, which is lower."
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a.png', bytes(200_000_000))
    (tmp_path/'b.png').write_bytes(bomb_png())
    (tmp_path/'c.png').write_bytes(bomb_png(5000, 3000))
    (tmp_path/'d.zip').write_bytes(b'PK\x03\x04'+bytes(500))
    def unfolded(*a, **kw): raise AssertionError('it was unfolded')
    monkeypatch.setattr(zipfile.ZipFile, 'open', unfolded)
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', unfolded)
    for name,why in {'a.zip':'bomb','b.png':'pixels','c.png':'5000 x 3000 pixels are none, or more than','d.zip':'no zip'}.items():
        rows = list(predict.rows([tmp_path/name]))
        assert len(rows)==1 and rows[0]['decision']=='not a cell' and why in rows[0]['reason']

def test_every_truncation_of_a_picture_is_a_row(predict, tmp_path):
    data = png()
    rows = predict([Found(str(i), data[:i]) for i in range(len(data))])
    assert len(rows)==len(data) and rows.reason.str.startswith('cannot be read').all()

# ---- the disk

def test_the_output_is_whole_or_absent(predict, files, tmp_path, monkeypatch):
    "A folder or a device in its place, no folder to write into: said before the first picture."
    opened = []
    monkeypatch.setattr(Found, 'open', lambda self: opened.append(self))
    (tmp_path/'file').write_text('x')
    (tmp_path/'folder').mkdir()
    os.mkfifo(tmp_path/'pipe')
    before = sorted(tmp_path.iterdir())
    for out in (Path('/proc/out.csv'), tmp_path/'file'/'out.csv', tmp_path/'folder', tmp_path/'pipe'):
        with pytest.raises(OSError): predict_files(predict, files[:2], out, quiet=True)
    assert sorted(tmp_path.iterdir())==before and not opened

@pytest.mark.parametrize('there', [False,True])
def test_an_interrupted_run_leaves_what_was_there(there, run, files, tmp_path):
    "Stopped in the third batch, with rows on the disk already."
    predict,out,seen = Predictor(run, 'torch', bs=40, threads=1),tmp_path/'out.csv',[]
    if there: out.write_text('old')
    predict.content,ask = None,predict._ask
    def stopped(x):
        seen.append(max((o.stat().st_size for o in tmp_path.iterdir() if o!=out), default=None))
        if len(seen)==4: raise KeyboardInterrupt
        return ask(x)
    predict._ask = stopped
    with pytest.raises(KeyboardInterrupt): predict_files(predict, files*3, out, quiet=True)
    assert seen[-1] > 0 and [o.name for o in tmp_path.iterdir()]==['out.csv']*there and (not there or out.read_text()=='old')

def test_a_folder_that_is_not_ours_to_write_is_named(predict, files, tmp_path, monkeypatch):
    "As somebody who may read it and not write."
    (tmp_path/'d').mkdir()
    shutil.copy(files[0], tmp_path/'d/1.png')
    (tmp_path/'d').chmod(0o555)
    monkeypatch.chdir(tmp_path/'d')
    was = os.geteuid()
    try:
        if was==0: os.seteuid(65534) # root may write anywhere
        with pytest.raises(PermissionError) as e: predict_files(predict, ['1.png'], 'out.csv', quiet=True)
    finally:
        os.seteuid(was)
        (tmp_path/'d').chmod(0o755)
    assert 'out.csv' in str(e.value) and [o.name for o in (tmp_path/'d').iterdir()]==['1.png']

def test_a_full_disk_leaves_nothing_half_written(predict, files, tmp_path):
    "A limit on the size of files stands in for the full disk: the system refuses to write on, in the same place."
    import resource
    (tmp_path/'out.csv').write_text('old')
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, was[1]))
    try:
        with pytest.raises(OSError): predict_files(predict, files[:60], tmp_path/'out.csv', quiet=True)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert [o.name for o in tmp_path.iterdir()]==['out.csv'] and (tmp_path/'out.csv').read_text()=='old'

MEMORY = """
import os,sys,zipfile
from pathlib import Path
import numpy as np
from malaria_fastai.predict import Found,Predictor,predict_files
folder,top = sys.argv[1:]
predict,N = Predictor(folder, 'torch', threads=2),240
predict.content = None # else noise would not reach the network
def peak():
    "The most memory since the last time, in MB."
    n = next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('VmHWM'))
    open('/proc/self/clear_refs', 'w').write('5')
    return n/1024
data = Path(top, 'd/0.png').read_bytes()
ways = {'arrays': lambda n: (np.full((300,300,3), i%250, np.uint8) for i in range(n)),
        'files': lambda n: [f'{top}/d/{i}.png' for i in range(n)], 'folder': lambda n: [f'{top}/d'] if n==N else [f'{top}/few'],
        'zip': lambda n: [f'{top}/{n==N}.zip']}
def run(way, n):
    if way=='arrays': k = sum(1 for _ in predict.rows(ways[way](n)))
    else: k = sum(predict_files(predict, ways[way](n), f'{top}/out.csv', quiet=True)['decisions'].values())
    assert k==n, (way,k)
for way in ways:
    run(way, 40)
    peak()
    run(way, 40)
    first = peak()
    run(way, N)
    print(way, round(peak()-first, 1))
kept = list(Found(str(i), bytes(bytearray(data))).open() for i in range(N))
print('planted', round(peak()-first, 1))
"""

@pytest.mark.slow
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='the peak of memory cannot be reset on this system')
def test_memory_does_not_grow_with_the_number(run, tmp_path):
    "More, in a process of its own, whose peak is taken anew for each way in; freed memory goes back at once. 240 of these pictures are 40 MB as files, and more as pixels."
    f = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (240,240,3)).astype(np.uint8)).save(f, 'PNG')
    for d,n in (('d',240),('few',40)):
        (tmp_path/d).mkdir()
        (tmp_path/d/'0.png').write_bytes(f.getvalue())
        for i in range(1, n): os.link(tmp_path/d/'0.png', tmp_path/d/f'{i}.png')
    for name,n in (('True',240),('False',40)):
        with zipfile.ZipFile(tmp_path/f'{name}.zip', 'w') as z:
            for i in range(n): z.writestr(f'{i}.png', f.getvalue())
    p = subprocess.run([sys.executable, '-c', MEMORY, str(run), str(tmp_path)], capture_output=True, text=True, env=dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536'))
    grown = {k: float(v) for k,v in (o.split() for o in p.stdout.splitlines())}
    assert len(grown)==5 and grown.pop('planted') > 40, p.stdout+p.stderr
    assert max(grown.values()) < 15, grown
