"""Kill a real training from outside at drawn moments, go on in another process, and compare with the run that nobody killed.

    python tests/kill_resume.py --kills 200 --out results/resume_soak.csv

Importing fastai takes seconds, so most children are forked from this process, which has imported everything and trained nothing;
`--fresh` runs start new interpreters. Each run is killed a few times, then left alone until it ends. A child writes one line to
its log per event, straight through the kernel, so that the log survives the kill."""
import argparse,contextlib,json,multiprocessing,os,random,shutil,signal,subprocess,sys,tempfile,time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS='1', TQDM_DISABLE='1') # the last bits depend on the number of threads

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.metrics import accuracy
from malaria_fastai.cells import ResizeMethod
from malaria_fastai.data import ImageDataBunch
from malaria_fastai.learner import cnn_learner, weights_hash
from malaria_fastai.resume import SaveModelCallback
from malaria_fastai.sample import draw_sample
from malaria_fastai.transforms import get_transforms

BS,VAL_BS,EVERY_NTH = 24,16,4 # a quarter of the drawn sample: 6 training and 3 validation batches an epoch

# Each run: threads that decode, whether the body stays frozen, how often a state is written.
RUNS = [dict(workers=0, frozen=True, every='epoch'), dict(workers=2, frozen=False, every=2),
        dict(workers=2, frozen=True, every=2), dict(workers=0, frozen=False, every='epoch')]
STAGES = {True: [('head', 3)], False: [('head', 1), ('all', 2)]} # frozen -> (name, epochs) of each stage

# ---- the program that is killed

class Before(Callback):
    "Says what is done, just before a state is written."
    order = 999
    def __init__(self, say): self.say = say
    def before_epoch(self): self.say('save')
    def after_batch(self): self.say(f'{"done" if self.training else "judged"} {self.learn.stage} {self.epoch} {self.iter}')
    def after_epoch(self): self.say('save')

class After(Callback):
    "Says that the state, if it was time for one, is written."
    order = 1001
    def __init__(self, say): self.say = say
    def before_epoch(self): self.say('next')
    after_batch = after_epoch = before_epoch

def train(sample, folder, seed, again, workers, frozen, every, arch='resnet18'):
    "One run, or the rest of it: what a notebook does from top to bottom."
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed), torch.set_num_threads(1)
    log = os.open(Path(folder)/'log', os.O_WRONLY|os.O_CREAT|os.O_TRUNC|os.O_APPEND)
    def say(line): os.write(log, f'{time.time():.4f} {line}\n'.encode())
    say('begin')
    files = sorted(o.relative_to(sample).as_posix() for o in Path(sample).glob('*/*.png'))[::EVERY_NTH]
    data = ImageDataBunch.from_name_func(sample, files, lambda o: o.parent.name, ds_tfms=get_transforms(max_warp=None), size=32,
                                         resize_method=ResizeMethod.CROP, bs=BS, val_bs=VAL_BS, num_workers=workers, cache=False)
    learn = cnn_learner(data, arch, pretrained=False, metrics=accuracy, path=folder, cbs=[Before(say), After(say)])
    learn.model.register_forward_pre_hook(
        lambda m,x: say(f'forward {"train" if m.training else "valid"} {learn.stage} {getattr(learn, "epoch", 0)} {getattr(learn, "iter", 0)}'))
    with learn.no_bar(), learn.no_logging(): fit(learn, frozen, every, again)
    keep = {k: [float(o) for o in getattr(learn.recorder, k)] for k in ('losses', 'lrs', 'momenta')}
    history = [{k: v for k,v in h.items() if k!='seconds'} for h in learn.recorder.history]
    (Path(folder)/'result.json').write_text(json.dumps(dict(weights=weights_hash(learn.model), history=history, **keep)))
    say('end')

def fit(learn, frozen, every, again):
    def go(name, n, lr): learn.fit_one_cycle(n, lr, start_epoch='last', callbacks=[SaveModelCallback(learn, every=every, name=name)])
    stages = STAGES[frozen]
    if not (frozen and again): learn.freeze() # a frozen run that goes on is not frozen again: the state knows
    go(*stages[0], 3e-3)
    if frozen: return
    learn.unfreeze()
    go(*stages[1], slice(1e-5, 1e-3))

# ---- children

def silent(kwargs):
    with open(Path(kwargs['folder'])/'said', 'a') as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f): train(**kwargs)

class Child:
    "A process that trains: forked, or a new interpreter."
    def __init__(self, kwargs, fresh):
        self.folder,self.fresh = Path(kwargs['folder']),fresh
        (self.folder/'log').unlink(missing_ok=True)
        if fresh: self.p = subprocess.Popen([sys.executable, __file__, '--child', json.dumps(kwargs)])
        else:
            self.p = multiprocessing.get_context('fork').Process(target=silent, args=(kwargs,))
            self.p.start()
        self.wait_for(lambda: (self.folder/'log').exists())
        self.start = time.time()
    def alive(self): return self.p.poll() is None if self.fresh else self.p.is_alive()
    def wait_for(self, what, timeout=300):
        end = time.time() + timeout
        while self.alive() and not what():
            if time.time()>end: self.kill(); raise TimeoutError(f'a child took more than {timeout} s: {self.log()[-3:]}')
            time.sleep(.001)
    def kill(self):
        self.seconds = time.time()-self.start
        os.kill(self.p.pid, signal.SIGKILL)
        self.done()
    def done(self):
        if self.fresh: return self.p.wait()
        self.p.join()
        return self.p.exitcode
    def log(self): return [o.split()[1:] for o in (self.folder/'log').read_text().splitlines()]
    def writing(self): return any(self.folder.glob('models/.*.tmp'))
    def last(self): return (self.log() or [['begin']])[-1]

# ---- where a run stands

def position(run, n_train, stage, epoch, batch):
    "Training batches of a whole run before this place."
    return sum(n for _,n in STAGES[run['frozen']][:stage])*n_train + epoch*n_train + batch

def epochs(run): return sum(n for _,n in STAGES[run['frozen']])

def place(folder, run, n_train):
    "(training batches, judged epochs) that the newest state on the disk holds."
    for stage,(name,_) in reversed([*enumerate(STAGES[run['frozen']])]):
        labels = [o.stem[len(name)+1:] for o in folder.glob(f'models/{name}_*.state')]
        at = [(0, 0) if o=='start' else tuple(map(int, o.split('b'))) if 'b' in o else (int(o)+1, 0) for o in labels]
        if at: return position(run, n_train, stage, *max(at)),position(run, 1, stage, max(at)[0], 0)
    return 0,0

def phase(child):
    "What the child was doing when it was killed."
    last = child.last()
    if child.writing() or last[0]=='save': return 'write'
    if last[0]=='forward': return last[1]
    return {'done': 'write', 'judged': 'valid', 'next': 'between', 'begin': 'set-up', 'end': 'end'}[last[0]]

# ---- the experiment

def wait_for_moment(child, aim, share, seconds):
    "Wait until it is time to kill `child`."
    if aim=='time': child.wait_for(lambda: time.time()-child.start > share*seconds)
    elif aim=='write':
        skip = int(share*3) # not always the first write
        for i in range(skip+1):
            child.wait_for(child.writing)
            if i<skip: child.wait_for(lambda: not child.writing())
        time.sleep(.04*(share*3 % 1))
    else:
        child.wait_for(lambda: child.last()[:2]==['forward', aim] and (child.last()[2:]!=['0', '0', '0'] or share<.3))

def forward(child, kind, run, n_train):
    "The places of the batches that the network was shown: 'train' or 'valid'."
    return [position(run, n_train, *map(int, o[2:])) for o in child.log() if o[:2]==['forward', kind]]

def killed(child, run, n_train):
    "What the kill left behind."
    shown,(at,judged) = forward(child, 'train', run, n_train),place(child.folder, run, n_train)
    done = sum(o[0]=='done' for o in child.log())
    before = shown[0]+done if shown else at
    return dict(landed=phase(child), half_written=child.writing(), seconds=round(child.seconds, 2),
                moment=round(before/(n_train*epochs(run)), 3), batches_before=before, resumed_at=at, judged_before=judged, lost=before-at)

def goes_on(child, run, n_train, row, n_valid=None):
    "What the next process did: it must begin at the state, and, if it came to the end, run forward what was left and nothing else."
    at,shown,judged = row['resumed_at'], forward(child, 'train', run, n_train),len(forward(child, 'valid', run, n_train))
    exact = shown==[*range(at, at+len(shown))]
    if n_valid is not None: exact = exact and len(shown)==n_train*epochs(run)-at and judged==n_valid*(epochs(run)-row['judged_before'])
    return dict(batches_after=len(shown), judged_after=judged, no_replay=exact)

def finish(child, name):
    if code := child.done(): raise SystemExit(f'{name} ended with {code}:\n{(child.folder/"said").read_text()[-2000:]}')

class Harness:
    "Runs that are killed, and what became of them: one row a kill."
    def __init__(self, folder, seed, sample=None, arch='resnet18'):
        self.arch = arch
        self.folder,self.rng,self.rows,self.references = Path(folder),random.Random(seed),[],{}
        self.share = self.rng.random()
        self.sample = str(sample or draw_sample(self.folder/'sample'))

    def child(self, run, folder, again=False, fresh=False):
        folder.mkdir(exist_ok=True)
        return Child(dict(sample=self.sample, folder=str(folder), seed=self.rng.randrange(2**31), again=again, arch=self.arch, **run), fresh)

    def reference(self, i):
        "The run that nobody kills: its result, its seconds, and its numbers of training and validation batches in an epoch."
        if i not in self.references:
            folder = self.folder/f'whole{i}'
            child = self.child(RUNS[i], folder)
            finish(child, 'the whole run')
            seconds,log = time.time()-child.start,child.log()
            n = [sum(o[0]==k and o[1:3]==['0', '0'] for o in log) for k in ('done', 'judged')]
            self.references[i] = json.loads((folder/'result.json').read_text()),seconds,*n
            shutil.rmtree(folder/'models')
        return self.references[i]

    def one_run(self, i, aims, fresh=False):
        "Kill run `i` once for each aim, then let it end; adds a row for each kill."
        run,(reference,seconds,n_train,n_valid) = RUNS[i],self.reference(i)
        total,rows,left = n_train*epochs(run),[],1.
        folder = self.folder/f'run{len(self.rows)}'
        child = self.child(run, folder, fresh=fresh)
        for aim in aims:
            self.share = (self.share + .618) % 1 # even over few kills
            wait_for_moment(child, aim, self.share, left*seconds)
            if not child.alive(): break # it was faster
            child.kill()
            if rows: rows[-1].update(goes_on(child, run, n_train, rows[-1]))
            rows.append(dict(run, fresh=fresh, aim=aim, **killed(child, run, n_train)))
            left = 1 - rows[-1]['resumed_at']/total
            child = self.child(run, folder, again=any(folder.glob('models/*.state')), fresh=fresh)
        finish(child, f'{run} after {len(rows)} kills')
        if rows: rows[-1].update(goes_on(child, run, n_train, rows[-1], n_valid))
        equal = json.loads((folder/'result.json').read_text())==reference
        self.rows += [dict(o, equal=equal) for o in rows]
        shutil.rmtree(folder)

AIMS = ['time', 'write', 'train', 'write', 'valid', 'time', 'time', 'write']

def experiment(kills, fresh=2, seed=0, sample=None, out=None, arch='resnet18'):
    "`kills` kills, over all kinds of runs in turn; the first `fresh` runs, killed once, in new interpreters."
    with tempfile.TemporaryDirectory() as d:
        h,n = Harness(d, seed, sample, arch),0
        while len(h.rows)<kills:
            k = len(h.rows)
            aims = [AIMS[(k+o) % len(AIMS)] for o in range(min(2 if kills<20 else 5, kills-k))]
            h.one_run(n % len(RUNS), aims[:1] if n<fresh else aims, n<fresh)
            n += len(h.rows)>k # a run that was faster than its kill is tried again
            if out: write(h.rows, out, kills, seed, arch)
    return pd.DataFrame(h.rows)

def write(rows, out, kills, seed, arch):
    out.parent.mkdir(exist_ok=True)
    about = f'quarter of the drawn sample, {arch}, 32 pixels; torch {torch.__version__}, one thread'
    head = f'# python tests/kill_resume.py --kills {kills} --seed {seed} --out results/resume_soak.csv ({about})\n'
    out.write_text(head + pd.DataFrame(rows).to_csv(index=False))

def histogram(df):
    "Where the kills landed, and how far the runs had come, as text."
    lines = [f'{len(df)} kills, {int(df.equal.sum())} ended equal, bit for bit; at most {df.lost.max()} batches were done twice']
    lines += [f'{k:>8} {"#"*n} {n}' for k,n in df.landed.value_counts().items()]
    share = (df.moment*10).clip(upper=9.99).astype(int).value_counts().reindex(range(10), fill_value=0)
    return '\n'.join(lines + ['share of the run that was done'] + [f'{k*10:>3}-{k*10+10:>3} % {"#"*n} {n}' for k,n in share.items()])

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kills', type=int, default=200)
    p.add_argument('--fresh', type=int, default=2, help='runs in new interpreters')
    p.add_argument('--seed', type=int, default=0, help='draws the moments')
    p.add_argument('--out', type=Path, help='a CSV file, one row a kill')
    p.add_argument('--sample', help='a folder with the drawn sample; drawn if not given')
    p.add_argument('--arch', default='resnet18', help='the network')
    p.add_argument('--child', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child: silent(json.loads(args.child)), sys.exit()
    df = experiment(args.kills, args.fresh, args.seed, args.sample, args.out, args.arch)
    print(histogram(df))
    sys.exit(not (df.equal & df.no_replay).all())
