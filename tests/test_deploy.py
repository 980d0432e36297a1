"What a notebook cannot say about the model folder: every backbone, hostile files, faults of the disk, memory, real cells."
import base64,csv,io,json,os,pickle,shutil,struct,subprocess,sys,zipfile,zlib
from collections import Counter
from hashlib import sha256
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from malaria_fastai import export as deploy
from malaria_fastai.cells import open_picture
from malaria_fastai.cli import main
from malaria_fastai.data import Resizing,ResizeMethod
from malaria_fastai.export import (COLUMNS,ExportFailed,Found,MAX_BYTES,PictureNet,Predictor,appearance,cut_piece,export_onnx,find_pictures,model_card,pack,predict_files,
                                   read_folder,write_onnx)
from malaria_fastai.evaluate import read_predictions
from malaria_fastai.learner import ModelRefused,ModelSpec,load_learner
from malaria_fastai.source import draw_sample
from malaria_fastai.run import train

needs_onnx = pytest.mark.skipif(not all(map(find_spec, ('onnx','onnxscript','onnxruntime'))), reason="the extra [onnx] is not installed")
STATS = ([.5,.4,.4],[.3,.25,.25])

def small_run(root, out):
    "A small run on drawn cells. Its last layer and its predictions are made: nothing hangs on how the training ends."
    train(root, out, arch='squeezenet1_1', size=32, bs=24, epochs=1, finetune_epochs=0, pretrained='no', cache=False, draws=20)
    learn,preds = load_learner(out/'model'),pd.read_csv(out/'predictions.csv')
    cells = [np.asarray(open_picture(root/o).resize((32,32))) for o in preds.path[::6]]
    awake(PictureNet(learn.model, learn.about['data']['stats']), np.stack(cells))
    learn.path = out/'model'
    learn.export('export.pkl', extra=dict(positive='Parasitized'))
    made = np.where(preds.label=='Parasitized', 1.5, -1.5)+2*np.sin(np.arange(len(preds))) # some are wrong, and none is very sure
    preds.assign(p=1/(1+np.exp(-made))).to_csv(out/'predictions.csv', index=False)
    return out

@pytest.fixture(scope='module')
def run(sample_root, tmp_path_factory):
    "Packed with its data, and exported."
    out = small_run(sample_root, tmp_path_factory.mktemp('deploy')/'run')
    pack(out, sample_root, n=200)
    if needs_onnx.args[0] is False: export_onnx(out, quantize=True, data=sample_root)
    return out

@pytest.fixture
def content_at_once(run, monkeypatch):
    "Fitting the content check takes seconds: it is the run's, whatever it should be fitted on. What it is asked to be fitted on."
    asked,check = [],deploy.ContentCheck(**read_folder(run)[1]['content'])
    monkeypatch.setattr(deploy, '_content', lambda root, *rest: asked.append(root) or check)
    return asked

@pytest.fixture
def folder(run, tmp_path): return Path(shutil.copytree(run/'model', tmp_path/'model'))

@pytest.fixture(scope='module')
def predict(run): return Predictor(run, engine='torch', threads=2)

@pytest.fixture(scope='module')
def files(sample_root): return sorted(sample_root.rglob('*.png'))

# ---- the folder

def facts_of(run): return json.loads((run/'metrics.json').read_text('utf-8'))

def test_the_folder_says_what_the_run_says(run):
    (folder,said),found,about = read_folder(run),facts_of(run),load_learner(run/'model').about
    assert said['metrics']=={k: found[k] for k in ('valid','test')} and said['data']==found['data'] and said['split']==found['split']=='patient'
    assert said['classes']==about['data']['classes'] and said['positive']==about['positive']=='Parasitized' and said['arch']==about['spec']['arch']
    assert said['resize']==dict(size=[32,32], method='SQUISH', padding_mode='zeros') and said['normalise']==[list(o) for o in about['data']['stats']]
    assert {'steps','temperature','threshold','unsure','content','versions','notice'} <= set(said)
    for k,v in said['files'].items(): assert v['file']==dict(sha256=sha256((folder/k).read_bytes()).hexdigest(), bytes=(folder/k).stat().st_size)

def test_the_card_says_what_the_run_says(run):
    (folder,said),found = read_folder(run),facts_of(run)
    card = (folder/'MODEL_CARD.md').read_text('utf-8')
    b,d,c = found['test'],found['data'],said['content']['about']
    for o in ('Not for diagnosis','drawn by code','By patient (patient): no patient is on two sides',f"Test: {b['n']:,} cells of {b['patients']} patients",
              f"| accuracy | {b['accuracy']:.3f} ({b['accuracy_ci'][0]:.3f} to {b['accuracy_ci'][1]:.3f}) |",f"| auc | {b['auc']:.3f} ",f"{d['n']:,} pictures of {d['patients']} patients",
              d['hash'],f"between {said['unsure']['low']:.3f} and {said['unsure']['high']:.3f}",f"Of {c['test']:,} test cells {c['test_refused']} ",said['files']['export.pkl']['file']['sha256'],
              f"{d['labels']['Parasitized']/d['n']:.0%} of these cells are Parasitized"): assert o in card, o

def rewritten(folder, **changes):
    "A model folder whose model.json says something else, sealed as `pack` seals it."
    said = json.loads((folder/'model.json').read_text('utf-8'))
    deploy._write_json(folder, {k: v for k,v in (said|changes).items() if v is not ...})
    return folder

@pytest.mark.parametrize('rule,words', [('random','same patients are on both sides'),('random:0/5','same patients are on both sides'),('folder','is not known'),
                                        ('patient:1/3','no patient is on two sides'),('fold:2','no patient is on two sides'),('other set','is not known')])
def test_the_card_claims_no_more_than_the_split_keeps(rule, words, folder):
    assert words in model_card(rewritten(folder, split=rule)).split('## Split')[1].split('## Numbers')[0]

def test_a_card_for_xrays_does_not_speak_of_blood(folder):
    data = dict(read_folder(folder)[1]['data'], drawn=False, labels=dict(NORMAL=180, PNEUMONIA=540))
    card = model_card(rewritten(folder, refused_as='not such a picture', classes=['NORMAL','PNEUMONIA'], positive='PNEUMONIA', data=data))
    assert '75% of these pictures are PNEUMONIA' in card
    assert not any(o in card for o in ('blood','cell','stain','microscope'))

def changed_run(run, to, **changes):
    "A copy of a run whose metrics say something else."
    new = Path(shutil.copytree(run, to))
    (new/'metrics.json').write_text(json.dumps(facts_of(run)|changes), 'utf-8')
    return new

def test_a_run_of_drawn_random_folds_can_be_packed(run, sample_root, tmp_path):
    "Every patient is on both sides: no cell may be left out for that."
    new = changed_run(run, tmp_path/'run', split='random:0/5')
    preds = pd.read_csv(new/'predictions.csv')
    every = pd.DataFrame([dict(path=o.relative_to(sample_root).as_posix(), patient=deploy.identity(o.name)['patient']) for o in sorted(sample_root.rglob('*.png'))])
    more = [dict(preds.iloc[-1], path=o.path, patient=o.patient) for o in every.groupby('patient').head(3).itertuples() if o.path not in set(preds.path)]
    pd.concat([preds, pd.DataFrame(more)]).to_csv(new/'predictions.csv', index=False)
    assert set(pd.read_csv(new/'predictions.csv').patient)==set(every.patient)
    assert read_folder(pack(new, sample_root, n=60))[1]['content']['about']['cells'] > 100

@needs_onnx
def test_packing_again_keeps_what_belongs_to_the_network(run, sample_root, tmp_path):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    before = read_folder(new)[1]['files']
    assert len(before)==3
    pack(new, risk=.1)
    assert read_folder(new)[1]['files']==before and 'model.int8.onnx' in (new/'model/MODEL_CARD.md').read_text('utf-8')
    with pytest.raises(FileNotFoundError): export_onnx(new, quantize=True, data=tmp_path)
    for o in ('torch','onnx','int8'): Predictor(new, o)
    learn = load_learner(new/'model')
    with torch.no_grad(): next(learn.model.parameters()).add_(.1)
    learn.path = new/'model'
    learn.export('export.pkl', extra=dict(positive='Parasitized'))
    pack(new)
    assert list(read_folder(new)[1]['files'])==['export.pkl'] and not list((new/'model').glob('*.onnx')) # they answer as another network does

def saved_again(net, rule, file, *rest):
    "Stands in for an export, which takes seconds: the same network in other bytes."
    import onnx
    model = onnx.load(str(file))
    model.producer_name += ', again'
    onnx.save(model, str(file))
    return 0.

@needs_onnx
def test_an_export_that_fails_half_way_leaves_a_folder_that_works(run, sample_root, tmp_path, monkeypatch):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(deploy, 'write_onnx', saved_again)
    monkeypatch.setattr(deploy, '_write_int8', full)
    with pytest.raises(OSError): export_onnx(new, quantize=True, data=sample_root)
    for o in ('torch','onnx','int8'): Predictor(new, o)

@pytest.mark.parametrize('damage', [b'{', b'[]', b'['*200_000, b'\xff'], ids=['cut','list','deep','bytes'])
def test_a_damaged_description_can_be_written_anew(damage, run, sample_root, tmp_path, content_at_once):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    (new/'model/model.json').write_bytes(damage)
    with pytest.raises(ModelRefused, match='with its data'): read_folder(new)
    with pytest.raises(ModelRefused, match='with its data'): pack(new) # it would lose the content check without a word
    assert not content_at_once and read_folder(pack(new, sample_root))[1]['content'] and content_at_once==[sample_root]

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
        new['sha256'] = deploy._seal(new)
        (folder/'model.json').write_text(json.dumps(new), 'utf-8')
        with pytest.raises(ModelRefused, match=key): Predictor(folder, 'torch')

def test_a_network_for_something_else_is_refused(folder):
    "model.json speaks of three classes, and of files that onnxruntime cannot open."
    with pytest.raises(ModelRefused, match='3 classes'): Predictor(rewritten(folder, classes=['Parasitized','Uninfected','Other']), 'torch')

@needs_onnx
def test_a_network_that_onnxruntime_cannot_open_is_refused(folder):
    (folder/'model.onnx').write_bytes(b'no network')
    files = read_folder(folder)[1]['files']|{'model.onnx': dict(file=deploy._file_facts(folder/'model.onnx'))}
    with pytest.raises(ModelRefused, match='model.onnx: it cannot be opened'): Predictor(rewritten(folder, files=files), 'onnx')

def test_no_number_is_no_answer(run, files):
    predict = Predictor(run, 'torch')
    predict._ask = lambda x: np.full((len(x),2), np.nan, np.float32)
    table = predict(files[:3])
    assert (table.decision=='not a cell').all() and table.reason.str.contains('no number').all()

@needs_onnx
def test_files_that_training_left_out_are_left_out_here_too(run, sample_root, tmp_path, monkeypatch):
    "`on_bad='skip'`: half of the files beside the training cells are damaged, and chance must not decide whether that hurts."
    root,known = Path(shutil.copytree(sample_root, tmp_path/'sample')),set(pd.read_csv(run/'predictions.csv').path)
    for o in [o for o in sorted(root.rglob('*.png')) if o.relative_to(root).as_posix() not in known][::2]: o.write_bytes(b'cut')
    new,given = Path(shutil.copytree(run, tmp_path/'run')),[]
    def write(source, target, pictures):
        given.append(pictures)
        shutil.copy(run/'model/model.int8.onnx', target)
    monkeypatch.setattr(deploy, 'write_onnx', saved_again)
    monkeypatch.setattr(deploy, '_write_int8', write)
    pack(new, root, n=40)
    export_onnx(new, quantize=True, data=root)
    assert read_folder(new)[1]['content']['about']['pieces'] and 100 < len(given[0]) < 156 # of 256

def test_the_rate_on_the_card_counts_cells_without_numbers(run, sample_root, tmp_path):
    root,preds = Path(shutil.copytree(sample_root, tmp_path/'sample')),pd.read_csv(run/'predictions.csv')
    test = list(preds.path[preds.split=='test'])[:40]
    for o in test[:20]: Image.new('RGB', (90,90)).save(root/o)
    new = Path(shutil.copytree(run, tmp_path/'run'))
    preds[(preds.split!='test') | preds.path.isin(test)].to_csv(new/'predictions.csv', index=False)
    about = read_folder(pack(new, root, n=40))[1]['content']['about']
    assert about['test']==40 and about['test_refused']==(Predictor(new, 'torch')([root/o for o in test]).decision=='not a cell').sum() >= 20

def test_the_test_vector_can_be_followed(run, predict):
    v = predict.said['test_vector']
    im = open_picture(io.BytesIO(base64.b64decode(v['png'])))
    x,numbers = predict.rule.crop(predict.rule.fixed(im)),appearance(im)
    assert all(x[i,j].tolist()==rgb for i,j,rgb in v['pixels']) and int(x.sum())==v['pixel_sum']
    assert numbers.keys()==v['numbers'].keys() and all(abs(numbers[k]-o) < 1e-5 for k,o in v['numbers'].items())
    assert abs(predict._ask(x[None])[0]-v['logits']).max() < 1e-4

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
    def trained(lr):
        "Which layer groups a cycle changes."
        was = [[p.detach().clone() for p in g] for g in groups]
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, lr)
        return [any(not torch.equal(a, b) for a,b in zip(old, new)) for old,new in zip(was, groups)]
    groups = [[p for p in g if p.ndim > 1] for g in learn.splitter(learn.model)] # weights of convolutions and layers: those of batch norm always learn
    learn.freeze()
    before = weights_hash(learn.model)
    assert trained(slice(1e-4, 1e-3))==[False,False,True]
    learn.unfreeze()
    assert trained(slice(1e-4, 1e-3))==[True,True,True] and weights_hash(learn.model)!=before
    rates = [h['lr'] for h in learn.opt.hypers]
    assert len(rates)==3 and rates[0] < rates[1] < rates[2]

def test_without_its_data_a_folder_says_that_nothing_is_checked(run, tmp_path):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    (new/'model/model.json').unlink()
    folder = pack(new)
    assert 'no check' in model_card(folder) and Predictor(folder, 'torch').content is None

def test_another_data_set_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="none of the run's cells"): pack(run, tmp_path)

# ---- ONNX

def awake(net, cells):
    "A network as a good training leaves one: batch norm knows the cells, and logits spread. Others give next to the same answer to everything."
    for m in net.modules():
        if isinstance(m, (torch.nn.BatchNorm1d,torch.nn.BatchNorm2d)):
            m.reset_running_stats()
            m.momentum = None
    x = torch.from_numpy(cells[:32])
    with torch.no_grad():
        net.train()(x)
        z,last = net.eval()(x),[o for o in net.modules() if isinstance(o, torch.nn.Linear)][-1]
        last.weight.mul_(k := 2/max((z[:,0]-z[:,1]).std().item(), 1e-6))
        if last.bias is not None: last.bias.mul_(k).sub_(k*z.mean(0))
    return net

def alike(one, two, said, apart=1e-4):
    "Whether two tables say the same of the same pictures; where p is as near to a bound, rounding may decide."
    bounds = said['threshold'],said['unsure']['low'],said['unsure']['high']
    clear = np.all([~(abs(one.p-o) <= apart) for o in bounds], 0)
    close = (abs(one.p-two.p) <= apart) | (one.p.isna() & two.p.isna())
    return list(one.path)==list(two.path) and close.all() and (one.decision==two.decision)[clear].all()

def test_alike_sees_what_differs():
    said = dict(threshold=.5, unsure=dict(low=.3, high=.7))
    one = pd.DataFrame(dict(path=['a','b','c'], p=[.1, .3, np.nan], decision=['no','unsure','not a cell']))
    assert alike(one, one, said) and alike(one, one.assign(decision=['no','no','not a cell']), said)
    for o in (dict(p=[.11, .3, np.nan]),dict(p=[.1, .3, .2]),dict(path=['a','c','b']),dict(decision=['yes','unsure','not a cell']),dict(decision=['no','unsure','no'])):
        assert not alike(one, one.assign(**o), said)

NETWORKS = {o: ModelSpec(o, 2) for o in ('resnet18','mobilenet_v2','densenet121','squeezenet1_1','vgg11_bn','mobilenetv2_140','tf_efficientnet_lite0')}
NETWORKS |= dict(own=ModelSpec('shufflenet_v2_x0_5', 2, (), kind='own'), flat=ModelSpec('squeezenet1_1', 2, (), 0., kind='flat'),
                 dense=ModelSpec('squeezenet1_1', 2, (64,), .4, kind='dense', log_softmax=True))

@needs_onnx
@pytest.mark.parametrize('name', [pytest.param(o, marks=() if o=='flat' else pytest.mark.slow) for o in NETWORKS])
def test_onnx_answers_as_torch_does(name, files, tmp_path):
    "Logits, on cells that the export has not seen, by onnxruntime itself."
    import onnxruntime
    cells = np.stack([np.asarray(open_picture(o).resize((64,64))) for o in files[::15]])
    net = awake(PictureNet(NETWORKS[name].build(), STATS), cells)
    assert write_onnx(net, Resizing((64,64), ResizeMethod.SQUISH), tmp_path/'model.onnx') <= 1e-4
    z = onnxruntime.InferenceSession(str(tmp_path/'model.onnx'), providers=['CPUExecutionProvider']).run(None, dict(pictures=cells))[0]
    with torch.inference_mode(): want = net(torch.from_numpy(cells)).numpy()
    assert np.ptp(want[:,0]-want[:,1]) > 1 and abs(z-want).max() < 1e-3

class Sure(torch.nn.Module):
    "A network whose answers are all 0 or 1, and whose logits say what it really computed."
    def __init__(self, off=0.):
        super().__init__()
        self.off = off
    def forward(self, x):
        m = x.mean((1,2,3))*20
        return torch.stack([1000+m+self.off, -1000-m], 1)

@needs_onnx
def test_a_difference_that_probabilities_hide_is_found(monkeypatch, tmp_path):
    rule,file = Resizing((16,16), ResizeMethod.SQUISH),tmp_path/'model.onnx'
    assert write_onnx(PictureNet(Sure()).eval(), rule, file)==0
    monkeypatch.setattr(deploy, '_exportable', lambda net: PictureNet(Sure(2.)).eval())
    with pytest.raises(ExportFailed, match='in a logit'): write_onnx(PictureNet(Sure()).eval(), rule, tmp_path/'other.onnx')
    assert not (tmp_path/'other.onnx').exists()

@needs_onnx
def test_a_difference_is_looked_for_on_cells_and_with_the_temperature(run, sample_root, tmp_path, monkeypatch):
    seen = []
    def write(net, rule, file, pictures, temperature):
        seen.append((pictures is None or pictures.shape, temperature))
        return 0.
    monkeypatch.setattr(deploy, 'write_onnx', write)
    new = Path(shutil.copytree(run, tmp_path/'run'))
    export_onnx(new)
    export_onnx(new, data=sample_root)
    t = read_folder(new)[1]['temperature']
    assert seen==[(True,t),((16,32,32,3),t)]

def test_the_temperature_counts_in_a_difference():
    ask,x = (lambda x: np.float32([[.001, 0]]*len(x))),np.zeros((3,4,4,3), np.uint8)
    class Net(torch.nn.Module):
        def forward(self, x): return torch.zeros(len(x), 2)
    p,z = zip(*(deploy._differences(Net(), ask, x, t) for t in (1., .1)))
    assert 9 < p[1]/p[0] < 11 and z[0]==z[1]

def test_same_decision_means_what_the_predictor_says(sample_root, files):
    "A class or unsure, calibrated: made answers of two networks to eight cells."
    said = dict(classes=['Parasitized','Uninfected'], positive='Parasitized', threshold=.5, unsure=dict(low=.3, high=.7), temperature=2.)
    def made(*p): return lambda x: np.float32([[2*np.log(o/(1-o)), 0] for o in p])
    valid = pd.DataFrame(dict(path=[o.relative_to(sample_root).as_posix() for o in files[:8]], label=['Parasitized']*4+['Uninfected']*4))
    asks = made(.9, .8, .4, .2, .1, .2, .6, .9),made(.9, .6, .6, .2, .1, .2, .4, .8) # the second is not sure of one, and turns two that are unsure
    facts = deploy._loss_of_int8(asks, sample_root, valid, Resizing((8,8), ResizeMethod.SQUISH), said)
    assert facts['valid_cells']==8 and facts['same_decision']==7/8 and (facts['accuracy_float'],facts['accuracy'])==(4/8,6/8)
    assert abs(facts['largest_difference']-.2) < 1e-6

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
    assert abs(e/e.sum(1, keepdims=True) - p).max() < 1e-4

@needs_onnx
def test_same_decisions_by_torch_and_onnx(folder, files):
    "Bounds are made: as many cells below, between and above."
    some = files[::12]
    p = Predictor(rewritten(folder, content=None, temperature=1), 'torch')(some).p
    low,threshold,high = (float(o) for o in p.quantile([.33, .5, .67]))
    rewritten(folder, threshold=threshold, unsure=dict(low=low, high=high))
    one,two = (Predictor(folder, o) for o in ('torch','onnx'))
    a,b = one(some),two(some)
    assert alike(a, b, one.said) and set(a.decision)=={'Parasitized','Uninfected','unsure'}

def test_no_limit_lies_on_a_value(run):
    "Cells that set the band are on its two sides by as much."
    preds,(_,said) = read_predictions(run/'predictions.csv'),read_folder(run)
    p = preds.p[preds.split=='valid'].to_numpy()
    p = 1/(1+np.exp(-np.log(p/(1-p))/said['temperature']))
    high,sure = said['unsure']['high'],np.maximum(p, 1-p)
    assert high > .5 and np.isclose(sure[sure > high].min()-high, high-sure[sure < high].max())

def judged(*sure):
    "Predictions by how sure each is; a minus stands before the wrong ones."
    return pd.DataFrame(dict(label=['Uninfected' if o < 0 else 'Parasitized' for o in sure], p=np.abs(sure)))

def test_the_band_is_the_narrowest_that_keeps_the_risk():
    "Errors count as a share of the cells that are decided, not of all; and half of them are decided, whatever the errors."
    cells = judged(.95, .9, .85, -.8, .75, -.7, .65, .6, -.57, -.53)
    for risk,high in ((.22, .725),(.26, .585),(.34, .55),(.41, .5),(.05, .725)): # 1 of 5, 2 of 8, 3 of 9, all 10, and none is right enough
        assert np.allclose(deploy.choose_band(cells, 'Parasitized', risk), (1-high, high)), risk
    assert np.allclose(deploy.choose_band(judged(-.9, -.8, -.7, .6), 'Parasitized'), (.25, .75))

@needs_onnx
def test_int8_says_what_it_costs(run, files):
    folder,said = read_folder(run)
    facts = said['files']['model.int8.onnx']
    assert facts['file']['bytes'] < .4*said['files']['export.pkl']['file']['bytes'] # a quarter, and what names its parts
    assert {'accuracy','accuracy_float','same_decision','valid_cells'} <= set(facts)
    assert set(Predictor(run, 'int8')(files[:8]).decision) <= {'Parasitized','Uninfected','unsure','not a cell'}

def test_a_missing_extra_is_named(run, monkeypatch):
    "Where onnx cannot be imported, the error names the extra, and torch does the predicting."
    for o in ('onnx','onnxscript','onnxruntime'): monkeypatch.setitem(sys.modules, o, None)
    assert Predictor(run).engine=='torch'
    with pytest.raises(deploy.ExtraMissing, match=r'malaria_fastai\[onnx\]'): export_onnx(run)

@needs_onnx
@pytest.mark.real
def test_200_real_cells_from_file_to_probability(run, nih_root):
    some = sorted(nih_root.rglob('*.png'))[::60][:200]
    one,two = (Predictor(run, o) for o in ('torch','onnx'))
    for o in (one,two): o.content = None
    a,b = one(some),two(some)
    assert len(a)==200 and a.p.notna().all() and alike(a, b, one.said)

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

def test_odd_objects_are_one_row(predict, files):
    cut = Image.open(io.BytesIO(files[0].read_bytes()[:2000])) # opened, not loaded yet
    closed = Image.open(files[0])
    closed.close()
    odd = [np.zeros((4,4)), np.zeros((0,4,3), np.uint8), Found('x', b''), Found('y', b'GIF89a'), Image.new('RGB', (0,5)), Image.new('F', (40,40), 1.), cut, closed, None, 7, b'', {}, object()]
    table = predict(odd)
    assert len(table)==len(odd) and (table.decision=='not a cell').all() and table.reason.str.startswith('cannot be read').all()
    assert [len(predict(o)) for o in (None, 7, b'', np.zeros((4,4)))]==[1]*4

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
        with pytest.raises(BadPicture, match='long and narrow'): deploy._prepared(im.resize(size), Resizing((32,32), ResizeMethod.CROP))
    assert deploy._prepared(im, Resizing((32,32), ResizeMethod.SQUISH)).shape==(32,32,3)
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
    for names in (['+ve','-ve'],['=HYPERLINK("x")','@x'],['a;=cmd','\x1b[31m\n=x']):
        predict_files(predict := Predictor(rewritten(folder, classes=names, positive=names[0], refused_as='=1+1'), 'torch'), [*files[::40],'gone.png'], tmp_path/'out.csv', quiet=True)
        lines = (tmp_path/'out.csv').read_text('utf-8').splitlines()
        assert len(lines)==len(files[::40])+2 and all(map(is_harmless, lines)) and '\x1b' not in ''.join(lines)

def test_each_picture_that_fits_a_pattern_is_one_row(predict, files, tmp_path, monkeypatch):
    (tmp_path/'cells/a/b').mkdir(parents=True)
    for o in ('cells/1.png','cells/a/2.png','cells/a/b/3.png'): shutil.copy(files[0], tmp_path/o)
    (tmp_path/'cells/a/notes.txt').write_text('x')
    monkeypatch.chdir(tmp_path)
    for o in ('cells/**','./cells/**','**','./**','cells/','*',str(tmp_path/'cells/**'),'cells/**/*.png','*/**'):
        assert sorted(os.path.relpath(r['path'], tmp_path) for r in predict.rows([o]))==['cells/1.png','cells/a/2.png','cells/a/b/3.png'], o
    assert [o.reason for o in find_pictures(['*.jpg','a\0*'])]==['no file fits this pattern','']

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
    for path,n in (('d',2),('d/*.png',2),('a.zip',3),('bad.zip',1),('*',6),('d/1.png',1),('gone.png',1)): assert deploy._how_many(str(tmp_path/path))==n, path

# ---- the command

def said(capsys, *argv):
    "What a command prints, and its exit status."
    status = main(list(map(str, argv)))
    return (*capsys.readouterr(),status)

def test_the_command_predicts_patterns_and_names_with_a_dash(run, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for o in ('a1.png','a2.png','-o.png','b1.png'): shutil.copy(files[0], o)
    Path('d').mkdir()
    for o in ('d/1.png','d/x.txt','d/none',b'd/n.\xff',b'd/\xff.png'): shutil.copy(files[0], os.fsdecode(o))
    out,err,status = said(capsys, 'predict', run, '-o', 'out.csv', '--engine', 'torch', '--', 'a*.png', '-o.png', 'd', 'gone.png')
    rows = list(csv.DictReader(open('out.csv', newline='', encoding='utf-8')))
    assert status==0 and [o['path'] for o in rows]==['a1.png','a2.png',"'-o.png",'d/1.png','d/\\udcff.png','gone.png'] and rows[-1]['reason']=='cannot be read: No such file or directory'
    assert 'left out: 1 .txt, 1 no extension, 1 other endings' in out and 'Table: out.csv' in out and '1 not a cell' in out

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

@pytest.mark.parametrize('words', [['-o','there'],['-o','gone.png/out.csv'],['-o','there','--engine','onnx'],['--bs','0','-o','x.csv'],['--engine','cat','-o','x.csv'],[]])
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

@needs_onnx
def test_the_command_exports(run, sample_root, tmp_path, capsys, monkeypatch, content_at_once):
    "Over a run that has all files already: none is lost, whatever is asked for and fails. The networks are not made anew."
    new,written = Path(shutil.copytree(run, tmp_path/'run')),[]
    def write_int8(source, target, pictures):
        written.append(pictures.shape)
        shutil.copy(run/'model/model.int8.onnx', target)
    monkeypatch.setattr(deploy, 'write_onnx', saved_again)
    monkeypatch.setattr(deploy, '_write_int8', write_int8)
    files = lambda: list(read_folder(new)[1]['files'])
    assert files()==['export.pkl','model.onnx','model.int8.onnx']
    _,err,status = said(capsys, 'export', new, '--quantize')
    assert status==2 and '--data' in err and err.count('\n')==1 and not written
    out,_,status = said(capsys, 'export', new, '--onnx')
    assert status==0 and files()==['export.pkl','model.onnx','model.int8.onnx'] and all(o in out for o in (*files(),'MODEL_CARD.md','model.json'))
    for o in ('torch','onnx','int8'): Predictor(new, o)
    (new/'model/model.int8.onnx').unlink()
    _,_,status = said(capsys, 'export', new, '--quantize', '--data', sample_root)
    assert status==0 and files()==['export.pkl','model.onnx','model.int8.onnx'] and written==[(256,32,32,3)] and content_at_once==[sample_root]
    for o in (new/'model').glob('*.onnx'): o.unlink()
    out,_,status = said(capsys, 'export', new)
    assert status==0 and files()==['export.pkl'] and 'onnx' not in out
    _,err,status = said(capsys, 'export', tmp_path)
    assert status==2 and err.count('\n')==1

# ---- order, batches, zips

def test_the_order_is_that_of_the_input(predict, files):
    some = [str(o) for o in np.random.default_rng(1).permutation(files)[:70]]
    assert list(predict(some).path)==some

def test_answers_do_not_depend_on_the_batch(run, files, predict):
    assert alike(predict(files[:50]), Predictor(run, 'torch', bs=7, threads=1)(files[:50]), predict.said)

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
    for name,why in {'a.zip':'bomb','b.png':'pixels','c.png':'5000 x 3000 pixels are more than','d.zip':'no zip'}.items():
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
    assert 'out.csv' in e.value.filename and [o.name for o in (tmp_path/'d').iterdir()]==['1.png']

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
from malaria_fastai.export import Found,Predictor,predict_files
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

