"What a notebook cannot say about writing a model folder: the card, packing again, every backbone, damaged folders."
import base64,io,json,shutil,sys
from hashlib import sha256
from importlib.util import find_spec
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from malaria_fastai import export as E
from malaria_fastai.cells import Resizing,ResizeMethod,open_picture
from malaria_fastai.cli import main
from malaria_fastai.evaluate import read_predictions
from malaria_fastai.export import choose_band,model_card,pack
from malaria_fastai.extra import onnx as O
from malaria_fastai.extra import quantize as Q
from malaria_fastai.extra.onnx import ExportFailed,export_onnx,write_onnx
from malaria_fastai.extra.quantize import quantize
from malaria_fastai.files import ModelRefused
from malaria_fastai.backbone import ModelSpec,PictureNet
from malaria_fastai.learner import load_learner
from malaria_fastai.predict import ContentCheck,Predictor,_decide,appearance,read_folder
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
    called = np.where(made>0, 'Parasitized', 'Uninfected')
    preds.assign(p=1/(1+np.exp(-made)), pred=called).to_csv(out/'predictions.csv', index=False)
    return out

@pytest.fixture(scope='session')
def exported_run(sample_root, made_once):
    "The small run, packed with its data, and exported. Do not write into it."
    def make(out):
        shutil.copytree(made_once('small_run', partial(small_run, sample_root)), out)
        pack(out, sample_root, n=200)
        if needs_onnx.args[0] is False:
            export_onnx(out, data=sample_root)
            quantize(out, sample_root)
    return made_once('exported_run', make)

@pytest.fixture(scope='module')
def run(exported_run, tmp_path_factory):
    "A copy for the tests of one file."
    return Path(shutil.copytree(exported_run, tmp_path_factory.mktemp('export')/'run'))

@pytest.fixture
def content_at_once(run, monkeypatch):
    "Fitting the content check takes seconds: it is the run's, whatever it should be fitted on. What it is asked to be fitted on."
    asked,check = [],ContentCheck(**read_folder(run)[1]['content'])
    monkeypatch.setattr(E, '_fitted_content', lambda root, *rest: asked.append(root) or check)
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
    E.write_folder(folder, {k: v for k,v in (said|changes).items() if v is not ...})
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
    cells = pd.read_csv(new/'split.csv')
    cells.loc[cells.groupby('patient').head(3).index, 'split'] = 'test'
    cells.to_csv(new/'split.csv', index=False)
    assert set(cells.patient[cells.split=='test'])==set(cells.patient)
    assert read_folder(pack(new, sample_root, n=60))[1]['content']['about']['cells'] > 100

@needs_onnx
def test_packing_again_keeps_what_belongs_to_the_network(run, sample_root, tmp_path):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    before = read_folder(new)[1]['files']
    assert len(before)==3
    pack(new, risk=.1)
    assert read_folder(new)[1]['files']==before and 'model.int8.onnx' in (new/'model/MODEL_CARD.md').read_text('utf-8')
    with pytest.raises(FileNotFoundError): export_onnx(new, data=tmp_path)
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
    monkeypatch.setattr(O, 'write_onnx', saved_again)
    monkeypatch.setattr(Q, '_write_int8', full)
    export_onnx(new)
    with pytest.raises(OSError): quantize(new, sample_root)
    for o in ('torch','onnx','int8'): Predictor(new, o)

@pytest.mark.parametrize('damage', [b'{', b'[]', b'['*200_000, b'\xff'], ids=['cut','list','deep','bytes'])
def test_a_damaged_description_can_be_written_anew(damage, run, sample_root, tmp_path, content_at_once):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    (new/'model/model.json').write_bytes(damage)
    with pytest.raises(ModelRefused, match='with its data'): read_folder(new)
    with pytest.raises(ModelRefused, match='with its data'): pack(new) # it would lose the content check without a word
    assert not content_at_once and read_folder(pack(new, sample_root))[1]['content'] and content_at_once==[sample_root]

@needs_onnx
def test_files_that_training_left_out_are_left_out_here_too(run, sample_root, tmp_path, monkeypatch):
    "`on_bad='skip'`: half of the files beside the training cells are damaged, and chance must not decide whether that hurts."
    root,known = Path(shutil.copytree(sample_root, tmp_path/'sample')),set(pd.read_csv(run/'predictions.csv').path)
    for o in [o for o in sorted(root.rglob('*.png')) if o.relative_to(root).as_posix() not in known][::2]: o.write_bytes(b'cut')
    new,given = Path(shutil.copytree(run, tmp_path/'run')),[]
    def write(source, target, pictures):
        given.append(pictures)
        shutil.copy(run/'model/model.int8.onnx', target)
    monkeypatch.setattr(O, 'write_onnx', saved_again)
    monkeypatch.setattr(Q, '_write_int8', write)
    pack(new, root, n=40)
    quantize(new, root)
    assert 40 <= read_folder(new)[1]['content']['about']['cells'] < 80 and 100 < len(given[0]) < 156 # of 256

def test_the_rate_on_the_card_counts_cells_without_numbers(run, sample_root, tmp_path):
    root,cells = Path(shutil.copytree(sample_root, tmp_path/'sample')),pd.read_csv(run/'split.csv')
    test = list(cells.path[cells.split=='test'])[:40]
    for o in test[:20]: Image.new('RGB', (90,90)).save(root/o)
    new = Path(shutil.copytree(run, tmp_path/'run'))
    cells[(cells.split!='test') | cells.path.isin(test)].to_csv(new/'split.csv', index=False)
    about = read_folder(pack(new, root, n=40))[1]['content']['about']
    assert about['test']==40 and about['test_refused']==(Predictor(new, 'torch')([root/o for o in test]).decision=='not a cell').sum() >= 20

def test_the_test_vector_can_be_followed(run, predict):
    v = predict.facts['test_vector']
    im = open_picture(io.BytesIO(base64.b64decode(v['png'])))
    x,numbers = predict.rule.crop(predict.rule.fixed(im)),appearance(im)
    assert all(x[i,j].tolist()==rgb for i,j,rgb in v['pixels']) and int(x.sum())==v['pixel_sum']
    assert numbers.keys()==v['numbers'].keys() and all(abs(numbers[k]-o) < 1e-5 for k,o in v['numbers'].items())
    assert abs(predict._ask(x[None])[0]-v['logits']).max() < 1e-4

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

def test_a_threshold_that_is_no_record_is_refused(run, tmp_path):
    "A plain number in model.json does not say which p it belongs to; neither does what was chosen for the other class."
    new = Path(shutil.copytree(run, tmp_path/'run'))
    for odd in (.3, dict(value=.3), dict(p_is='raw', value=.3, kind='temperature')):
        rewritten_facts = dict(read_folder(new)[1], threshold_from=odd)
        (new/'model/model.json').write_text(json.dumps(rewritten_facts | dict(sha256=E.seal(rewritten_facts))), 'utf-8')
        with pytest.raises(ValueError, match='belongs to one p'): pack(new)
        for use in (pack, Predictor):
            with pytest.raises(ValueError, match='belongs to one p'): use(new, threshold=odd)
    with pytest.raises(ValueError, match='chosen for Uninfected'): Predictor(new, threshold=dict(p_is='raw', value=.3, positive='Uninfected'))

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
    "Whether two tables say the same of the same pictures; where p is as near to a bound, rounding may decide. A temperature divides logits, and their rounding."
    apart /= min(1, said.get('temperature') or 1)
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
    monkeypatch.setattr(O, '_exportable', lambda net: PictureNet(Sure(2.)).eval())
    with pytest.raises(ExportFailed, match='in a logit'): write_onnx(PictureNet(Sure()).eval(), rule, tmp_path/'other.onnx')
    assert not (tmp_path/'other.onnx').exists()

@needs_onnx
def test_a_difference_is_looked_for_on_cells_and_with_the_temperature(run, sample_root, tmp_path, monkeypatch):
    seen = []
    def write(net, rule, file, pictures, temperature):
        seen.append((pictures is None or pictures.shape, temperature))
        return 0.
    monkeypatch.setattr(O, 'write_onnx', write)
    new = Path(shutil.copytree(run, tmp_path/'run'))
    export_onnx(new)
    export_onnx(new, data=sample_root)
    t = read_folder(new)[1]['temperature']
    assert seen==[(True,t),((16,32,32,3),t)]

def test_the_temperature_counts_in_a_difference():
    ask,x = (lambda x: np.float32([[.001, 0]]*len(x))),np.zeros((3,4,4,3), np.uint8)
    class Zero(torch.nn.Module):
        def forward(self, x): return torch.zeros(len(x), 2)
    p,z = zip(*(O._apart(PictureNet(Zero()), ask, x, t) for t in (1., .1)))
    assert 9 < p[1]/p[0] < 11 and z[0]==z[1]

def test_same_decision_means_what_the_predictor_says():
    "A class or unsure: made answers of two networks to eight cells."
    said = dict(classes=['Parasitized','Uninfected'], positive='Parasitized', threshold=.5, unsure=dict(low=.3, high=.7))
    def made(*p): return pd.DataFrame([dict(zip(('pred','decision'), _decide(o, said)), p=o) for o in p])
    labels = np.array(['Parasitized']*4+['Uninfected']*4)
    facts = Q._cost(made(.9, .8, .4, .2, .1, .2, .6, .9), made(.9, .6, .6, .2, .1, .2, .4, .8), labels) # the second is not sure of one, and turns two that are unsure
    assert facts['valid_cells']==8 and facts['same_decision']==7/8 and (facts['accuracy_float'],facts['accuracy'])==(4/8,6/8)
    assert abs(facts['largest_difference']-.2) < 1e-6

@needs_onnx
def test_a_network_that_cannot_be_exported_is_named_and_leaves_no_file(tmp_path):
    class Moody(torch.nn.Sequential):
        def forward(self, x): return super().forward(x) if x.mean().item()>.5 else -super().forward(x)
    net = PictureNet(Moody(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2)), STATS).eval()
    with pytest.raises(ExportFailed, match='cannot export this network. The exporter says: '): write_onnx(net, Resizing((16,16), ResizeMethod.SQUISH), tmp_path/'model.onnx')
    assert not any(tmp_path.iterdir())

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
        assert np.allclose(choose_band(cells, 'Parasitized', risk), (1-high, high)), risk
    assert np.allclose(choose_band(judged(-.9, -.8, -.7, .6), 'Parasitized'), (.25, .75))

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
    with pytest.raises(ImportError, match=r'malaria_fastai\[onnx\]'): export_onnx(run)

# ---- the command

def said(capsys, *argv):
    "What a command prints, and its exit status."
    status = main(list(map(str, argv)))
    return (*capsys.readouterr(),status)

@needs_onnx
def test_the_command_exports(run, sample_root, tmp_path, capsys, monkeypatch, content_at_once):
    "Over a run that has all files already: none is lost, whatever is asked for and fails. The networks are not made anew."
    new,written = Path(shutil.copytree(run, tmp_path/'run')),[]
    def write_int8(source, target, pictures):
        written.append(pictures.shape)
        shutil.copy(run/'model/model.int8.onnx', target)
    monkeypatch.setattr(O, 'write_onnx', saved_again)
    monkeypatch.setattr(Q, '_write_int8', write_int8)
    files = lambda: list(read_folder(new)[1]['files'])
    assert files()==['export.pkl','model.onnx','model.int8.onnx']
    _,err,status = said(capsys, 'export', new, '--quantize')
    assert status==2 and '--data' in err and err.count('\n')==1 and not written
    out,_,status = said(capsys, 'export', new, '--onnx')
    assert status==0 and files()==['export.pkl','model.onnx','model.int8.onnx'] and str(new/'model') in out
    for o in ('torch','onnx','int8'): Predictor(new, o)
    (new/'model/model.int8.onnx').unlink()
    _,_,status = said(capsys, 'export', new, '--quantize', '--data', sample_root)
    assert status==0 and files()==['export.pkl','model.onnx','model.int8.onnx'] and written==[(256,32,32,3)] and content_at_once==[sample_root]
    for o in (new/'model').glob('*.onnx'): o.unlink()
    out,_,status = said(capsys, 'export', new)
    assert status==0 and files()==['export.pkl'] and 'onnx' not in out
    _,err,status = said(capsys, 'export', tmp_path)
    assert status==2 and err.count('\n')==1
