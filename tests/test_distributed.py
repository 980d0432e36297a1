"Two processes on one machine train as one: the same gradients and metrics, one writer, every cell once, and an exact continuation."
import json, os, re, shlex, socket, subprocess, sys, time
import numpy as np, pandas as pd, pytest, torch
from pathlib import Path
from types import SimpleNamespace
from PIL import Image
from torch import nn

pytest.importorskip('accelerate', reason="several processes need the extra [distributed]")

TRAIN = """
import json,os,shutil,sys
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.metrics import AccumMetric, accuracy
from torch import nn
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import ImageDataBunch
from malaria_fastai.extra.distributed import join
from malaria_fastai.learner import CNNLearner, cnn_learner, is_writer, weights_hash, writer_first
from malaria_fastai.resume import SaveModelCallback
from malaria_fastai.transforms import get_transforms

torch.set_num_threads(1)
root,out = map(Path, sys.argv[1:3])
rank = int(os.environ.get('RANK', 0))

def confidence(preds, targs):
    "The mean probability of the right class: smooth, so that a last bit changes a last bit."
    return preds.softmax(1).gather(1, targs[:, None]).mean()

def spread(preds, targs):
    "Of all predictions at once: no mean of batches."
    return preds.std()

class Watch(Callback):
    "What this process trained on, the gradients it stepped with, and which files it wrote."
    order,looks_on = 3000,True
    def __init__(self): self.cells,self.valid,self.grads = [],[],[]
    def before_fit(self):
        load = type(self.dls.train).mine
        for dl,to in ((self.dls.train, self.cells), (self.dls.valid, self.valid)):
            def watched(idxs, dl=dl, to=to):
                mine = load(dl, idxs)
                to.append((dl.epoch, mine.tolist()))
                return mine
            dl.mine = watched
    def before_step(self): self.grads.append(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])[:2000].tolist())

def train(learn, epochs, name, stop=None, every='epoch', saver=SaveModelCallback, **kw):
    watch = Watch()
    class Stop(Callback):
        order,looks_on = 2500,True
        def after_batch(self):
            if self.training and (self.epoch, self.iter) == stop: raise CancelFitException()
        def after_epoch(self):
            if self.epoch == stop: raise CancelFitException()
    with learn.distributed(): learn.fit_one_cycle(epochs, 1e-2, callbacks=[saver(every=every, name=name), watch, *([Stop()] if stop is not None else [])], **kw)
    for dl in learn.dls.loaders[:2]: del dl.mine
    history = [{k: v for k,v in h.items() if k != 'seconds'} for h in learn.recorder.history]
    return dict(cells=watch.cells, valid=watch.valid, grads=watch.grads, history=history, weights=weights_hash(learn.model), loss=[float(o) for o in learn.recorder.losses])

def data(tfms=None, bs=10):
    return ImageDataBunch.from_folder(root, size=24, resize_method=ResizeMethod.SQUISH, bs=bs, val_bs=7, cache=root/'cache', device='cpu', ds_tfms=tfms)

opened,written = open,set()
import builtins,io
def watching(file, mode='r', *args, **kw):
    if set(mode) & set('wxa+') and not str(file).startswith('/dev'): written.add(Path(str(file)).name)
    return opened(file, mode, *args, **kw)
builtins.open = io.open = watching

found = {}
join()
with writer_first(): found['cached'] = data().train_ds.pictures.store is not None
found['written_first'] = sorted(written)
written.clear()
def plain():
    torch.manual_seed(1)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
for bs in (10, 13): found[f'plain{bs}'] = train(CNNLearner(data(bs=bs), plain(), metrics=[confidence, AccumMetric(spread, flatten=False)], path=out), 2, f'plain{bs}')
def resnet(): return cnn_learner(data(get_transforms(flip_vert=True, max_rotate=None, max_zoom=1., max_warp=None)), 'test_resnet', pretrained=False, metrics=accuracy, path=out)
found['whole'] = train(resnet(), 2, 'whole')
train(resnet(), 2, 'pieces', stop=0)
learn = resnet()
found['pieces'] = train(learn, 2, 'pieces', start_epoch='last')

class FromItsBeginning(SaveModelCallback):
    "A fault: the epoch that was stopped begins anew."
    def jump_to_epoch(self, epoch):
        done = super().jump_to_epoch(epoch)
        self.learn.first_batch = 0
        return done

if 'RANK' in os.environ: # stopped after four batches of the second epoch, continued after three
    found['stopped'] = train(resnet(), 2, 'inside', stop=(1, 3), every=3)
    with writer_first():
        for o in ('pth', 'state')*is_writer(): shutil.copyfile(out/f'models/inside_1b3.{o}', out/f'models/anew_1b3.{o}')
    np.random.seed(99), torch.manual_seed(99) # nothing may hang on these
    for name,saver in (('inside', SaveModelCallback), ('anew', FromItsBeginning)): found[name] = train(resnet(), 2, name, start_epoch='last', every=3, saver=saver)
found['written'] = sorted(written)
if is_writer(): found['predicted'] = learn.get_preds()[0].tolist() # by one process alone
(out/f'{rank}.json').write_text(json.dumps(found))
"""

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Sixty-five pictures of two classes: 52 to train on, 13 for validation."
    root = tmp_path_factory.mktemp('pictures')
    for i in range(65):
        file = root/'ab'[i % 2]/f'{i:02d}.png'
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.RandomState(i).randint(0, 128 + 99*(i % 2), (20 + i % 9, 24, 3)).astype(np.uint8)).save(file)
    return root

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def launched(root, out, n):
    "What each of `n` processes found."
    out.mkdir()
    (out/'train.py').write_text(TRAIN)
    how = ['-m', 'accelerate.commands.launch', '--multi_gpu', f'--num_processes={n}', '--num_machines=1', '--mixed_precision=no', '--dynamo_backend=no',
           f'--main_process_port={free_port()}'] if n > 1 else []
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, *how, str(out/'train.py'), str(root), str(out)], capture_output=True, text=True, env=env, timeout=500)
    assert not run.returncode, run.stderr[-3000:]
    return [json.loads((out/f'{i}.json').read_text()) for i in range(n)],run.stdout

@pytest.fixture(scope='module')
def one(root, tmp_path_factory): return launched(root, tmp_path_factory.mktemp('one')/'out', 1)

@pytest.fixture(scope='module')
def two(root, tmp_path_factory): return launched(root, tmp_path_factory.mktemp('two')/'out', 2)

def table(o, *keys): return np.array([[h[k] for k in keys] for h in o['history']])

@pytest.mark.slow
def test_gradients_and_metrics_are_those_of_one_process(one, two):
    "Batches of 10 are shared five and five; the validation batches are 7 and 6, so 4+3 and 3+3."
    (alone,),(a,b) = (([p['plain10'] for p in o[0]]) for o in (one, two))
    assert len(a['grads']) == len(alone['grads']) == 10
    assert np.allclose(a['grads'], b['grads']) and np.allclose(a['grads'], alone['grads'], atol=1e-6, rtol=1e-4)
    keys = ('train_loss', 'valid_loss', 'confidence', 'spread')
    assert np.allclose(table(a, *keys), table(alone, *keys), atol=1e-5) and a['weights'] == b['weights']
    assert np.allclose(a['loss'], alone['loss'], atol=1e-5)

@pytest.mark.slow
def test_shares_that_differ(one, two):
    "A batch of 13 is shared seven and six, and each picture still weighs the same."
    (alone,),(a,b) = (([p['plain13'] for p in o[0]]) for o in (one, two))
    assert {len(c) for o in (a, b) for _,c in o['cells']} == {6, 7}
    assert np.allclose(a['grads'], alone['grads'], atol=1e-6, rtol=1e-4)
    assert np.allclose(table(b, 'valid_loss', 'confidence'), table(alone, 'valid_loss', 'confidence'), atol=1e-5)

@pytest.mark.slow
@pytest.mark.parametrize('net', ['plain10', 'whole'])
def test_no_cell_is_trained_twice_in_an_epoch(one, two, net):
    def epochs(runs): return [sorted(i for o in runs for e,idxs in o[net]['cells'] if e == k for i in idxs) for k in range(2)]
    for cells in epochs(two[0]): assert len(cells) == len({*cells}) == 50
    assert epochs(two[0]) == epochs(one[0])
    assert not {i for _,c in two[0][0][net]['cells'][:5] for i in c} & {i for _,c in two[0][1][net]['cells'][:5] for i in c}

@pytest.mark.slow
def test_every_validation_cell_is_there(two):
    for o in two[0]: assert len(o['plain10']['valid']) == 4
    assert {i for o in two[0] for _,c in o['plain10']['valid'] for i in c} == {*range(13)}

@pytest.mark.slow
def test_one_writer(two):
    writer,other = two[0]
    assert other['written_first'] == [] and other['written'] == []
    assert {'whole_1.pth', 'whole_1.state'} <= {o.split('.', 1)[1].rsplit('.', 2)[0] if o.startswith('.') else o for o in writer['written']}
    assert writer['cached'] and other['cached'] and len(writer['predicted']) == 13

@pytest.mark.slow
def test_a_resnet_agrees_on_all_processes(two):
    for k in ('whole', 'pieces'): assert two[0][0][k]['weights'] == two[0][1][k]['weights']
    keys = ('train_loss', 'valid_loss', 'accuracy')
    assert (table(two[0][0]['whole'], *keys) == table(two[0][1]['whole'], *keys)).all()

@pytest.mark.slow
def test_continued_is_uninterrupted(two):
    for o in two[0]: assert o['pieces']['weights'] == o['whole']['weights'] and o['pieces']['history'] == o['whole']['history']

def off_course(runs, name):
    "What differs from the uninterrupted run in one that was stopped inside its second epoch and continued after three batches of it."
    for rank,o in enumerate(runs):
        whole,went_on = o['whole'],o[name]
        if went_on['weights'] != whole['weights']: yield f'{rank}: weights'
        if went_on['history'] != whole['history']: yield f'{rank}: history'
        if went_on['loss'] != whole['loss']: yield f'{rank}: losses'
    then,now = ([i for o in runs for e,idxs in take(o) if e == 1 for i in idxs] for take in (lambda o: o['stopped']['cells'][:8], lambda o: o[name]['cells']))
    if not len({*then, *now}) == len(then) + len(now) == 50: yield 'cells'

@pytest.mark.slow
def test_stopped_inside_an_epoch_and_continued_is_uninterrupted(two):
    assert [*off_course(two[0], 'inside')] == [] and two[1].count('Loaded inside_1b3') == 1

@pytest.mark.slow
def test_an_epoch_that_begins_anew_is_noticed(two):
    assert two[1].count('Loaded anew_1b3') == 1 and {'0: weights', '1: weights', '0: history', 'cells'} <= {*off_course(two[0], 'anew')}

@pytest.mark.slow
def test_only_one_process_talks(two): assert two[1].count('Loaded pieces_0') == 1

# --- the same in one process, one share after the other ---------------------------------------------------------------------------------

def gradient_of_a_share(root, rank, n, monkeypatch):
    "Of the first batch of 13, as process `rank` of `n` sees it: its gradient, and how many pictures it loaded."
    from fastai.callback.core import Callback, CancelFitException
    from malaria_fastai.extra import distributed
    from malaria_fastai.learner import CNNLearner
    from malaria_fastai.data import ImageDataBunch
    accelerator = SimpleNamespace(process_index=rank, num_processes=n, prepare_model=lambda model: model)
    monkeypatch.setattr(distributed, 'join', lambda: accelerator)
    seen = []
    class Keep(Callback):
        order = 3000
        def before_step(self):
            seen.extend([torch.cat([p.grad.flatten() for p in self.model.parameters()]), len(self.y)])
            raise CancelFitException()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    data = ImageDataBunch.from_folder(root, size=24, bs=13, val_bs=7, cache=False, device='cpu')
    learn = CNNLearner(data, model, path=root)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, cbs=[distributed.Processes(), Keep()])
    return seen

def test_the_gradients_of_two_shares_are_that_of_the_batch(root, monkeypatch):
    "Seven pictures and six: the mean of what two processes compute is what one computes, each picture weighing the same."
    (whole,_),(first,a),(second,b) = (gradient_of_a_share(root, *o, monkeypatch) for o in ((0, 1), (0, 2), (1, 2)))
    assert (a, b) == (7, 6)
    assert whole.abs().max() > 1e-3 and torch.allclose((first + second)/2, whole, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(first, second, atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize('n', [2, 3, 4])
def test_shares_of_any_batch(root, n):
    "Joined again they are the batch, in training as they are, in validation after what was filled up is cut off."
    from malaria_fastai.data import ImageDataBunch
    data = ImageDataBunch.from_folder(root, size=24, bs=13, val_bs=7, cache=False, device='cpu')
    def shares(loader, size):
        for rank in range(n):
            loader.share = (rank, n)
            yield loader.mine(np.arange(size)).tolist()
    for size in range(n, 14):
        training,last = [*shares(data.train, size)],[*shares(data.valid, size)]
        assert sum(training, []) == sum(last, [])[:size] == [*range(size)]
        assert max(map(len, training)) - min(map(len, training)) <= 1 and len({*map(len, last)}) == 1

# --- the command, as the page on several GPUs gives it --------------------------------------------------------------------------------

# Each worker loads this when it starts: it writes down which files the process opens, moves or removes, and which cells it loads.
WATCH = """
import atexit, importlib.util, json, os, sys, threading
if 'RANK' in os.environ:
    files,cells = set(),[]
    hold,held = os.environ.get('HOLD'),[]
    def heard(event, args):
        if held: threading.Event().wait() # until somebody kills this process
        if event == 'os.rename' and hold and str(args[1]).endswith(hold): held.append(hold)
        if event == 'open' and isinstance(args[0], str) and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR): files.add(os.path.abspath(args[0]))
        elif event == 'os.remove' and args[1] != -1: pass # a name within a folder that shutil.rmtree removes
        elif event in ('os.rename', 'os.remove', 'os.mkdir', 'shutil.rmtree') and isinstance(args[0], (str, os.PathLike)): files.add(os.path.abspath(os.fspath(args[0])))
    class Data:
        "Finds the extra that shares batches, and lets the shares be watched."
        def find_spec(self, name, path=None, target=None):
            if name != 'malaria_fastai.extra.distributed': return
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            def watched(module):
                load(module)
                share_of = module.PictureLoader.mine
                def mine(dl, idxs):
                    got = share_of(dl, idxs)
                    cells.append((dl.shuffle, dl.share[1], dl.epoch, len(idxs), dl.dataset.cells.path.iloc[got].tolist()))
                    return got
                module.PictureLoader.mine = mine
            spec.loader.exec_module = watched
            return spec
    sys.meta_path.insert(0, Data())
    sys.addaudithook(heard)
    def told():
        with open(os.path.join(os.environ['WATCH'], 'rank' + os.environ['RANK'] + '.json'), 'w') as f: json.dump(dict(files=sorted(files), cells=cells), f)
    atexit.register(told)
"""

SMALL = '--arch', 'test_resnet' # of timm: a ResNet whose states are small

def line_of_the_page():
    "The command of the tutorial that runs on drawn cells."
    page = json.loads((Path(__file__).parent.parent/'nbs'/'tutorials'/'09_train_on_several_gpus.ipynb').read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in page['cells'] if c['cell_type'] == 'markdown').replace('\\\n', '')
    line, = re.findall(r'^accelerate launch .* malaria-fastai train sample .*', text, re.M)
    return shlex.split(line)

def started(words, place, watch, hold=''):
    """Start the line of the page in a folder, with some words exchanged or added, and a port that is free. When the file
    `hold` has its name, its writer does nothing more, and so the others wait."""
    watch.mkdir()
    (watch/'sitecustomize.py').write_text(WATCH)
    own = str(Path(sys.executable).parent)
    quiet = dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES='')
    env = {**os.environ, **quiet, 'WATCH': str(watch), 'HOLD': hold,
           'PYTHONPATH': os.pathsep.join([str(watch), *sys.path]), 'PATH': os.pathsep.join([own, os.environ['PATH']])}
    words = [*words[:2], '--main_process_port', str(free_port()), *words[2:]]
    return subprocess.Popen(words, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def ended(p):
    out,err = p.communicate(timeout=500)
    assert not p.returncode, err[-3000:]
    return out

def kill_all(p):
    "The launcher and its workers, each in a session of its own."
    import psutil
    for o in [*psutil.Process(p.pid).children(recursive=True), p]: o.kill()
    p.communicate(timeout=60)

needs_the_command = pytest.mark.skipif(not all((Path(sys.executable).parent/o).exists() for o in ('accelerate', 'malaria-fastai')),
                                       reason='the commands accelerate and malaria-fastai are not installed beside this Python')

@pytest.fixture(scope='module')
def place(tmp_path_factory): return tmp_path_factory.mktemp('command')

@pytest.fixture(scope='module')
def command(place):
    "The line of the page with a smaller network, run to its end: what it said, and what each process did."
    said = ended(started([*line_of_the_page(), *SMALL], place, place/'watch'))
    return said,place/'runs'/'two',[json.loads((place/'watch'/f'rank{i}.json').read_text()) for i in range(2)]

@pytest.fixture(scope='module')
def resumed(command, place):
    "The same line in another folder, killed when the state of its first epoch is there, and again with --resume."
    words = [*(o.replace('runs/two', 'runs/again') for o in line_of_the_page()), *SMALL]
    state = place/'runs'/'again'/'states'/'stage1_0.state'
    p = started(words, place, place/'watch_killed', hold=state.name)
    while p.poll() is None and not state.exists(): time.sleep(.1)
    assert p.poll() is None, p.stderr.read()[-3000:]
    kill_all(p)
    assert state.exists() and not (place/'runs'/'again'/'metrics.json').exists()
    return ended(started([*words, '--resume'], place, place/'watch_resumed')),place/'runs'/'again',[json.loads((place/'watch_resumed'/f'rank{i}.json').read_text()) for i in range(2)]

def history(run): return pd.read_csv(run/'history.csv').drop(columns='seconds')

@pytest.mark.slow
@needs_the_command
def test_the_command_has_one_writer_and_one_voice(command, place):
    said,run,(writer,other) = command
    def own(o): return {Path(f).relative_to(place).parts[0] for f in o['files'] if Path(f).is_relative_to(place) and 'watch' not in f}
    assert own(other) == set() and own(writer) == {'data', 'runs'}
    assert said.count('Report: ') == said.count('train_loss') == 1
    assert {o.name for o in run.iterdir()} >= {'metrics.json', 'history.csv', 'predictions.csv', 'model', 'report.html'} and not (run/'states').exists()
    assert (run/'model'/'model.json').exists() and not [o for o in run.rglob('*.tmp')]

def shared_in(processes, epoch): return [[p for shuffle,n,e,_,paths in o['cells'] if shuffle and n == 2 and e == epoch for p in paths] for o in processes]

def wrongly_shared(processes, train, epochs):
    "Epochs in which a cell comes twice, is missing or is not one to train on, or in which the shares are not eleven and ten of each batch."
    for k in epochs:
        a,b = shared_in(processes, k)
        if not (len(a) + len(b) == len({*a, *b}) == len(train)//21*21 and {*a, *b} <= train and len(a) - len(b) == len(train)//21): yield f'epoch {k}'

@pytest.mark.slow
@needs_the_command
def test_the_command_trains_no_cell_twice_in_an_epoch(command, resumed):
    split = pd.read_csv(command[1]/'split.csv')
    train = {*split.path[split.split == 'train']}
    assert [*wrongly_shared(command[2], train, range(3))] == []
    assert shared_in(command[2], 0) != shared_in(command[2], 1)
    assert [*wrongly_shared(resumed[2], train, [1, 2])] == [] and shared_in(resumed[2], 0) == [[], []] # epoch 0 is not trained again
    for k in (1, 2): assert shared_in(resumed[2], k) == shared_in(command[2], k)

@pytest.mark.slow
@needs_the_command
def test_a_cell_that_comes_twice_is_noticed(command):
    split = pd.read_csv(command[1]/'split.csv')
    def faults(change):
        cells = [[[shuffle, n, e, size, [*paths]] for shuffle,n,e,size,paths in o['cells']] for o in command[2]]
        change(*([o for o in mine if o[0] and o[1] == 2] for mine in cells))
        return [*wrongly_shared([dict(cells=o) for o in cells], {*split.path[split.split == 'train']}, range(3))]
    def again(a, b): a[3][4][0] = a[2][4][0]
    def both(a, b): b[0][4][0] = a[0][4][0]
    def lost(a, b): b[0][4].pop()
    def unseen(a, b): a[0][4][0] = split.path[split.split == 'valid'].iloc[0]
    assert faults(lambda a, b: None) == []
    for change in (again, both, lost, unseen): assert faults(change) == ['epoch 0'], change

@pytest.mark.slow
@needs_the_command
def test_the_command_counts_every_validation_cell_once(command):
    preds = pd.read_csv(command[1]/'predictions.csv')
    valid = preds[preds.split == 'valid']
    loaded = [[paths for shuffle,n,_,_,paths in o['cells'] if not shuffle and n == 2] for o in command[2]]
    assert {p for o in loaded for paths in o for p in paths} == {*valid.path}
    assert sum(len(paths) for o in loaded for paths in o) > 3*len(valid)      # an odd number: a cell is loaded twice to fill the shares,
    last = history(command[1]).iloc[-1]
    on_the_edge = (valid.p - .5).abs() < 1e-4 # where the last bit may decide, and decides otherwise in other batches
    right = (valid.pred == valid.label).sum()
    assert abs(last.accuracy*len(valid) - right) < on_the_edge.sum() + .01    # and counted once
    assert np.isclose(last.valid_loss, valid.loss.mean(), atol=1e-4)

@pytest.mark.slow
@needs_the_command
def test_the_command_killed_and_resumed_ends_where_it_would_have(command, resumed):
    from malaria_fastai.learner import read_model
    said,run,_ = resumed
    assert said.count('Loaded stage1_0') == 1 and history(run).equals(history(command[1]))
    assert (run/'predictions.csv').read_text() == (command[1]/'predictions.csv').read_text()
    a,b = (read_model(o/'model'/'export.pkl')[1] for o in (command[1], run))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# --- what processes cannot share ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words', ['crossval sample --out x', 'compare sample --recipes best --out x', 'evaluate x', 'export x', 'predict x y -o z', 'data sample', 'recipes'])
def test_commands_for_one_process(words, monkeypatch, capsys, tmp_path):
    from malaria_fastai.cli import main
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2 and f'{words.split()[0]} is done by one process, and 2 were launched' in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]

def test_functions_for_one_process(monkeypatch, tmp_path):

    from malaria_fastai.extra.compare import compare
    from malaria_fastai.extra.crossval import cross_validate
    from malaria_fastai.run import evaluate_run
    monkeypatch.setenv('WORLD_SIZE', '2')
    for f in (lambda: cross_validate('sample', tmp_path/'x'), lambda: compare('sample', tmp_path/'x', ['best']), lambda: evaluate_run(tmp_path)):
        with pytest.raises(ValueError, match='one process, and 2 were launched'): f()
    assert not [*tmp_path.iterdir()]

@pytest.mark.parametrize('rank', [0, 1])
def test_colours_are_judged_by_the_first_process(rank, monkeypatch, tmp_path, sample_root):
    "No network, so nothing to share: here two processes one after the other, without a launcher."
    from contextlib import nullcontext
    from malaria_fastai import run as study
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', str(rank))
    monkeypatch.setattr(study, 'writer_first', nullcontext)
    out = study.train(sample_root, tmp_path/'x', recipe='colour_floor', limit=200, draws=20)
    assert out == tmp_path/'x' and (out/'metrics.json').exists() == (rank == 0) and out.exists() == (rank == 0)

def test_too_small_a_batch_and_a_missing_extra(monkeypatch):
    from malaria_fastai.extra.distributed import join
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(ImportError, match=r'malaria_fastai\[distributed\]'): join()

# ---- two processes with a simulated GPU each

ON_GPUS = """
import json,os,sys
from pathlib import Path
import torch
from fastai.callback.core import Callback
from fastai.metrics import accuracy
from simulated_gpu import SimulatedGPU
from test_gpu import Phases
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import ImageDataBunch
from malaria_fastai.extra.distributed import join
from malaria_fastai.learner import cnn_learner, half_precision, weights_hash

class Reads(Callback):
    "A fault: it waits for the GPU in each batch."
    looks_on = True
    def after_loss(self): float(self.loss_grad)

torch.set_num_threads(1)
root,out = map(Path, sys.argv[1:3])
torch.distributed.init_process_group('gloo') # between real cards it is NCCL
found = {}
for name,extra in dict(single=list, half=half_precision, reads=lambda: [Reads()]).items():
    with SimulatedGPU() as gpu:
        join()
        data = ImageDataBunch.from_folder(root, size=24, resize_method=ResizeMethod.SQUISH, bs=10, val_bs=7, cache=out/'cache')
        learn = cnn_learner(data, 'test_resnet', pretrained=False, metrics=accuracy, path=out)
        phases = Phases(gpu)
        with learn.distributed(): learn.fit_one_cycle(1 if name == 'reads' else 2, 1e-3, callbacks=[phases, *extra()])
        waits = {o: sum(gpu.count(o).values())/phases.batches[o] for o in ('train', 'valid')}
        found[name] = dict(waits=waits, batches=phases.batches, hazards=gpu.hazards, weights=weights_hash(learn.model),
                           lies=str(next(learn.model.parameters()).device), history=[{k: v for k,v in h.items() if k != 'seconds'} for h in learn.recorder.history])
(out/f"{os.environ['RANK']}.json").write_text(json.dumps(found))
"""

@pytest.mark.slow
def test_two_processes_with_a_gpu_each(root, tmp_path):
    "Both end with the same weights, no kernel mixes devices, and neither waits for its GPU between batches."
    (tmp_path/'train.py').write_text(ON_GPUS)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': os.pathsep.join(sys.path), 'WORLD_SIZE': '2',
           'LOCAL_RANK': '0', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())} # each sees one card
    runs = [subprocess.Popen([sys.executable, tmp_path/'train.py', root, tmp_path], env={**env, 'RANK': str(i)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(2)]
    said = [o.communicate(timeout=500)[1] for o in runs]
    assert not any(o.returncode for o in runs), said[0][-3000:]
    a,b = (json.loads((tmp_path/f'{i}.json').read_text()) for i in range(2))
    for name in ('single', 'half'):
        assert a[name]['weights'] == b[name]['weights'] and a[name]['history'] == b[name]['history'] and a[name]['lies'] == 'cuda:0'
        for o in (a[name], b[name]):
            assert o['batches'] == dict(train=10, valid=4) and not o['hazards'], o
            assert o['waits']['train'] <= .15, o['waits']
    assert a['reads']['waits']['train'] >= 1 # what waits is seen
