"""Training that survives anything: kills from outside, damaged files, disks that are full, read-only or gone, and what stock fastai does.

The kills are those of `kill_resume.py`, in the slow tests. What each fault led to is compared with `results/resume_faults.csv`, the table in the documentation. That table, and the one of the costs, are written anew by

    UPDATE_RESULTS=1 python -m pytest tests/test_resume.py -k "fault or costs"
"""
import ast,errno,hashlib,os,random,shutil,stat,subprocess,sys,time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import fastai
import fastai.optimizer
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix,MixUp
from fastai.callback.preds import MCDropoutCallback
from fastai.callback.progress import CSVLogger
from fastai.callback.rnn import RNNRegularizer
from fastai.callback.schedule import ParamScheduler,SchedCos
from fastai.callback.tracker import EarlyStoppingCallback,ReduceLROnPlateau,TerminateOnNaNCallback,TrackerCallback
from fastai.callback.tracker import SaveModelCallback as StockSaver
from fastai.callback.training import BnFreeze,GradientAccumulation,GradientClip,ShortEpochCallback
from fastai.learner import Metric
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy,error_rate
from fastai.optimizer import (Adam,Lamb,Larc,Lookahead,OptimWrapper,Optimizer,QHAdam,RAdam,RMSProp,SGD,average_grad,momentum_step,ranger,
                              weight_decay)
from PIL import Image
from torch import nn
from malaria_fastai.backbone import split_params
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import ImageDataBunch
from malaria_fastai.learner import AverageWeights, CNNLearner, cnn_learner, weights_hash
from malaria_fastai.resume import AnotherRun,SaveModelCallback,StateDamaged,StateNotWritten,_read_state,_run_config,_set_streams,_streams,_write_tensors
from malaria_fastai.transforms import get_transforms

HERE = Path(__file__).resolve().parent
FAULTS,COST,STOCK = (HERE.parent/'results'/f'resume_{o}.csv' for o in ('faults', 'cost', 'stock'))
ARCH,EPOCHS,BATCHES = 'shufflenet_v2_x0_5',3,3 # a network by name, where the name matters

# ---- a run of three epochs of three batches, which takes a fraction of a second

@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "The last bits depend on the number of threads."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

class Watch(Callback):
    "Count training batches, and do something at one of them."
    looks_on = True
    order = -30
    def __init__(self, at=None, do=None): self.n,self.at,self.do = 0,at,do
    def before_batch(self):
        if not self.training: return
        if (self.epoch, self.iter)==self.at: self.do()
        self.n += 1

def stop(): raise KeyboardInterrupt

class Planted(Metric):
    "A metric that says, epoch after epoch, what was planted, whatever was learned."
    def __init__(self, *values, name='planted'): self.values,self.called = values,name
    def reset(self): pass
    def accumulate(self, learn): self.epoch = learn.epoch
    @property
    def value(self): return self.values[self.epoch]
    @property
    def name(self): return self.called

def small_net():
    "Some thousand weights, batch norm and dropout: the faults are in the files, not in the layers."
    torch.manual_seed(7)
    first = [nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    body = nn.Sequential(*first, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
    head = nn.Sequential(nn.Flatten(), nn.Dropout(.25), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    return nn.Sequential(body, head)

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Sixty small pictures of two classes and many sizes: noise, for nothing has to be learned."
    root,rng = tmp_path_factory.mktemp('pictures'),np.random.RandomState(0)
    for i in range(60):
        file = root/('Parasitized', 'Uninfected')[i % 2]/f'{i:02d}.png'
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (32+i % 7, 38-i % 5, 3)).astype(np.uint8)).save(file)
    return root

@pytest.fixture(scope='module')
def new(pictures):
    "Make a learner for a folder, as a new process would."
    files = sorted(o.relative_to(pictures).as_posix() for o in pictures.glob('*/*.png'))
    usual = dict(ds_tfms=get_transforms(max_warp=None), size=32, resize_method=ResizeMethod.SQUISH, bs=16, cache=False, num_workers=0)
    def make(folder, arch=None, metrics=accuracy, lin_ftrs=(32,), opt_func=Adam, loss_func=None, **kwargs):
        data = ImageDataBunch.from_name_func(pictures, files, lambda o: o.parent.name, **{**usual, **kwargs})
        how = dict(metrics=metrics, path=folder, opt_func=opt_func, loss_func=loss_func)
        if arch is None: learn = CNNLearner(data, small_net(), splitter=split_params, wd=1e-2, **how)
        else: learn = cnn_learner(data, arch, pretrained=False, lin_ftrs=lin_ftrs, **how)
        random.seed(), np.random.seed(), torch.seed()
        return learn
    return make

def fit(learn, start=0, *cbs, every='epoch', n=EPOCHS, lr=3e-3, keep=None, **kwargs):
    "One cycle; returns the digest of the weights."
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(n, lr, start_epoch=start, callbacks=[SaveModelCallback(learn, every=every, name='x', keep=keep), *cbs], **kwargs)
    return weights_hash(learn.model)

def cut(learn, epoch, batch, *args, **kwargs):
    "Train until someone presses Ctrl-C."
    with pytest.raises(KeyboardInterrupt): fit(learn, 'last', Watch((epoch, batch), stop), *args, **kwargs)

def curves(learn):
    rows = [{k: v for k,v in h.items() if k!='seconds'} for h in learn.recorder.history]
    return [float(o) for o in learn.recorder.losses],learn.recorder.lrs,learn.recorder.momenta,rows

def files(folder): return sorted(o.name for o in (folder/'models').iterdir())

@pytest.fixture(scope='module')
def whole(new, tmp_path_factory):
    "The run that nobody disturbed: its folder, the digest of its weights, its learner."
    folder = tmp_path_factory.mktemp('whole')
    learn = new(folder)
    return folder,fit(learn),learn

@pytest.fixture
def done(whole, tmp_path):
    "A copy of its folder."
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    return tmp_path

# ---- faults: what is injected, what is said, what is lost

def half(name): return lambda folder: os.truncate(folder/'models'/name, (folder/'models'/name).stat().st_size//2)
def flip(name, at): return lambda folder: flip_bit(folder/'models'/name, at)
def gone(name): return lambda folder: (folder/'models'/name).unlink()
def empty(name): return lambda folder: (folder/'models'/name).write_bytes(b'')
def both(*parts): return lambda folder: [o(folder) for o in parts]

def flip_bit(file, at):
    with open(file, 'r+b') as f:
        f.seek(at, 0 if at>=0 else 2)
        b = f.read(1)[0]
        f.seek(-1, 1)
        f.write(bytes([b ^ 4]))

class Bad:
    "What a hostile file might hold."
    def __reduce__(self): return exec, ("raise SystemExit('code from the file was run')",)

def hostile(folder): _write_tensors(dict(epoch=Bad()), folder/'models'/'x_2.state')

DAMAGE = { # to the files of a finished run; then the notebook is run again
    'last state cut in half': half('x_2.state'), 'last state empty': empty('x_2.state'), 'a bit of the last state flipped': flip('x_2.state', 5000),
    'a bit of its first line flipped': flip('x_2.state', 30), 'a bit of the last weights flipped': flip('x_2.pth', -5000),
    'last weights cut in half': half('x_2.pth'), 'last weights deleted': gone('x_2.pth'), 'last state deleted': gone('x_2.state'),
    'code hidden in the last state': hostile, 'both states damaged': both(half('x_2.state'), half('x_1.state')),
    'both states deleted': both(gone('x_2.state'), gone('x_1.state'))}

def told(said): return ' '.join(o for o in said.splitlines() if not o.startswith('Loaded')) or 'nothing'

def again(new, folder, whole, capsys):
    "Run the notebook once more: (what it said, what was lost)."
    count = Watch()
    capsys.readouterr()
    try: end = fit(new(folder), 'last', count)
    except (ValueError, OSError) as e:
        return f'{type(e).__name__}: {e}',f'the run stops here; weights that can be loaded: {len(list(folder.glob("models/x_[0-9].pth")))}'
    assert end==whole[1]
    return told(capsys.readouterr().out),f'{count.n//BATCHES} of {EPOCHS} epochs trained again, to the same bits' if count.n else 'nothing'

def write_row(file, key, row):
    "Add a row to a table, or replace it."
    df = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=[*row])
    file.parent.mkdir(exist_ok=True)
    pd.DataFrame([*df[df[key]!=row[key]].to_dict('records'), row]).to_csv(file, index=False)

def check_row(fault, said, lost):
    "Compare with the table in the documentation, or write it."
    if os.environ.get('UPDATE_RESULTS'): write_row(FAULTS, 'fault', dict(fault=fault, said=said, lost=lost))
    df = pd.read_csv(FAULTS)
    assert df[df.fault==fault].values.tolist()==[[fault, said, lost]], 'UPDATE_RESULTS=1 writes the table anew'

@pytest.mark.parametrize('fault', DAMAGE)
def test_fault_in_a_file(fault, done, whole, new, capsys):
    DAMAGE[fault](done)
    check_row(fault, *again(new, done, whole, capsys))

@pytest.mark.parametrize('name', ['x_2.state', 'x_2.pth'])
def test_every_flipped_bit_and_every_cut_is_noticed(name, done, new):
    cb = SaveModelCallback(every='epoch', name='x')
    cb.learn = new(done)
    file,rng = done/'models'/name,random.Random(0)
    whole_file = file.read_bytes()
    n = len(whole_file)
    cb._checked('x_2')
    for at in [*range(0, 120, 7), *rng.sample(range(n), 60), n-1]:
        flip_bit(file, at)
        with pytest.raises(StateDamaged, match='torn or changed'): cb._checked('x_2')
        flip_bit(file, at)
    for size in [0, 1, 60, 110, 111, *rng.sample(range(n), 20), n-1]:
        file.write_bytes(whole_file[:size])
        with pytest.raises(StateDamaged, match='torn or changed'): cb._checked('x_2')
    file.write_bytes(whole_file)
    cb._checked('x_2')

# ---- faults of the disk, while training

class Disk:
    "A file system of its own, in memory, where this user may mount one."
    def __init__(self, folder): self.folder = folder
    def mount(self, *options):
        if shutil.which('mount') is None or subprocess.run(['mount', *options, str(self.folder)], capture_output=True).returncode:
            pytest.skip('this user may not mount a file system')
    def unmount(self): subprocess.run(['umount', '-l', str(self.folder)], capture_output=True)

@pytest.fixture
def disk(tmp_path):
    "A disk of 4 MB in the run's folder."
    run = tmp_path/'run'
    run.mkdir()
    d = Disk(run)
    d.mount('-t', 'tmpfs', '-o', 'size=4m', 'tmpfs')
    yield d
    d.unmount()

def fails(new, folder, breaks, capsys):
    "Let the disk fail in the last epoch; returns what the error said."
    with pytest.raises(StateNotWritten) as e: fit(new(folder), 0, Watch((2, 1), breaks))
    return 'StateNotWritten: ' + str(e.value).split('\n\t')[-1] # fastai puts the name of the callback above

def fill(folder):
    free = os.statvfs(folder).f_bavail*os.statvfs(folder).f_frsize
    (folder/'other').write_bytes(bytes(free-20_000))

def test_fault_disk_full(disk, whole, new, capsys):
    said = fails(new, disk.folder, partial(fill, disk.folder), capsys)
    assert files(disk.folder)==['x_0.pth', 'x_0.state', 'x_1.pth', 'x_1.state'] # nothing half written
    (disk.folder/'other').unlink()
    check_row('disk full', said, again(new, disk.folder, whole, capsys)[1])

def test_fault_file_too_large(tmp_path, whole, new, capsys):
    resource = pytest.importorskip('resource', reason='this system has no limits of this kind')
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try: said = fails(new, tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1])), capsys)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    check_row('quota reached (a limit of file size)', said, again(new, tmp_path, whole, capsys)[1])

def test_fault_read_only(disk, whole, new, capsys):
    said = fails(new, disk.folder, lambda: disk.mount('-o', 'remount,ro'), capsys)
    with pytest.raises(StateNotWritten, match='the folder models could not be written'): fit(new(disk.folder), 'last') # at once, not after an epoch
    disk.mount('-o', 'remount,rw')
    check_row('disk becomes read-only', said, again(new, disk.folder, whole, capsys)[1])

def test_fault_unmounted(disk, whole, new, capsys):
    keep = disk.folder.parent/'keep'
    keep.mkdir()
    subprocess.run(['mount', '--bind', str(disk.folder), str(keep)], check=True)
    try:
        said = fails(new, disk.folder, disk.unmount, capsys)
        assert not any(disk.folder.iterdir()) # nothing was written on the disk below
        check_row('mounted disk vanishes', said, again(new, keep, whole, capsys)[1])
    finally: Disk(keep).unmount()

def test_fault_folder_moved(tmp_path, whole, new, capsys):
    run,away = tmp_path/'run',tmp_path/'away'
    said = fails(new, run, lambda: run.rename(away), capsys)
    assert not run.exists()
    check_row('folder moved away', said, again(new, away, whole, capsys)[1])

def test_a_folder_that_is_a_file(tmp_path, new):
    (tmp_path/'models').write_text('I am a file')
    with pytest.raises(StateNotWritten, match='the folder models could not be written'): fit(new(tmp_path))

def test_the_best_model_cannot_be_written(tmp_path, new):
    learn = new(tmp_path)
    best = SaveModelCallback(learn, every='improvement', name='best')
    with pytest.raises(StateNotWritten, match='best could not be written'), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, callbacks=[best, Watch((0, 1), lambda: (tmp_path/'models').rename(tmp_path/'away'))])

def test_what_a_killed_write_leaves_is_cleared_away(done, new, whole):
    for o in ('.x_2.state.123.tmp', '.x_start.pth.9.tmp'): (done/'models'/o).write_bytes(b'half')
    (done/'models'/'.y_2.state.123.tmp').write_bytes(b'of another run')
    assert fit(new(done), 'last')==whole[1]
    assert [o for o in files(done) if o.endswith('.tmp')]==['.y_2.state.123.tmp']

def test_a_file_is_whole_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    "Written and flushed, then synced, then named, and then the name is synced; what is synced is all of it."
    file,events = tmp_path/'x.state',[]
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode): events.append('folder')
        else: events.append([path.read_bytes() for path in tmp_path.iterdir()])
    replace = os.replace
    def named(old, new):
        events.append('name')
        replace(old, new)
    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(os, 'replace', named)
    _write_tensors(dict(weights=torch.arange(5000)), file)
    assert events==[[file.read_bytes()], 'name', *['folder']*(os.name!='nt')]
    assert _read_state(file)['weights'].tolist()==[*range(5000)]

def test_a_kill_between_two_files_costs_no_bit(tmp_path, new, whole, monkeypatch):
    "A copy of the folder, taken before any file gets its name or goes, is what a kill at this moment leaves. Each copy goes on."
    run,copies = tmp_path/'run',[]
    def watched(act):
        def first_copied(path, *args, **kwargs):
            if os.path.exists(path): copies.append(shutil.copytree(run, tmp_path/f'copy{len(copies)}'))
            return act(path, *args, **kwargs)
        return first_copied
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', watched(os.replace))
        patch.setattr(Path, 'unlink', watched(Path.unlink))
        assert fit(new(run))==whole[1]
    assert len(copies)>=2*(1+EPOCHS) # weights and state, at the start and after every epoch; and what was cleared away
    done = []
    for folder in copies:
        count = Watch()
        assert fit(new(folder), 'last', count)==whole[1]
        done.append(count.n//BATCHES)
    assert done==sorted(done, reverse=True) and {*done}=={*range(EPOCHS+1)} # what is on the disk is not trained again

# ---- going on

@pytest.mark.parametrize('epoch,batch,every', [(0, 0, 'epoch'), (0, 2, 'epoch'), (1, 1, 'epoch'), (1, 2, 1), (2, 2, 2), (2, 0, 2)])
def test_the_same_notebook_cell_again(epoch, batch, every, tmp_path, new, whole):
    "In the process that was interrupted, also in its first epoch; then once more, when there is nothing left to do."
    learn = new(tmp_path)
    cut(learn, epoch, batch, every=every)
    assert fit(learn, 'last', every=every)==whole[1] and curves(learn)==curves(whole[2])
    count = Watch()
    assert fit(learn, 'last', count, every=every)==whole[1] and count.n==0

def test_rows_are_numbered_on_and_earlier_files_stay(tmp_path, new, whole, capsys):
    learn = new(tmp_path)
    cut(learn, 2, 1)
    before = {o: hashlib.sha256((tmp_path/'models'/o).read_bytes()).hexdigest() for o in ('x_0.pth', 'x_1.pth', 'x_1.state')}
    capsys.readouterr()
    learn = new(tmp_path)
    learn.fit_one_cycle(EPOCHS, max_lr=3e-3, start_epoch=2, callbacks=[SaveModelCallback(learn, every='epoch', name='x')])
    said = [o.split()[0] for o in capsys.readouterr().out.splitlines()]
    assert said==['Loaded', 'epoch', '2']
    assert weights_hash(learn.model)==whole[1]
    assert before=={o: hashlib.sha256((tmp_path/'models'/o).read_bytes()).hexdigest() for o in before}
    assert len(learn.recorder.plot_losses().axes[0].lines[0].get_xdata())==EPOCHS*BATCHES

@pytest.mark.parametrize('workers,cache', [(0, False), (2, False), (2, True), (0, True)])
def test_threads_and_cache_do_not_matter(workers, cache, tmp_path, new, whole):
    cut(new(tmp_path), 1, 1, every=1)
    assert fit(new(tmp_path, num_workers=workers, cache=tmp_path/'cache' if cache else False), 'last', every=1)==whole[1]

def test_keep_bounds_the_weights(tmp_path, new, whole):
    assert fit(new(tmp_path), keep=2)==whole[1]
    assert files(tmp_path)==['x_1.pth', 'x_1.state', 'x_2.pth', 'x_2.state']

def test_files_of_later_epochs_are_told(done, new, whole, capsys):
    assert fit(new(done), 2)==whole[1]
    assert 'Loaded x_1' in (said := capsys.readouterr().out) and 'Files of a later training, x_2, will be replaced' in said

def test_starting_anew_is_told_and_ends_the_old_run(done, new, whole, capsys):
    with pytest.raises(KeyboardInterrupt): fit(new(done), 0, Watch((0, 1), stop), lr=1e-3)
    assert "Files of an earlier training, x_0, x_1, x_2, will be replaced" in capsys.readouterr().out
    assert [o for o in files(done) if o.endswith('.state')]==['x_start.state']

def test_missing_states_are_errors(done, tmp_path_factory, new):
    empty = tmp_path_factory.mktemp('empty')
    with pytest.raises(FileNotFoundError, match='x_1.state: no such state in models.*here: none'): fit(new(empty), 2)
    with pytest.raises(FileNotFoundError, match='x_0.state: no such state in models.*here: x_1, x_2'): fit(new(done), 1)
    learn = new(empty)
    with pytest.raises(ValueError, match='nothing to continue from'), learn.no_bar(): learn.fit_one_cycle(3, start_epoch='last')

OTHER = {'split': dict(seed=1), 'classes': dict(classes=['Uninfected', 'Parasitized']), 'bs': dict(bs=12), 'size': dict(size=48),
         'tfms.max_lighting': dict(ds_tfms=get_transforms(max_warp=None, max_lighting=.1)), 'tfms': dict(ds_tfms=None),
         'val_bs': dict(val_bs=7), 'resize_method': dict(resize_method=ResizeMethod.CROP), 'stats': dict(normalize=False),
         'optimizer': dict(opt_func=partial(Adam, eps=1e-8)), 'loss.label_smoothing': dict(loss_func=CrossEntropyLossFlat(label_smoothing=.1)),
         'loss.weight': dict(loss_func=CrossEntropyLossFlat(weight=torch.tensor([1., 2.])))}

@pytest.mark.parametrize('what', OTHER)
def test_another_run_is_refused(what, done, new):
    with pytest.raises(AnotherRun, match=rf'x_2 belongs to another run:(.|\n)*  {what}.*: .* then, .* now'): fit(new(done, **OTHER[what]), 'last')

def test_another_network_is_refused(tmp_path, new):
    fit(new(tmp_path, arch=ARCH), n=1)
    others = {'arch.arch': dict(arch='shufflenet_v2_x1_0'), 'arch.lin_ftrs': dict(arch=ARCH, lin_ftrs=(16,)), 'arch': {}}
    for what,kwargs in others.items():
        with pytest.raises(AnotherRun, match=rf'x_0 belongs to another run:(.|\n)*  {what}: .* then, .* now'):
            fit(new(tmp_path, **kwargs), 'last', n=1)

@pytest.mark.parametrize('kwargs', [dict(lr=1e-3), dict(n=4), dict(pct_start=.5), dict(moms=(.9, .8)), dict(wd=.1), dict(div_factor=10)])
def test_another_cycle_is_refused(kwargs, done, new):
    with pytest.raises(AnotherRun, match='x_2 belongs to another run:\n  (cycle|optimizer.wd).* then, .* now'): fit(new(done), 'last', **kwargs)

def test_another_schedule_is_refused(tmp_path, new):
    def run(end, start, *cbs):
        learn = new(tmp_path)
        with learn.no_bar(), learn.no_logging():
            learn.fit(3, start_epoch=start, callbacks=[SaveModelCallback(learn, every='epoch', name='x'), ParamScheduler({'lr': SchedCos(1e-2, end)}), *cbs])
    with pytest.raises(KeyboardInterrupt): run(1e-4, 0, Watch((1, 2), stop))
    with pytest.raises(AnotherRun, match='cycle.schedules'): run(1e-3, 'last')

def test_a_constant_rate_has_no_end(tmp_path, new):
    "Without a cycle, whoever trained two epochs may train two more."
    def run(folder, n, start):
        learn = new(folder)
        with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3, start_epoch=start, callbacks=[SaveModelCallback(learn, every='epoch', name='x')])
        return weights_hash(learn.model),curves(learn)
    run(tmp_path/'a', 2, 0)
    assert run(tmp_path/'a', 4, 'last')==run(tmp_path/'b', 4, 0)

def test_without_states_an_epoch_cannot_be_trained_again(tmp_path, new):
    learn = new(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 3e-3)
    with pytest.raises(ValueError, match='start_epoch=1: nothing to continue from'), learn.no_bar(): learn.fit_one_cycle(3, 3e-3, start_epoch=1)
    learn = new(tmp_path)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 3e-3, cbs=Watch((1, 1), stop))
    with pytest.raises(ValueError, match='nothing to continue from'), learn.no_bar(): learn.fit_one_cycle(3, 3e-3, start_epoch=1)

def test_transforms_of_ones_own(tmp_path, new):
    "They are compared by what they print."
    from fastai.vision.augment import Brightness,Flip
    own,other = (lambda: ([Flip(p=.5), Brightness(max_lighting=.1)], [])),([Flip(p=.4)], [])
    end = fit(new(tmp_path/'a', ds_tfms=own()))
    cut(new(tmp_path/'b', ds_tfms=own()), 1, 1)
    assert fit(new(tmp_path/'b', ds_tfms=own()), 'last')==end
    with pytest.raises(AnotherRun, match='tfms'): fit(new(tmp_path/'b', ds_tfms=other), 'last')
    fit(new(tmp_path/'c', ds_tfms=get_transforms(xtra_tfms=[Brightness(max_lighting=.1)])))

def test_other_versions_are_only_told(done, new, whole, capsys):
    state = _read_state(done/'models'/'x_2.state')
    state['surroundings'].update(torch='2.6.0', device='Tesla T4')
    _write_tensors(state, done/'models'/'x_2.state')
    assert fit(new(done), 'last')==whole[1]
    assert 'device: Tesla T4 then' in (said := capsys.readouterr().out) and 'torch: 2.6.0 then' in said

def test_other_metrics_are_allowed(tmp_path, new, whole):
    cut(new(tmp_path), 2, 0)
    learn = new(tmp_path, metrics=[error_rate, accuracy])
    assert fit(learn, 'last')==whole[1]
    df = learn.recorder.to_frame()
    assert df.error_rate.isna().tolist()==[True, True, False] and df.accuracy.notna().all()
    learn.recorder.plot_metrics()

# ---- frozen, unfrozen, pieces

def test_a_frozen_body_stays_frozen(tmp_path, new):
    def frozen(folder):
        learn = new(folder)
        learn.freeze()
        return learn
    end = fit(frozen(tmp_path/'a'))
    cut(frozen(tmp_path/'b'), 1, 1)
    learn = new(tmp_path/'b') # nobody freezes it
    assert fit(learn, 'last')==end
    assert not all(p.requires_grad for p in learn.model[0].parameters())

def second_stage(learn, start, *cbs):
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, slice(1e-5, 1e-3), start_epoch=start, callbacks=[SaveModelCallback(learn, every=2, name='y'), *cbs])
    return weights_hash(learn.model)

@pytest.fixture(scope='module')
def staged(new, tmp_path_factory):
    "A head on a frozen body, then everything: its folder, killed in the second stage, and the end of the whole run."
    folder = tmp_path_factory.mktemp('staged')
    def first(path, start=0):
        learn = new(path)
        learn.freeze()
        fit(learn, start)
        return learn
    learn = first(folder/'a')
    end = second_stage(learn, 0)
    b = first(folder/'b')
    with pytest.raises(KeyboardInterrupt): second_stage(b, 0, Watch((1, 1), stop))
    return folder/'b',end,curves(learn),first

def test_the_second_stage_alone_in_a_new_process(staged, new, tmp_path):
    folder,end,history,_ = staged
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    learn = new(tmp_path)
    assert second_stage(learn, 'last')==end and curves(learn)==history

def test_both_stages_again_in_a_new_process(staged, tmp_path):
    folder,end,history,first = staged
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    learn = first(tmp_path, 'last')
    assert second_stage(learn, 'last')==end and curves(learn)==history

def test_a_second_stage_on_another_first_is_refused(staged, new, tmp_path):
    shutil.copytree(staged[0], tmp_path, dirs_exist_ok=True)
    learn = new(tmp_path)
    learn.freeze()
    fit(learn, lr=1e-3)
    with pytest.raises(AnotherRun, match='stages before it were trained otherwise'): second_stage(learn, 'last')

def test_a_cycle_in_three_pieces(tmp_path, new, whole):
    for n in (1, 2, 3): # each piece in a new learner
        learn = new(tmp_path)
        end = fit(learn, 'last', n=n, tot_epochs=3)
    assert end==whole[1] and curves(learn)==curves(whole[2])
    learn = new(tmp_path/'memory') # and all in one, without files
    with learn.no_bar(), learn.no_logging():
        for n in (1, 2, 3): learn.fit_one_cycle(n, 3e-3, tot_epochs=3, start_epoch=n-1)
    assert weights_hash(learn.model)==whole[1] and curves(learn)==curves(whole[2])

# ---- other callbacks

def tracked(new, folder, start, *cbs, n=7):
    "Everything that remembers something between batches or epochs: the second epoch is planted as the best, so the fifth is the last."
    learn = new(folder, metrics=Planted(.5, .7, .6, .72, .6, .9, .9))
    best = SaveModelCallback(learn, every='improvement', monitor='planted', name='best')
    state = SaveModelCallback(learn, every=2, name='x')
    early = EarlyStoppingCallback(monitor='planted', patience=3, min_delta=.05)
    plateau = ReduceLROnPlateau(monitor='planted', patience=1, min_delta=.05)
    with learn.no_bar(), learn.no_logging():
        learn.fit(n, 1e-2, start_epoch=start, callbacks=[best, state, early, plateau, GradientAccumulation(n_acc=40), *cbs])
    return weights_hash(learn.model),curves(learn),best.best,early.wait,plateau.wait,learn.opt.hypers[-1]['lr']

def test_patience_plateau_best_and_accumulation(tmp_path, new):
    end = tracked(new, tmp_path/'a', 0)
    epochs,rate = len(end[1][3]),end[-1]
    assert epochs==5 and end[2:4]==(.72, 3) and rate<1e-2 # it stopped early, and lowered the rate
    assert same_weights(tmp_path/'a'/'models', 'best', 'x_3')
    for k,at in enumerate([(0, 1), (3, 2), (4, 2)]):
        with pytest.raises(KeyboardInterrupt): tracked(new, tmp_path/f'{k}', 0, Watch(at, stop))
        assert tracked(new, tmp_path/f'{k}', 'last')==end
        assert same_weights(tmp_path, f'{k}/models/best', 'a/models/best')

def same_weights(folder, *names):
    read = [torch.load(folder/f'{name}.pth', weights_only=False) for name in names] # fastai's lists are in it
    one,two = (file.get('model', file) for file in read)
    return one.keys()==two.keys() and all(torch.equal(one[key], two[key]) for key in one)

def test_a_run_that_stopped_early_stays_stopped(tmp_path, new, capsys):
    end,count = tracked(new, tmp_path, 0),Watch()
    assert tracked(new, tmp_path, 'last', count)==end and count.n==0
    assert 'It stopped early after epoch' in capsys.readouterr().out
    tracked(new, tmp_path, len(end[1][3]), count)
    assert count.n>0 # whoever names the epoch goes on

def test_a_schedule_of_fastai(tmp_path, new):
    "fastai's own clock goes on too, in the middle of an epoch."
    def run(folder, start, *cbs):
        learn = new(folder)
        with learn.no_bar(), learn.no_logging():
            own = [SaveModelCallback(learn, every=1, name='x'), ParamScheduler({'lr': SchedCos(1e-2, 1e-4)})]
            learn.fit(3, start_epoch=start, callbacks=[*own, *cbs])
        return weights_hash(learn.model),curves(learn)
    end = run(tmp_path/'a', 0)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', 0, Watch((1, 2), stop))
    assert run(tmp_path/'b', 'last')==end

def test_the_rate_finder_writes_nothing(tmp_path, new):
    learn = new(tmp_path)
    learn.add_cb(SaveModelCallback(every=1, name='x'))
    learn.lr_find(num_it=3)
    assert not (tmp_path/'models').exists() or not files(tmp_path)

class Dice(Callback):
    "Somebody's callback that draws from the global streams, and a gradient scale that changes."
    order = 5
    def __init__(self): self.drawn = []
    def before_fit(self):
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.)
        self.learn.scaler.scale(torch.ones(1)) # it begins with its first use
    def state_dict(self): return dict(drawn=self.drawn)
    def load_state_dict(self, state): self.drawn = [tuple(draw) for draw in state['drawn']]
    def before_train(self): self.drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    def after_epoch(self): self.learn.scaler.update(self.learn.scaler.get_scale()*3)

def test_streams_and_the_gradient_scale_go_on(tmp_path, new):
    def seeded(folder):
        learn = new(folder)
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        return learn
    a,whole_run = seeded(tmp_path/'a'),Dice()
    fit(a, 0, whole_run)
    cut(seeded(tmp_path/'b'), 2, 0, Dice())
    b,rest = new(tmp_path/'b'),Dice() # seeded otherwise
    fit(b, 'last', rest)
    assert rest.drawn==whole_run.drawn and a.scaler.get_scale()==b.scaler.get_scale()==2*3**3

def test_two_callbacks_of_one_kind_keep_their_own_counters(tmp_path, new):
    def run(start, *cbs):
        learn = new(tmp_path, metrics=Planted(.5, .4, .3)) # worse each time; the second callback calls that better
        one,two = (EarlyStoppingCallback(monitor='planted', patience=9, min_delta=o) for o in (0, -9))
        fit(learn, start, one, two, *cbs)
        return one.wait,two.wait
    end = run(0)
    assert end==(2, 0)
    assert run(2)==end

def test_thawing_is_undone_with_a_word(tmp_path, new, capsys):
    learn = new(tmp_path)
    learn.freeze()
    with pytest.raises(KeyboardInterrupt): fit(learn, 0, Watch((1, 1), stop))
    learn = new(tmp_path) # all of it is trained
    fit(learn, 'last')
    assert 'Frozen as it was then' in capsys.readouterr().out and not all(p.requires_grad for p in learn.model.parameters())

def test_a_disk_that_cannot_sync_folders(tmp_path, new, whole, monkeypatch):
    "Disks in the network refuse to sync a folder; a full one is still an error."
    real = os.fsync
    def fsync(fd, code=errno.EINVAL):
        if stat.S_ISDIR(os.fstat(fd).st_mode): raise OSError(code, os.strerror(code))
        real(fd)
    monkeypatch.setattr(os, 'fsync', fsync)
    assert fit(new(tmp_path/'a'))==whole[1]
    monkeypatch.setattr(os, 'fsync', partial(fsync, code=errno.EIO))
    with pytest.raises(StateNotWritten): fit(new(tmp_path/'b'))

@pytest.mark.parametrize('kwargs', [dict(mode='best'), dict(every='batch'), dict(every=0), dict(every=True), dict(keep=1)])
def test_what_a_saver_does_not_understand(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))): SaveModelCallback(**kwargs)

@pytest.mark.parametrize('name,mode,best', [('error_rate', 'auto', 2), ('kappa', 'auto', 1), ('kappa', 'min', 2), ('error_rate', 'max', 1)])
def test_what_is_better(name, mode, best, tmp_path, new):
    "The best epoch is planted: its weights are in the file, and in the learner when the training ends."
    learn = new(tmp_path, metrics=Planted(.5, .8, .2, .6, .8, .2, name=name))
    saver = SaveModelCallback(learn, name='best', monitor=name, mode=mode)
    with learn.no_bar(), learn.no_logging(): learn.fit(6, 1e-3, callbacks=[saver, SaveModelCallback(learn, every='epoch', name='x')])
    assert same_weights(tmp_path/'models', 'best', f'x_{best}') # of equal ones, the first
    end = weights_hash(learn.model)
    assert weights_hash(learn.load('best').model)==end

def test_a_loss_is_better_when_it_is_lower():
    for name in ('valid_loss', 'val_loss'): # v1's name, too
        assert SaveModelCallback(monitor=name).comp is np.less

def test_a_monitor_that_is_not_measured_is_a_warning(tmp_path, new):
    learn = new(tmp_path)
    with pytest.warns(UserWarning, match="'error_rate' is not measured here"), learn.no_bar(), learn.no_logging():
        learn.fit(1, callbacks=[SaveModelCallback(learn, every='epoch', monitor='error_rate', name='x')])

# ---- what fastai ships: exact, or refused before the first batch. A new optimizer or callback fails the test until it has a row

def stepping(params, lr, **kwargs): return Optimizer(params, [weight_decay, average_grad, momentum_step], lr=lr, mom=.9, wd=.01)
def looking_ahead(params, lr, **kwargs): return Lookahead(SGD(params, lr=lr, mom=.9), k=2)

OPTIMIZERS = dict(
    Optimizer=stepping, Lookahead=looking_ahead, ranger=partial(ranger, k=2), SGD=partial(SGD, mom=.9), RMSProp=partial(RMSProp, mom=.9), Adam=Adam, RAdam=RAdam,
    QHAdam=QHAdam, Larc=Larc, Lamb=Lamb, OptimWrapper=partial(OptimWrapper, opt=torch.optim.AdamW))
WRAPPED = dict(SGD=dict(momentum=.9), NAdam={}, Adamax={}, RMSprop=dict(momentum=.9), RAdam={}) # a few of torch's

def made_from_fastai():
    "Optimizers of fastai, by what they say they return."
    for name in fastai.optimizer.__all__:
        maker = getattr(fastai.optimizer, name)
        if isinstance(maker, type) and issubclass(maker, fastai.optimizer._BaseOptimizer): yield name
        elif getattr(maker, '__annotations__', {}).get('return') in (Optimizer, Lookahead): yield name

def callbacks_of_fastai():
    "Every class in the files of fastai that comes from Callback, also where a package that it needs is missing."
    bases = {}
    for file in Path(fastai.__file__).parent.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ClassDef): bases[node.name] = [getattr(base, 'id', '') for base in node.bases]
    found = {'Callback'}
    while more := {name for name,above in bases.items() if found & {*above}} - found: found |= more
    return found - {'Callback'}

EXACT = dict(
    ShortEpochCallback=partial(ShortEpochCallback, .4), GradientAccumulation=partial(GradientAccumulation, 40), GradientClip=partial(GradientClip, .1), BnFreeze=BnFreeze,
    TerminateOnNaNCallback=TerminateOnNaNCallback, TrackerCallback=TrackerCallback, EarlyStoppingCallback=partial(EarlyStoppingCallback, patience=9),
    ReduceLROnPlateau=partial(ReduceLROnPlateau, patience=1), SaveModelCallback=StockSaver, MixUp=MixUp, CutMix=CutMix, ChannelsLast=ChannelsLast,
    MCDropoutCallback=MCDropoutCallback, MixedPrecision=MixedPrecision, RNNRegularizer=RNNRegularizer, CSVLogger=CSVLogger,
    ParamScheduler=lambda: ParamScheduler({'lr': SchedCos(1e-2, 1e-4)}))
REFUSED = dict( # whoever knows that nothing hangs on it says so: looks_on = True
    ActivationStats='keeps `hooks`', HookCallback='keeps `hooks`', CollectDataCallback='keeps `data`')
NO_TRAINING = dict( # with which no network that tells pictures apart is trained: why
    GANTrainer='two networks', FixedGANSwitcher='two networks', AdaptiveGANSwitcher='two networks', GANDiscriminativeLR='two networks',
    RNNCallback='text', ModelResetter='text', MixHandler='the base of MixUp and CutMix', LRFinder='the rate finder writes no states', SkipToEpoch='our fit begins where it is told',
    Recorder='ours stands in its place', TrainEvalCallback='in every learner', CastToTensor='in every learner', GatherPredsCallback='predictions', FetchPredsCallback='predictions',
    ParallelTrainer='several devices: see extra.distributed', DistributedTrainer='several devices: see extra.distributed',
    ModelToHalf='to_fp16 is in its place', NonNativeMixedPrecision='to_fp16 is in its place', ProgressCallback='ours stands in its place', ShowGraphCallback='for notebooks: it draws',
    VerboseCallback='for the tests of fastai')
SERVICES = 'WandbCallback CometCallback AzureMLCallback TensorBoardBaseCallback TensorBoardCallback TensorBoardProjectorCallback'.split() # the rule for your own

def rarely(names, *slow):
    "Parameters of a test, some of which are for `make test-all`."
    return [pytest.param(name, marks=[pytest.mark.slow]*(name in slow)) for name in names]

def test_every_optimizer_and_callback_of_fastai_has_a_row():
    assert {*made_from_fastai()}=={*OPTIMIZERS}
    rows = [*EXACT, *REFUSED, *NO_TRAINING, *SERVICES]
    assert callbacks_of_fastai()=={*rows} and len(rows)==len({*rows})

def is_exact(new, folder, make=list, n=2, **kwargs):
    "Stopped in the last epoch, after a state and two batches of it; then a new learner goes on."
    def run(part, start, *cbs): return fit(new(folder/part, **kwargs), start, *cbs, *make(), every=2, n=n)
    end = run('a', 0)
    with pytest.raises(KeyboardInterrupt): run('b', 'last', Watch((n-1, 2), stop))
    count = Watch()
    return run('b', 'last', count)==end and count.n==BATCHES-2

def goes_on(new, folder, *cbs): return fit(new(folder/'b'), 'last', *cbs, every=2, n=2)

@pytest.mark.parametrize('name', rarely(OPTIMIZERS, 'RMSProp', 'QHAdam', 'Larc', 'Optimizer'))
def test_optimizers_of_fastai_go_on_exactly(name, tmp_path, new): assert is_exact(new, tmp_path, n=1, ds_tfms=None, opt_func=OPTIMIZERS[name])

@pytest.mark.slow
@pytest.mark.parametrize('name', WRAPPED)
def test_optimizers_of_torch_go_on_exactly(name, tmp_path, new):
    assert is_exact(new, tmp_path, n=1, ds_tfms=None, opt_func=partial(OptimWrapper, opt=getattr(torch.optim, name), **WRAPPED[name]))

@pytest.mark.parametrize('name', rarely(EXACT, 'ChannelsLast', 'MCDropoutCallback', 'RNNRegularizer', 'TrackerCallback', 'CSVLogger', 'BnFreeze', 'TerminateOnNaNCallback', 'CutMix'))
def test_callbacks_of_fastai_go_on_exactly(name, tmp_path, new):
    for part in 'ab': (tmp_path/part).mkdir() # CSVLogger makes no folder
    assert is_exact(new, tmp_path, lambda: [EXACT[name]()], ds_tfms=None)

@pytest.mark.parametrize('share', [.2, .9])
def test_averaged_weights_go_on_exactly(share, tmp_path, new):
    "Stopped before the mean begins and after; and once more when nothing is left to train."
    assert is_exact(new, tmp_path, lambda: [AverageWeights(share)])
    last = fit(new(tmp_path/'c'), 0, every=2, n=2)
    end = goes_on(new, tmp_path, AverageWeights(share))
    assert end==goes_on(new, tmp_path, AverageWeights(share))!=last
    with pytest.raises(AnotherRun, match='share'): goes_on(new, tmp_path, AverageWeights(share/2))

def test_a_body_whose_batch_norm_stays(tmp_path, new):
    def frozen(folder, **kwargs):
        learn = new(folder, **kwargs)
        learn.train_bn = False
        learn.freeze()
        return learn
    assert is_exact(frozen, tmp_path, lambda: [BnFreeze()])
    with pytest.raises(AnotherRun, match='train_bn: False then, True now'): goes_on(new, tmp_path, BnFreeze())

def first_batch(new, folder, *cbs, **kwargs):
    "Begin a training; returns the error, which must come before the first batch."
    count = Watch()
    with pytest.raises((TypeError, ValueError, AttributeError)) as error: fit(new(folder, **kwargs), 0, *cbs, count)
    assert count.n==0
    return str(error.value)

@pytest.mark.parametrize('name', REFUSED)
def test_callbacks_of_fastai_that_are_refused(name, tmp_path, new):
    from fastai.callback import data, hook
    make = getattr(hook, name, None) or getattr(data, name)
    assert REFUSED[name] in (said := first_batch(new, tmp_path, make())) and 'looks_on = True' in said
    looks_on = make()
    looks_on.looks_on = True
    assert fit(new(tmp_path/'b'), 0, looks_on, n=1)==fit(new(tmp_path/'c'), n=1)

# what differs from the run that was interrupted: (callbacks and settings then, now)
CHANGED = dict(
    mixup_gone=([MixUp], []), mixup_new=([], [MixUp]), mixup_alpha=([MixUp], [partial(MixUp, .8)]), cutmix_alpha=([CutMix], [partial(CutMix, .5)]), another=([MixUp], [CutMix]),
    clip=([partial(GradientClip, .1)], [partial(GradientClip, .2)]), accumulate=([partial(GradientAccumulation, 40)], [partial(GradientAccumulation, 20)]),
    patience=([partial(EarlyStoppingCallback, patience=9)], [partial(EarlyStoppingCallback, patience=8)]), order=([MixUp, GradientClip], [GradientClip]))

@pytest.mark.parametrize('what', rarely(CHANGED, 'mixup_new', 'cutmix_alpha', 'another', 'clip', 'order'))
def test_other_callbacks_are_another_run(what, tmp_path, new):
    then,now = CHANGED[what]
    fit(new(tmp_path), 0, *[make() for make in then], n=1)
    with pytest.raises(AnotherRun, match='callbacks: .* then, .* now'): fit(new(tmp_path), 'last', *[make() for make in now], n=1)

OTHER_STEPS = dict(
    lookahead=(looking_ahead, lambda params, lr, **kwargs: Lookahead(SGD(params, lr=lr, mom=.9), k=3)), no_lookahead=(looking_ahead, partial(SGD, mom=.9)),
    hidden=(lambda params, lr, **kwargs: Adam(params, lr=lr, eps=1e-5), lambda params, lr, **kwargs: Adam(params, lr=lr, eps=1e-3)),
    decouple=(Adam, partial(Adam, decouple_wd=False)), kind=(Adam, RAdam), wrapped=(partial(OptimWrapper, opt=torch.optim.AdamW), partial(OptimWrapper, opt=torch.optim.NAdam)))

@pytest.mark.parametrize('what', rarely(OTHER_STEPS, 'decouple', 'kind', 'wrapped'))
def test_another_optimizer_is_another_run(what, tmp_path, new):
    then,now = OTHER_STEPS[what]
    fit(new(tmp_path, opt_func=then), n=1)
    with pytest.raises(AnotherRun, match='optimizer'): fit(new(tmp_path, opt_func=now), 'last', n=1)

def test_another_layout_of_the_weights_is_another_run(tmp_path, new):
    def turned(folder):
        learn = new(folder)
        learn.model.to(memory_format=torch.channels_last)
        return learn
    assert is_exact(lambda folder, **kwargs: turned(folder), tmp_path)
    with pytest.raises(AnotherRun, match='layout: channels last then, channels first now'): goes_on(new, tmp_path)
    learn = new(tmp_path/'c')
    learn.wd_bn_bias = True
    with pytest.raises(KeyboardInterrupt): fit(learn, 0, Watch((1, 1), stop))
    with pytest.raises(AnotherRun, match='wd_bn_bias: True then, False now'): fit(new(tmp_path/'c'), 'last')

# ---- callbacks of one's own

class Average(Callback):
    "A moving average of the weights takes their place at the end of an epoch; it says what it remembers."
    def __init__(self, keep=.9): self.keep = keep
    def before_fit(self): self.mean = [p.detach().clone() for p in self.model.parameters()]
    def after_batch(self):
        if self.training: self.mean = [self.keep*mean + (1-self.keep)*p.detach() for mean,p in zip(self.mean, self.model.parameters())]
    def after_epoch(self):
        with torch.no_grad():
            for p,mean in zip(self.model.parameters(), self.mean): p.copy_(mean)

class SaidAverage(Average):
    def state_dict(self): return dict(mean=self.mean)
    def load_state_dict(self, state): self.mean = state['mean']

class Noise(Callback):
    "No memory: the argument is all there is."
    order = 5
    def __init__(self, sigma): self.sigma = sigma
    def before_batch(self):
        if self.training: self.learn.xb = (self.x + self.sigma*torch.randn_like(self.x),)

class Rising(Noise):
    "Its setting is what it remembers."
    def after_epoch(self): self.sigma *= 2

class Late(Callback):
    "What it keeps comes with the first batch."
    def after_batch(self): self.seen = getattr(self, 'seen', 0) + 1

def test_ones_own_callback_goes_on_exactly_if_it_says_what_it_remembers(tmp_path, new):
    assert is_exact(new, tmp_path/'a', lambda: [SaidAverage()]) and is_exact(new, tmp_path/'b', lambda: [Noise(.1)])
    with pytest.raises(AnotherRun, match="'sigma': 0.1}. then, .*'sigma': 0.2}. now"): goes_on(new, tmp_path/'b', Noise(.2))
    with pytest.raises(AnotherRun, match='callbacks'): goes_on(new, tmp_path/'b')

def test_ones_own_callback_is_refused_if_it_keeps_what_no_state_knows(tmp_path, new):
    assert 'Average keeps `mean`' in first_batch(new, tmp_path/'a', Average())
    for cb,said in ((Late(), 'Late keeps `seen`'), (Rising(.1), 'changes its own settings')): # seen when the next state is due, not at the end
        with pytest.raises(TypeError, match=said): fit(new(tmp_path/type(cb).__name__), 0, cb)
    fit(new(tmp_path/'best'), 0, Late(), n=1, every='improvement') # without states, nothing is promised

# ---- averages, failed trainings, names

def averages(learn): return [value.clone() for state in learn.opt.state_dict()['state'] for value in state.values() if isinstance(value, torch.Tensor)]

@pytest.mark.parametrize('opt_func', [Adam, partial(SGD, mom=.9), ranger])
def test_the_best_epoch_brings_back_weights_and_averages(opt_func, tmp_path, new):
    "As in v1: another training begins from both."
    seen = {}
    class Look(Callback):
        order,looks_on = 59,True
        def after_epoch(self): seen[self.epoch] = weights_hash(self.model),averages(self.learn)
    learn = new(tmp_path, metrics=Planted(.5, .8, .2), opt_func=opt_func)
    best = SaveModelCallback(learn, monitor='planted')
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, callbacks=[best, Look()])
    then,now = seen[1][1],averages(learn)
    assert weights_hash(learn.model)==seen[1][0]!=seen[2][0] and best.best==.8
    assert len(then)==len(now)>0 and all(torch.equal(a, b) for a,b in zip(then, now))

def test_a_training_that_fails_leaves_the_good_files(tmp_path, new, whole):
    "The weights become NaN between two states: nothing is written over the good ones, and one goes on from them."
    def poison(learn): return lambda: [p.data.fill_(float('nan')) for p in learn.model.parameters()]
    for every in (1, 'epoch'):
        learn = new(tmp_path/str(every))
        with pytest.raises(FloatingPointError): fit(learn, 0, Watch((1, 2), poison(learn)), every=every)
        kept = [torch.load(path, weights_only=True) for path in (tmp_path/str(every)/'models').glob('*.pth')]
        assert len(kept)>1 and all(value.isfinite().all() for weights in kept for value in weights.values())
        assert fit(new(tmp_path/str(every)), 'last', every=every)==whole[1]
    learn = new(tmp_path/'best', metrics=Planted(.1, .9, .9)) # it cannot be the best, whatever it scores
    with pytest.raises(FloatingPointError): fit(learn, 0, Watch((1, 2), poison(learn)), SaveModelCallback(learn, monitor='planted'))
    assert all(p.isfinite().all() for p in learn.load('bestmodel').model.parameters())

def trained_best(learn, *cbs, name='bestmodel', lr=1e-3):
    with learn.no_bar(), learn.no_logging(): learn.fit(3, lr, callbacks=[SaveModelCallback(learn, monitor='planted', name=name), *cbs])

OTHERS = dict(written_over=lambda learn, other: other.save('bestmodel'), gone=lambda learn, other: (Path(learn.path)/'models/bestmodel.pth').unlink(),
              same_weights_without_averages=lambda learn, other: learn.save('bestmodel', with_opt=False))

@pytest.mark.parametrize('what', OTHERS)
def test_the_best_model_is_what_this_training_wrote(what, tmp_path, new):
    learn,other = (new(tmp_path, metrics=Planted(.5, .9, .2)) for _ in range(2))
    with pytest.raises(StateDamaged, match='bestmodel.pth is not what this training wrote.*name= or path='):
        trained_best(learn, Watch((2, 1), lambda: OTHERS[what](learn, other)))

def test_two_trainings_in_one_folder_do_not_exchange_weights(tmp_path, new):
    "One after the other is what everybody does; one within the other is refused."
    for _ in range(2): trained_best(new(tmp_path, metrics=Planted(.5, .9, .2)))
    outer,inner = (new(tmp_path, metrics=Planted(.5, .9, .2)) for _ in range(2))
    with pytest.raises(StateDamaged, match='another one may save under this name'): trained_best(outer, Watch((2, 0), lambda: trained_best(inner, lr=1e-2)))
    trained_best(outer, Watch((2, 0), lambda: trained_best(inner, name='theirs')), name='mine')

def test_two_callbacks_of_one_name_are_refused(tmp_path, new):
    learn = new(tmp_path)
    for words in (dict(), dict(every='epoch', name='a/b'), dict(every=2, name='x')):
        count = Watch()
        with pytest.raises(ValueError, match='two callbacks would save under the name'), learn.no_bar():
            learn.fit(1, callbacks=[SaveModelCallback(**words), SaveModelCallback(**words), count])
        assert count.n==0
    with learn.no_bar(), learn.no_logging(): learn.fit(1, callbacks=[SaveModelCallback(), SaveModelCallback(every='epoch')]) # other files

def test_a_continued_run_knows_its_best_model(tmp_path, new):
    def run(folder, start, *cbs):
        learn = new(folder, metrics=Planted(.9, .5, .2))
        fit(learn, start, SaveModelCallback(learn, monitor='planted'), *cbs)
        return weights_hash(learn.model),averages(learn)
    end = run(tmp_path/'a', 0)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'b', 0, Watch((2, 1), stop))
    now = run(tmp_path/'b', 'last')
    assert now[0]==end[0] and all(torch.equal(a, b) for a,b in zip(now[1], end[1]))
    new(tmp_path/'b').save('bestmodel')
    with pytest.raises(StateDamaged, match='not what this training wrote'): run(tmp_path/'b', 'last')

def test_each_stage_needs_a_name_of_its_own(tmp_path, new, capsys):
    "The second would train nothing, and undo what was thawed."
    learn = new(tmp_path)
    learn.freeze()
    fit(learn, 'last')
    for n,words in ((EPOCHS, {}), (EPOCHS, dict(tot_epochs=EPOCHS))):
        learn.unfreeze()
        with pytest.raises(AnotherRun, match='x_2 is of an earlier stage.*its own name='): fit(learn, 'last', n=n, **words)
        assert all(p.requires_grad for p in learn.model.parameters())
    again = new(tmp_path) # from top to bottom in a new process
    again.freeze()
    fit(again, 'last')
    assert 'Loaded x_2: nothing is left to train' in capsys.readouterr().out
    again.unfreeze()
    with pytest.raises(AnotherRun, match='earlier stage'): fit(again, 'last')
    again.freeze()
    fit(again, 'last') # the same cell once more
    with pytest.raises(AnotherRun, match='belongs to another run'): fit(again, 'last', lr=1e-4)

def test_a_constant_rate_is_no_way_around(tmp_path, new):
    learn = new(tmp_path)
    learn.freeze()
    def go(n):
        with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3, start_epoch='last', callbacks=[SaveModelCallback(learn, every='epoch', name='x')])
    go(1)
    learn.unfreeze()
    with pytest.raises(AnotherRun, match='earlier stage'): go(3)

@pytest.mark.parametrize('name', rarely(['a/b/c', 'with space', 'ünï.b', Path('p')/'x[1]', 'a/../b'], 'with space', 'ünï.b', 'a/../b'))
def test_names_with_folders(name, tmp_path, new, whole):
    learn = new(tmp_path)
    def go(learn, start, *cbs):
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(EPOCHS, 3e-3, start_epoch=start, callbacks=[SaveModelCallback(learn, every='epoch', name=name), SaveModelCallback(learn, name=f'{name}_best'), *cbs])
    with pytest.raises(KeyboardInterrupt): go(learn, 0, Watch((1, 1), stop))
    learn = new(tmp_path)
    go(learn, 'last')
    place = (tmp_path/'models'/f'{name}_2').resolve()
    assert place.with_name(place.name + '.pth').exists() and weights_hash(learn.load(f'{name}_2').model)==whole[1]

@pytest.mark.parametrize('name', ['', '.', '..', 'a/..'])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match='name is that of a file under models/'): SaveModelCallback(name=name)

def test_the_remedy_fits_the_fault(tmp_path, new):
    "Nothing says 'make room' where there is room."
    def said(name, every='epoch'):
        learn = new(tmp_path)
        with pytest.raises(StateNotWritten) as error, learn.no_bar(): learn.fit(1, callbacks=[SaveModelCallback(name=name, every=every)])
        return str(error.value)
    (tmp_path/'models').mkdir()
    (tmp_path/'models/file').write_text('I am a file')
    for name in ('file/x', 'n'*300):
        for every in ('epoch', 'improvement'):
            assert 'Make room' not in (text := said(name, every)) and 'Choose another name=' in text

def test_changed_pictures_are_another_run(tmp_path, new, pictures):
    "The same names, labels and sides; one picture is another. Renamed, new and relabelled ones are another split."
    copy = tmp_path/'pictures'
    shutil.copytree(pictures, copy)
    names = sorted(path.relative_to(copy).as_posix() for path in copy.glob('*/*.png'))
    def learner():
        data = ImageDataBunch.from_name_func(copy, names, lambda path: path.parent.name, size=32, bs=16, cache=False, num_workers=0)
        return CNNLearner(data, small_net(), path=tmp_path)
    fit(learner(), n=1)
    os.utime(copy/names[0]) # copied or extracted anew: the same picture
    fit(learner(), 'last', n=1)
    Image.open(copy/names[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy/names[0])
    with pytest.raises(AnotherRun, match='pictures: .* then, .* now'): fit(learner(), 'last', n=1)

@pytest.mark.parametrize('then,here', [(2, 1), (1, 2), (2, 2), (1, 0), (0, 1), (3, 1)])
def test_a_state_of_other_devices_goes_on(then, here, monkeypatch):
    "As many generators are set as are here; the others are left alone."
    stood = [torch.full((16,), 7 + i, dtype=torch.uint8) for i in range(then)]
    found = {}
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: here)
    monkeypatch.setattr(torch.cuda, 'set_rng_state', lambda state, device: found.update({device: state}))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: then>0)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: stood)
    kept = _streams()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: here>0)
    _set_streams(kept)
    assert sorted(found)==[*range(min(then, here))] and all(torch.equal(found[i], stood[i]) for i in found)

# ---- stock fastai, the baseline

def stock(sample_root, path, start=0, seed=1, cbs=()):
    "fastai's own learner and callbacks on the same cells."
    from fastai.vision.all import ImageDataLoaders,Resize,aug_transforms,set_seed,vision_learner
    from torchvision.models import resnet18
    names = sorted(sample_root.glob('*/*.png'))[::8]
    set_seed(seed)
    dls = ImageDataLoaders.from_lists(path, names, [o.parent.name for o in names], seed=42, bs=24, item_tfms=Resize(32),
                                      batch_tfms=aug_transforms(), num_workers=0)
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, path=path)
    if start: learn.load('model_1')
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 3e-3, start_epoch=start, cbs=[o() for o in cbs])
    return learn

@pytest.mark.slow
def test_stock_fastai_is_neither_exact_nor_whole(sample_root, tmp_path):
    from fastai.callback.tracker import SaveModelCallback as Stock
    every = partial(Stock, every_epoch=True, with_opt=True)
    end = stock(sample_root, tmp_path, cbs=[every])
    kept = {i: torch.load(tmp_path/'models'/f'model_{i}.pth', weights_only=False)['model'] for i in (0, 1)}
    go_on = stock(sample_root, tmp_path, start=2, seed=2, cbs=[every])
    apart = max((a-b).abs().max().item() for a,b in zip(end.model.state_dict().values(), go_on.model.state_dict().values()) if a.is_floating_point())
    assert apart>0
    if os.environ.get('UPDATE_RESULTS'): write_row(STOCK, 'run', dict(run='resnet18, 32 pixels, 4 epochs, continued after 2', weights_apart=round(apart, 3), torch=torch.__version__))
    assert pd.read_csv(STOCK).weights_apart.iloc[0]>0
    now = torch.load(tmp_path/'models'/'model_0.pth', weights_only=False)['model'] # the weights of epoch 0 are lost: those of epoch 1 stand there
    assert all(torch.equal(now[k], kept[1][k]) for k in now) and not all(torch.equal(now[k], kept[0][k]) for k in now)
    for crash in (Stock, EarlyStoppingCallback):
        with pytest.raises(IndexError): stock(sample_root, tmp_path, start=2, cbs=[crash])
    check_row('stock fastai 2, continued with start_epoch', 'nothing; IndexError with SaveModelCallback or EarlyStoppingCallback',
              'the result: other weights (how far apart: below); the saved weights of earlier epochs are overwritten')

# ---- cost

def timed(f):
    wall,cpu = time.perf_counter(),time.process_time()
    f()
    return time.perf_counter()-wall,time.process_time()-cpu

def cost(learn, folder):
    "Seconds, of the clock and of the processor, of torch.save and SHA-256 of the weights and averages, and of writing a state; megabytes."
    cb = SaveModelCallback(every='epoch', name='cost')
    cb.learn,cb.config = learn,_run_config(learn)
    tensors = dict(model=learn.model.state_dict(), opt=[v for o in learn.opt.state.values() for v in o.values() if isinstance(v, torch.Tensor)])
    def plainly():
        with open(folder/'plain', 'wb') as f:
            torch.save(tensors, f)
            f.flush()
            os.fsync(f.fileno()) # a state is on the disk when it is written; so shall this be
        sha = hashlib.sha256()
        for o in [*tensors['model'].values(), *tensors['opt']]: sha.update(o.contiguous().numpy().data)
    both = [(timed(plainly), timed(lambda: cb._save(0))) for _ in range(5)]
    best = np.array(both).min(0)
    mb = {k: (folder/'models'/f'cost_0.{k}').stat().st_size/1e6 for k in ('pth', 'state')}
    return dict(weights_mb=round(mb['pth'], 1), state_mb=round(mb['state'], 1), save_and_hash_s=best[0,0], state_s=best[1,0],
                clock_ratio=best[1,0]/best[0,0], cpu_ratio=best[1,1]/best[0,1])

def nbytes(tensors): return sum(o.numel()*o.element_size() for o in tensors)

def sizes(learn, folder, name):
    "Of the weights' file and of the state: bytes on the disk, and bytes of the tensors that must be in it."
    averages = [v for o in learn.opt.state.values() for v in o.values() if isinstance(v, torch.Tensor)]
    yield (folder/'models'/f'{name}.pth').stat().st_size,nbytes(learn.model.state_dict().values())
    yield (folder/'models'/f'{name}.state').stat().st_size,nbytes(averages)

def test_every_number_is_stored_once(whole):
    folder,_,learn = whole
    for stored,needed in sizes(learn, folder, 'x_2'): assert needed<=stored<needed+40_000 # names, places, the streams of chance

@pytest.mark.slow
@pytest.mark.parametrize('arch', ['resnet18', *['resnet34']*bool(os.environ.get('UPDATE_RESULTS'))]) # two for the table
def test_costs_of_a_state(arch, tmp_path, new, record_property):
    "Megabytes are checked; seconds hang on what else the machine does, and are shown."
    learn = new(tmp_path, arch=arch, lin_ftrs=None, bs=48)
    fit(learn, n=1)
    row = cost(learn, tmp_path)
    if os.environ.get('UPDATE_RESULTS'): write_row(COST, 'arch', dict(arch=arch, **{k: round(v, 2) for k,v in row.items()}))
    record_property('shown', f'{arch}: writing a state takes {row["cpu_ratio"]:.2f} times the processor time of saving and hashing')
    for stored,needed in sizes(learn, tmp_path, 'x_0'): assert needed<=stored<1.01*needed

# ---- kills

@pytest.mark.slow
def test_kills_from_outside(sample_root, tmp_path):
    "Where a kill lands is chance, and shown; that the run ends as if there had been none must hold for all of them."
    out = tmp_path/'kills.csv'
    words = [HERE/'kill_resume.py', '--kills', '5', '--arch', ARCH, '--sample', sample_root, '--out', out]
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(HERE.parent)))
    print(run.stdout)
    assert run.returncode==0, run.stdout+run.stderr
    df = pd.read_csv(out, comment='#')
    assert len(df)==5 and df.equal.all() and df.no_replay.all()
    assert {*zip(df.workers, df.frozen)}=={(w, f) for w in (0, 2) for f in (True, False)}
    assert df.fresh.sum()>=2
    assert (df.lost<=df.every.map(lambda o: 6 if o=='epoch' else int(o))).all()
