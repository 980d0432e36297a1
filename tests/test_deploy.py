"What a notebook cannot say about the model folder: every backbone, hostile files, faults of the disk, memory, real cells."
import csv,io,json,os,pickle,resource,shutil,struct,subprocess,sys,zipfile,zlib
from collections import Counter
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
import fuzz_pictures
from malaria_fastai.data import Resizing,ResizeMethod
from malaria_fastai.deploy import (COLUMNS,ContentCheck,ExportFailed,ExtraMissing,Found,MAX_BYTES,PictureNet,Predictor,appearance,cut_piece,export_onnx,
                                   find_pictures,model_card,pack,predict_files,read_folder,write_onnx)
from malaria_fastai.learner import ModelRefused,ModelSpec,load_learner
from malaria_fastai.study import train

needs_onnx = pytest.mark.skipif(not all(map(find_spec, ('onnx','onnxscript','onnxruntime'))), reason="the extra [onnx] is not installed")
STATS = ([.5,.4,.4],[.3,.25,.25])

@pytest.fixture(scope='module')
def run(sample_root, tmp_path_factory):
    "A small trained run on drawn cells, packed with its data."
    out = train(sample_root, tmp_path_factory.mktemp('deploy')/'run', size=32, bs=24, epochs=6, finetune_epochs=0, pretrained='no', cache=False, draws=20)
    pack(out, sample_root)
    if needs_onnx.args[0] is False: export_onnx(out, quantize=True, data=sample_root)
    return out

@pytest.fixture
def folder(run, tmp_path): return Path(shutil.copytree(run/'model', tmp_path/'model'))

@pytest.fixture(scope='module')
def predict(run): return Predictor(run, engine='torch', threads=2)

@pytest.fixture(scope='module')
def files(sample_root): return sorted(sample_root.rglob('*.png'))

# ---- the folder

def test_the_folder_says_what_a_user_needs(run):
    folder,said = read_folder(run)
    need = 'arch classes positive resize normalise temperature threshold unsure content data metrics versions files test_vector notice sha256'.split()
    assert not set(need)-set(said)
    card = (folder/'MODEL_CARD.md').read_text()
    for o in ('Not for diagnosis','drawn by code','By patient','Test:','95 % interval','unsure','not a cell',said['files']['export.pkl']['file']['sha256']): assert o in card, o

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

def test_a_loaded_model_can_be_fine_tuned(run, sample_root):
    from malaria_fastai.cells import read_cells
    from malaria_fastai.data import ImageDataBunch
    from malaria_fastai.learner import weights_hash
    learn = load_learner(run/'model')
    learn.data = ImageDataBunch.from_cells(sample_root, read_cells(sample_root, progress=False)[::6].reset_index(drop=True), size=32,
                                           resize_method=ResizeMethod.SQUISH, bs=24, cache=False)
    learn.freeze()
    before = weights_hash(learn.model)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, slice(1e-4, 1e-3))
    learn.unfreeze()
    assert weights_hash(learn.model)!=before and len(learn.opt.hypers)==3

def test_without_its_data_a_folder_says_that_nothing_is_checked(run, tmp_path):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    (new/'model/model.json').unlink()
    folder = pack(new)
    assert 'no check' in model_card(folder) and Predictor(folder, 'torch').content is None

def test_another_data_set_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="none of the run's cells"): pack(run, tmp_path)

# ---- ONNX

@needs_onnx
@pytest.mark.parametrize('arch', ['resnet18','mobilenet_v2','densenet121','squeezenet1_1','vgg11_bn','mobilenetv2_140'])
def test_onnx_answers_as_torch_does(arch, tmp_path):
    net = PictureNet(ModelSpec(arch, 2).build(), STATS).eval()
    assert write_onnx(net, Resizing((64,64), ResizeMethod.SQUISH), tmp_path/'model.onnx') <= 1e-4

@needs_onnx
def test_a_network_that_cannot_be_exported_is_named_and_leaves_no_file(tmp_path):
    class Moody(torch.nn.Sequential):
        def forward(self, x): return super().forward(x) if x.mean().item()>.5 else -super().forward(x)
    net = PictureNet(Moody(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2)), STATS).eval()
    with pytest.raises(ExportFailed, match='cannot export this network'): write_onnx(net, Resizing((16,16), ResizeMethod.SQUISH), tmp_path/'model.onnx')
    assert not any(tmp_path.iterdir())

def test_normalisation_is_that_of_training(run, predict, files):
    learn = load_learner(run/'model')
    with learn.no_bar(): p = learn.get_preds(dl=learn.dls.test_dl(files[:40]))[0].numpy()
    x = np.stack([predict.rule.crop(predict.rule.fixed(Image.open(o).convert('RGB'))) for o in files[:40]])
    z = predict._ask(x)
    e = np.exp(z-z.max(1, keepdims=True))
    assert abs(e/e.sum(1, keepdims=True) - p).max() < 1e-6

@needs_onnx
def test_same_decisions_by_torch_and_onnx(run, files):
    one,two = (Predictor(run, o)(files) for o in ('torch','onnx'))
    assert abs(one.p-two.p).max() <= 1e-4 and list(one.decision)==list(two.decision) and list(one.path)==list(two.path)
    assert Counter(one.decision)['not a cell'] <= .02*len(files)

@needs_onnx
def test_int8_says_what_it_costs(run, files):
    folder,said = read_folder(run)
    facts = said['files']['model.int8.onnx']
    assert facts['file']['bytes'] < .3*said['files']['export.pkl']['file']['bytes']
    assert {'accuracy','accuracy_float','same_decision','valid_cells'} <= set(facts)
    assert set(Predictor(run, 'int8')(files[:8]).decision) <= {'Parasitized','Uninfected','unsure','not a cell'}

def test_a_missing_extra_is_named(run, tmp_path):
    "In a process that cannot import onnx, the error names the extra, and torch does the predicting."
    code = f"""
import sys
for o in ('onnx','onnxscript','onnxruntime'): sys.modules[o] = None
from malaria_fastai.deploy import ExtraMissing,Predictor,export_onnx
assert Predictor({str(run)!r}).engine=='torch'
try: export_onnx({str(run)!r})
except ExtraMissing as e: print(e)
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'malaria_fastai[onnx]' in out.stdout, out.stderr

@needs_onnx
@pytest.mark.real
def test_200_real_cells_from_file_to_probability(run, nih_root):
    some = sorted(nih_root.rglob('*.png'))[::60][:200]
    one,two = (Predictor(run, o) for o in ('torch','onnx'))
    for o in (one,two): o.content = None
    a,b = one(some),two(some)
    assert len(a)==200 and abs(a.p-b.p).max() <= 1e-4 and list(a.decision)==list(b.decision)

# ---- content

def test_what_is_no_cell_is_refused(predict):
    "On drawn cells; the rates on real ones are in results/refusal.csv."
    rng,disc = np.random.default_rng(0),np.hypot(*np.mgrid[-1:1:90j,-1:1:90j]) < .95
    from sklearn.datasets import load_sample_images
    photos = [Image.fromarray(o) for o in load_sample_images().images]
    noise = [Image.fromarray(rng.integers(0, 256, (90,90,3)).astype(np.uint8)) for _ in range(20)]
    blank = [Image.new('RGB', (90,90), tuple(int(o) for o in rng.integers(0, 256, 3))) for _ in range(20)]
    for kind in (photos*10,noise,blank):
        for some in (kind,[cut_piece(o, disc, 3., rng) for o in kind]):
            assert (predict(some).decision=='not a cell').mean() >= .95

def test_no_answer_has_no_label(predict):
    row = predict(Image.new('RGB', (50,50))).iloc[0]
    assert row.decision=='not a cell' and row.label=='' and np.isnan(row.p) and row.reason

@pytest.mark.parametrize('shape', [(1,1),(1,500),(3,2),(64,64),(700,40)])
def test_any_shape_gets_an_answer(predict, shape):
    for fill in (0, 128, 255): assert len(predict(np.full((*shape,3), fill, np.uint8)))==1

def test_odd_objects_are_one_row(predict):
    odd = [np.zeros((4,4)), np.zeros((0,4,3), np.uint8), Found('x', b''), Found('y', b'GIF89a'), Image.new('RGBA', (5,5)), Image.new('I;16', (5,5))]
    table = predict(odd)
    assert len(table)==len(odd) and (table.decision=='not a cell').all()

# ---- files

def png(w=40, h=30, colour=(200,120,140)):
    f = io.BytesIO()
    Image.new('RGB', (w,h), colour).save(f, 'PNG')
    return f.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def bomb_png():
    "A few KB that claim 30,000 by 30,000 pixels."
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 30000, 30000, 8, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(bytes(10**6)))+chunk(b'IEND', b'')

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
            'large.bmp':b'BM'+bytes(MAX_BYTES+10)}
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

def test_a_spreadsheet_runs_no_name(zoo, predict, tmp_path, monkeypatch):
    d,_ = zoo
    monkeypatch.chdir(d)
    names = ['=cmd|x.png','-rf.png','+1.png','@sum.png']
    predict_files(predict, names, tmp_path/'out.csv', quiet=True)
    assert [o['path'] for o in csv.DictReader(open(tmp_path/'out.csv', newline=''))]==["'"+o for o in names]

def test_the_order_is_that_of_the_input(predict, files):
    some = [str(o) for o in np.random.default_rng(1).permutation(files)[:70]]
    assert list(predict(some).path)==some

def test_answers_do_not_depend_on_the_batch(run, files, predict):
    a,b = predict(files[:50]),Predictor(run, 'torch', bs=7, threads=1)(files[:50])
    assert list(a.decision)==list(b.decision) and abs(a.p-b.p).max() < 1e-5

def test_a_file_that_vanishes_is_one_row(predict, files, tmp_path):
    d = Path(shutil.copytree(files[0].parent, tmp_path/'d'))
    names = sorted(d.glob('*.png'))
    rows = predict.rows([d])
    first = list(islice(rows, predict.bs))
    for o in names[len(names)//2:]: o.unlink()
    rest = list(rows)
    gone = [o for o in rest if 'No such file' in o['reason']]
    assert len(first)+len(rest)==len(names) and len(gone)>=len(names)//2-40

def test_zips_are_read_member_by_member(predict, files, tmp_path):
    good = files[0].read_bytes()
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for i in range(5): z.writestr(f'x/{i}.png', good)
        z.writestr('x/Thumbs.db', b'x')
        z.writestr('x/cut.png', good[:200])
    b = bytearray((tmp_path/'a.zip').read_bytes())
    b[b.index(good)+300] ^= 1 # damages the first member: its checksum tells
    (tmp_path/'a.zip').write_bytes(b)
    rows = list(predict.rows([tmp_path/'a.zip']))
    assert len(rows)==6 and sum(o['reason'].startswith('cannot be read') for o in rows)==2
    before = sorted(tmp_path.rglob('*'))
    assert sorted(tmp_path.rglob('*'))==before

@pytest.mark.parametrize('name', ['../../evil.png','/abs/evil.png','..\\..\\evil.png','C:\\evil.png'])
def test_a_zip_slip_is_refused(name, predict, files, tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(name, files[0].read_bytes())
    rows = list(predict.rows([tmp_path/'a.zip']))
    assert len(rows)==1 and rows[0]['decision']=='not a cell' and 'entry' in rows[0]['reason']
    assert [o.name for o in tmp_path.rglob('*')]==['a.zip']

def test_bombs_are_refused_quickly(predict, tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a.png', bytes(200_000_000))
    (tmp_path/'b.png').write_bytes(bomb_png())
    (tmp_path/'c.zip').write_bytes(b'PK\x03\x04'+os.urandom(500))
    rows = list(predict.rows([tmp_path/'a.zip', tmp_path/'b.png', tmp_path/'c.zip']))
    assert [o['decision'] for o in rows]==['not a cell']*3
    assert 'bomb' in rows[0]['reason'] and 'pixels' in rows[1]['reason'] and 'no zip' in rows[2]['reason']

def test_every_truncation_of_a_picture_is_a_row(predict, tmp_path):
    data = png()
    rows = predict([Found(str(i), data[:i]) for i in range(len(data))])
    assert len(rows)==len(data) and rows.reason.str.startswith('cannot be read').all()

# ---- the disk

def test_the_output_is_whole_or_absent(predict, files, tmp_path):
    for out in (Path('/proc/out.csv'), tmp_path/'file'/'out.csv'):
        (tmp_path/'file').write_text('x')
        with pytest.raises(OSError): predict_files(predict, files[:2], out, quiet=True)
    def broken():
        yield files[0]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): predict_files(predict, (o for o in broken()), tmp_path/'out.csv', quiet=True)
    assert sorted(o.name for o in tmp_path.iterdir())==['file']

def test_a_full_disk_leaves_nothing_half_written(run, files, tmp_path):
    "A limit on the size of files stands in for the full disk: the system refuses to write on, in the same place."
    (tmp_path/'out.csv').write_text('old')
    code = f"""
import resource,signal
from malaria_fastai.deploy import Predictor,predict_files
p = Predictor({str(run)!r}, 'torch', threads=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try: predict_files(p, {str(files[0].parent)!r}, {str(tmp_path/'out.csv')!r}, quiet=True)
except OSError as e: print('refused', e.errno)
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.stdout.startswith('refused'), out.stderr
    assert [o.name for o in tmp_path.iterdir()]==['out.csv'] and (tmp_path/'out.csv').read_text()=='old'

def test_memory_does_not_grow_with_the_number(predict, files):
    "Twenty times as many pictures, taken from an iterator: the peak stays."
    def some(n): return (Found(str(i), np.asarray(Image.new('RGB', (300,300), (i%250,90,90)))) for i in range(n))
    def peak(n):
        for _ in predict.rows(some(n)): pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    first = peak(150)
    assert peak(3000)-first < 60 # MB; 3,000 such pictures are 810 MB

# ---- fuzz

SECONDS = float(os.environ.get('FUZZ_SECONDS', 15))

def test_damaged_pictures_end_in_a_row_or_an_error():
    counts = fuzz_pictures.run(SECONDS)
    print(*(f'{k}: {v}' for k,v in sorted(counts.items())), sep='\n')
    assert not fuzz_pictures.faults(counts)
    kinds = {k.split(' | ')[0] for k in counts}
    assert len(kinds)==len(fuzz_pictures.KINDS) and sum(counts.values()) > 500

@pytest.mark.parametrize('plant', fuzz_pictures.PLANTS)
def test_a_planted_fault_is_found(plant, monkeypatch):
    monkeypatch.setattr(fuzz_pictures, 'HANG', 3)
    assert fuzz_pictures.faults(fuzz_pictures.run(3, plant=plant))
