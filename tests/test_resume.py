"""Training that survives anything: kills from outside, damaged files, disks that are full, read-only or gone, and what stock fastai does.

The kills are those of `kill_resume.py`, in the slow tests. What each fault led to is compared with `results/resume_faults.csv`, the table in the documentation. That table, and the one of the costs, are written anew by

    UPDATE_RESULTS=1 python -m pytest tests/test_resume.py -k "fault or costs"
"""
import errno,hashlib,os,random,shutil,stat,subprocess,sys,time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler,SchedCos
from fastai.callback.tracker import EarlyStoppingCallback,ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation
from fastai.learner import Metric
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy,error_rate
from fastai.optimizer import Adam
from PIL import Image
from torch import nn
from malaria_fastai.backbone import split_params
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import ImageDataBunch
from malaria_fastai.learner import CNNLearner, cnn_learner, weights_hash
from malaria_fastai.resume import AnotherRun,SaveModelCallback,StateDamaged,StateNotWritten,_read_state,_write_tensors
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
    with pytest.raises(AnotherRun, match='x_2 belongs to another run:\n  (cycle|wd).* then, .* now'): fit(new(done), 'last', **kwargs)

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
        assert (tmp_path/f'{k}'/'models'/'best.pth').read_bytes()==(tmp_path/'a'/'models'/'best.pth').read_bytes()

def same_weights(folder, *names):
    one,two = (torch.load(folder/f'{name}.pth', weights_only=True) for name in names)
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
    def before_train(self): self.drawn.append((random.random(), np.random.rand()))
    def after_epoch(self): self.learn.scaler.update(self.learn.scaler.get_scale()*3)

def test_streams_and_the_gradient_scale_go_on(tmp_path, new):
    def seeded(folder):
        learn = new(folder)
        random.seed(1), np.random.seed(1)
        return learn
    a,whole_run = seeded(tmp_path/'a'),Dice()
    fit(a, 0, whole_run)
    cut(seeded(tmp_path/'b'), 2, 0, Dice())
    b,rest = new(tmp_path/'b'),Dice() # seeded otherwise
    fit(b, 'last', rest)
    assert rest.drawn==whole_run.drawn[2:] and a.scaler.get_scale()==b.scaler.get_scale()==2*3**3

def test_two_callbacks_of_one_kind_keep_their_own_counters(tmp_path, new):
    def run(start, *cbs):
        learn = new(tmp_path, metrics=Planted(.5, .4, .3)) # worse each time; the second callback calls that better
        one,two = (EarlyStoppingCallback(monitor='planted', patience=9, min_delta=o) for o in (0, -9))
        fit(learn, start, one, two, *cbs)
        return one.wait,two.wait
    end = run(0)
    assert end==(2, 0)
    assert run(2)==end

def test_a_shorter_training_tells_which_weights_stay(done, new, capsys):
    fit(new(done), n=1)
    assert 'x_0, will be replaced. Its weights x_1, x_2 stay' in capsys.readouterr().out

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
        saver = SaveModelCallback(monitor=name)
        assert (saver.monitor, saver.sign)==('valid_loss', -1)

def test_a_monitor_that_is_not_measured_is_a_warning(tmp_path, new):
    learn = new(tmp_path)
    with pytest.warns(UserWarning, match="'error_rate' is not measured here"), learn.no_bar(), learn.no_logging():
        learn.fit(1, callbacks=[SaveModelCallback(learn, every='epoch', monitor='error_rate', name='x')])

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
    cb.learn = learn
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
