"""How fast is this library, next to stock fastai 2 on the same cells and the same machine? Writes results.json, machine.json and README.md.

    MALARIA_NIH_ZIP=cell_images.zip python bench/bench.py          all rows but the long one, some ten minutes on two cores
    MALARIA_NIH_ZIP=cell_images.zip python bench/bench.py --long   the long row alone, up to two hours
    python bench/bench.py --source sample --size 32 --limit 64     a few drawn cells, to see that it works

Every row is a ratio of two things measured in one run, where they are short in turn. The order of every epoch is checked: in training no
cell twice, in validation each cell once. machine.json says of every row when, at which load and from which commit it was measured."""
import argparse
import contextlib
import cProfile
import inspect
import io
import json
import os
import platform
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date, datetime
from importlib.metadata import version
from pathlib import Path

import fastai.vision.all as stock
import matplotlib.pyplot as plt
import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException

from malaria_fastai.cells import read_cells, locate, ResizeMethod
from malaria_fastai.data import ImageDataBunch, PictureLoader
from malaria_fastai.interpret import ClassificationInterpretation
from malaria_fastai.learner import cnn_learner
from malaria_fastai.recipes import RECIPES
from malaria_fastai.run import environment, fit_recipe, recipe_data, recipe_learner
from malaria_fastai.split import split_by
from malaria_fastai.transforms import get_transforms

# ---- stock fastai 2: its tutorial code, with the transforms of the malaria tutorial (flips and light)

def stock_data(path, size, bs, **how):
    return stock.ImageDataLoaders.from_folder(
        path, seed=42, item_tfms=stock.Resize(size, method='squish'), bs=bs, num_workers=2,
        batch_tfms=[*stock.aug_transforms(max_rotate=0., max_warp=0., max_zoom=1.), stock.Normalize.from_stats(*stock.imagenet_stats)], **how)

def stock_learner(dls): return stock.vision_learner(dls, stock.resnet18, pretrained=False, metrics=stock.accuracy)

def stock_interpretation(learn):
    interp = stock.ClassificationInterpretation.from_learner(learn)
    interp.confusion_matrix()
    interp.plot_confusion_matrix()
    interp.top_losses(9)
    interp.plot_top_losses(9)

# ---- the same with this library

def our_data(path, cells, size, bs, cache=True, **kwargs):
    return ImageDataBunch.from_cells(path, cells, ds_tfms=get_transforms(max_rotate=None, max_warp=None, max_zoom=1.), size=size,
                                     resize_method=ResizeMethod.SQUISH, bs=bs, cache=cache, **kwargs)

def our_interpretation(learn):
    interp = ClassificationInterpretation.from_learner(learn)
    interp.confusion_matrix()
    interp.plot_confusion_matrix()
    interp.top_losses(9)
    interp.plot_top_losses(9)

# ---- measuring

def seconds(f):
    "How long `f` takes."
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def in_turn(ours, other, n):
    "Medians of `n` measurements of two functions that return seconds, A B A B …"
    pairs = [(ours(), other()) for _ in range(n)]
    return tuple(statistics.median(o) for o in zip(*pairs))

@contextlib.contextmanager
def checked(*dls):
    "Every epoch that is asked of these loaders inside: no position twice, and all of them but those that a last small batch would hold."
    asked = [[] for _ in dls]
    def watched(dl, orders):
        def get_idxs():
            orders.append(list(type(dl).get_idxs(dl)))
            return orders[-1]
        return get_idxs
    for dl,orders in zip(dls, asked): dl.get_idxs = watched(dl, orders)
    try: yield asked
    finally:
        for dl in dls: del dl.get_idxs
    for dl,orders in zip(dls, asked):
        for order in orders: complain(dl, order[:whole(dl)])

def whole(dl):
    "How many positions an epoch delivers."
    return dl.n//dl.bs*dl.bs if dl.drop_last else dl.n

def complain(dl, used):
    if len({*used}) != whole(dl) or len(used) != whole(dl) or not {*used} <= {*range(dl.n)}:
        raise AssertionError(f"an epoch of {dl.n} cells delivered {len(used)}, {len({*used})} of them different")

def one_epoch(dl):
    "Deliver a checked epoch, and say how many pictures it was."
    with checked(dl): n = sum(len(b[1]) for b in dl)
    if n != whole(dl): raise AssertionError(f"an epoch of {dl.n} cells delivered {n}")
    return n

def rate(dl):
    "Pictures a second of one checked epoch."
    n = 0
    def run():
        nonlocal n
        n = one_epoch(dl)
    return 1/(seconds(run)/n)

class InMemory(PictureLoader):
    "The same loop on random tensors: nothing is loaded."
    def load(self, i, idxs):
        if not hasattr(self, 'kept'): self.kept = torch.randn(self.bs, 3, *self.dataset.pictures.rule.size),torch.randint(0, 2, (self.bs,))
        return tuple(o[:len(idxs)] for o in self.kept)

class Bench:
    "The cells, and what several rows need."
    def __init__(self, a, folder):
        self.a,self.folder = a,Path(folder)
        self.root = locate(a.source, folder=folder)
        self.cells = read_cells(self.root, progress=False)
        self.bs = min(256, int(.8*len(self.cells))//2)
        self.few = self.cells.sample(min(len(self.cells), a.limit), random_state=42).sort_values('path', ignore_index=True)
        self.bs_few = min(64, len(self.few)//2)
        self.dls,self.first_stock = None,None
        self.notes,self.bounds,self.missed = {},{},set() # name of a row -> what else is to be said, the sign before its ratio; rows whose times do not count

    def stock_loaders(self):
        "Stock's loaders up to bytes, before the transforms of the device; and the seconds of their first epoch."
        def first():
            self.dls = stock_data(self.root, self.a.size, self.bs, valid_pct=.2)
            self.bytes = [dl.new(after_batch=[]) for dl in self.dls]
            for dl in self.bytes: one_epoch(dl)
        if self.first_stock is None: self.first_stock = seconds(first)
        return self.bytes

    def first_epoch(self):
        self.stock_loaders() # first, so that the files are in the memory of the system for both
        return self._first(),self.first_stock

    def _first(self):
        "Decode all, keep it, and deliver one epoch of training and one of validation."
        cache = self.folder/'first'
        shutil.rmtree(cache, ignore_errors=True)
        def run():
            data = our_data(self.root, self.cells, self.a.size, self.bs, cache)
            for dl in (data.train, data.valid): one_epoch(dl.new(after_batch=[]))
        return seconds(run)

    def ours(self):
        data = our_data(self.root, self.cells, self.a.size, self.bs)
        for dl in data.loaders: one_epoch(dl) # the second epoch is measured
        return data

    def delivery(self):
        dl = self.ours().train.new(after_batch=[])
        one_epoch(dl)
        theirs = self.stock_loaders()[0]
        return in_turn(lambda: rate(dl), lambda: rate(theirs), self.a.repeats)

    def memory(self):
        dl = self.ours().train.new(after_batch=[])
        whole,to = torch.empty(dl.n, *dl.dataset.pictures.rule.size, 3, dtype=torch.uint8),torch.empty(self.bs, *dl.dataset.pictures.rule.size, 3, dtype=torch.uint8)
        whole.random_(0, 255)
        def copy():
            for i in range(len(dl)): to.copy_(whole[i*self.bs:(i+1)*self.bs])
        one_epoch(dl)
        n = len(dl)*self.bs
        return in_turn(lambda: rate(dl), lambda: n/seconds(copy), 7)

    def ready(self):
        self.stock_loaders()
        dl = self.ours().train
        return in_turn(lambda: rate(dl), lambda: rate(self.dls.train), self.a.repeats)

    def training(self):
        data = our_data(self.root, self.few, self.a.small, self.bs_few)
        learn = cnn_learner(data, 'resnet18', pretrained=False)
        real = data.loaders
        memory = [InMemory(dl.dataset, dl.bs, shuffle=dl.shuffle, drop_last=dl.drop_last, device=dl.device) for dl in real]
        def epoch(loaders):
            data.loaders = loaders
            with learn.no_bar(), learn.no_logging(), checked(*loaders): return seconds(lambda: learn.fit(1, 1e-3))
        one_epoch(data.train)
        epoch(real)
        return in_turn(lambda: epoch(real), lambda: epoch(memory), self.a.repeats)

    def interpretation(self):
        dls = stock_data(self._folders(), self.a.size, self.bs_few, valid='valid')
        data = our_data(self.root, self._parts(), self.a.size, self.bs_few)
        theirs,learn = stock_learner(dls),cnn_learner(data, 'resnet18', pretrained=False)
        with learn.no_bar(), theirs.no_bar(), checked(data.valid):
            return in_turn(lambda: seconds(lambda: our_interpretation(learn)), lambda: seconds(lambda: stock_interpretation(theirs)), 1)

    def imports(self):
        compiled = {k: v for k,v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'} # both start from compiled files, as installed packages do
        def start(module): return seconds(lambda: subprocess.run([sys.executable, '-W', 'ignore', '-c', f'import {module}'], check=True, env=compiled))
        start('malaria_fastai.all')
        return in_turn(lambda: start('malaria_fastai.all'), lambda: start('fastai.vision.all'), 5 if self.a.repeats > 1 else 1)

    def _parts(self):
        by_patient = self.cells.patient.notna().all() and self.cells.patient.nunique() > 9
        return split_by(self.few, 'patient' if by_patient else 'random', valid=.3, test=.0, seed=42)

    def _folders(self, cells=None):
        "The same split as folders `train` and `valid`, which stock fastai reads."
        top = Path(tempfile.mkdtemp(dir=self.folder))
        for o in (self._parts() if cells is None else cells).itertuples():
            file = top/o.split/o.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to((self.root/o.path).resolve())
        return top

    def wall(self):
        "Seconds until 95 % of the cells of unseen patients are right, from random weights, or until the end if they never are: then ours has missed the bar, and stock would need longer."
        cells = split_by(self.cells, 'patient', valid=.2, test=.0, seed=42)
        best = RECIPES['best_resnet18']
        def ours():
            learn = recipe_learner(best, recipe_data(best, self.root, cells))
            with checked(*learn.dls.loaders): fit_recipe(learn, best, cbs=[mine])
        def theirs():
            learn = stock_learner(stock_data(self._folders(cells), self.a.size, 64, valid='valid'))
            with checked(*learn.dls.loaders): learn.fit_one_cycle(best.epochs, cbs=other)
        mine,other = (Until(self.a.target, self.a.minutes) for _ in range(2))
        times = seconds(ours),seconds(theirs)
        self.notes['wall'] = f'ours {mine.said()}; stock {other.said()}'
        if not mine.reached: self.missed.add('wall')
        if not other.reached: self.bounds['wall'] = '≤ '
        return times

class Until(Callback):
    "Stop when the accuracy is reached, or the time since the first batch is over; remembers the accuracies."
    order = 75
    def __init__(self, target, minutes): self.target,self.minutes,self.accuracies,self.end = target,minutes,[],None
    @property
    def reached(self): return bool(self.accuracies) and self.accuracies[-1] >= self.target
    def said(self):
        after = f'after {len(self.accuracies)} epochs ({", ".join(f"{o:.4f}" for o in self.accuracies)})'
        return f"{'reached it' if self.reached else 'did not reach it'} {after}"
    def before_batch(self): self.end = self.end or time.time() + 60*self.minutes
    def after_epoch(self):
        self.accuracies.append(float(self.recorder.values[-1][-1]))
        print(f'epoch {self.epoch}: accuracy {self.accuracies[-1]:.4f}', flush=True)
        if self.reached: raise CancelFitException()
    def after_batch(self):
        if time.time() > self.end: raise CancelFitException()

ROWS = { # name -> what it is, unit, the bar, and whether ours shall be at least (True) or at most so many times the other
    'delivery': ('Pictures delivered as bytes, batches of {bs} at {size} px, from the second epoch on / stock', 'pictures/s', 50, True),
    'memory': ('The same / a plain memory copy of as many bytes', 'pictures/s', .4, True),
    'ready': ('Pictures delivered ready for the network, on the CPU: flip, brightness, contrast, normalised / stock', 'pictures/s', 8, True),
    'first_epoch': ('First epoch of loading, training and validation; ours decodes and writes its picture file / stock', 's', 1., False),
    'training': ('Training epoch with validation, ResNet18, {small} px, {few} cells / the same on random tensors in memory', 's', 1.05, False),
    'interpretation': ('ClassificationInterpretation: confusion matrix, top losses, plots, {valid} cells / stock', 's', .35, False),
    'imports': ('import malaria_fastai.all / import fastai.vision.all', 's', 1.1, False),
    'wall': ('* Until {target:.0%} of the cells of unseen patients are right, from random weights: our best recipe of that kind / stock at {size} px, cut off after {minutes:.0f} minutes',
             's', .33, False)}

def row(bench, name):
    "Measure one row; a bar that is missed brings a profile."
    text,unit,bar,more = ROWS[name]
    a = bench.a
    ours,other = getattr(bench, name)()
    facts = dict(bs=bench.bs, size=a.size, small=a.small, few=len(bench.few), target=a.target, minutes=a.minutes)
    if '{valid}' in text: facts['valid'] = int(bench._parts().split.eq('valid').sum())
    ratio = ours/other
    command = f"python bench/bench.py --rows {name}"
    said = f' ({bench.notes[name]})' if name in bench.notes else ''
    return dict(row=text.format(**facts) + said, ours=float(f'{ours:.4g}'), stock=float(f'{other:.4g}'), unit=unit, ratio=float(f'{ratio:.3g}'), bar=bar,
                met=bool(ratio >= bar if more else ratio <= bar) and name not in bench.missed, command=command)

def profile(bench, name, n=8):
    "Where the time of a row goes, ours and the other's together; for an import, the slowest modules of ours."
    if name == 'imports': return slowest_imports(n)
    p = cProfile.Profile()
    p.enable()
    try: getattr(bench, name)()
    finally: p.disable()
    said = io.StringIO()
    pstats.Stats(p, stream=said).strip_dirs().sort_stats('tottime').print_stats(n)
    return said.getvalue().strip()

def slowest_imports(n):
    said = subprocess.run([sys.executable, '-W', 'ignore', '-X', 'importtime', '-c', 'import malaria_fastai.all'], capture_output=True, text=True, check=True).stderr
    own = [o.split('|') for o in said.splitlines() if o.startswith('import time:') and o.split('|')[0].split(':')[1].strip().isdigit()]
    own = sorted(((int(a.split(':')[1]), c.strip()) for a,_,c in own), reverse=True)[:n]
    return '\n'.join(f'{us/1000:8.0f} ms  {name}' for us,name in own)

# ---- writing it down

def measured():
    "What belongs to one measurement."
    load = [round(o, 2) for o in os.getloadavg()] if hasattr(os, 'getloadavg') else None
    return dict(date=datetime.now().isoformat(' ', 'minutes'), load=load, commit=environment('')['commit'])

def machine(bench):
    names = ('malaria_fastai', 'fastai', 'torch', 'torchvision', 'numpy', 'pandas', 'pillow', 'timm')
    cpu = next((o.split(':')[1].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name')), '') if Path('/proc/cpuinfo').exists() else ''
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    return dict(date=date.today().isoformat(), cores=os.cpu_count(), threads=torch.get_num_threads(), cpu=cpu or platform.processor(), device=device,
                system=platform.system(), python=platform.python_version(), versions={o: version(o) for o in names}, cells=len(bench.cells),
                source=Path(str(bench.a.source)).name)

def table(rows, about):
    lines = ['# Bench', '', 'Ratios of this library to stock fastai 2, on the same cells and the same machine. `make bench` and `make bench-long` write this page.', '',
             f"{about['cells']:,} cells of {about['source']}, {about['cores']} cores ({about['cpu']}), {about['threads']} threads; "
             + ', '.join(f'{k} {v}' for k,v in about['versions'].items()) + '.', '',
             '| row | ours | other | unit | ratio | bar | met |', '|---|---|---|---|---|---|---|']
    for r in rows:
        name = r['command'].split()[-1]
        more,bound = ROWS[name][3],about['rows'].get(name, {}).get('bound', '')
        lines.append(f"| {r['row']} | {r['ours']:,} | {r['stock']:,} | {r['unit']} | {bound}{r['ratio']} | {'≥' if more else '≤'} {r['bar']} | {'yes' if r['met'] else 'no'} |")
    lines += ['', 'Measured: ' + '; '.join(f"{', '.join(names)}: {when}" for when,names in _together(about['rows']).items()) + '.',
              '', '## The code of the other side', '', '```python', 'import fastai.vision.all as stock', '']
    lines += [inspect.getsource(o) for o in (stock_data, stock_learner, stock_interpretation)] + ['```']
    for name,o in about['rows'].items():
        if 'profile' in o: lines += ['', f'## Not met: {name}', '', 'Where the time goes:', '', '```', o['profile'], '```']
    return '\n'.join(lines) + '\n'

def _together(rows):
    "Rows of one day and commit, with the lowest and highest load of the last minute."
    groups = {}
    for name,o in rows.items(): groups.setdefault((o['date'][:10], o['commit']), []).append((name, o['load'][0] if o['load'] else 0))
    return {f"{day}, commit {commit}, load {min(l for _,l in g)} to {max(l for _,l in g)}": [n for n,_ in g] for (day,commit),g in groups.items()}

def write(out, rows, about):
    "Replace the rows that were measured, keep the others and what is known of them."
    out.mkdir(parents=True, exist_ok=True)
    old,known = (json.loads((out/o).read_text()) if (out/o).exists() else {} for o in ('results.json', 'machine.json'))
    new = {r['command']: r for r in [*old, *rows]}
    kept = [new[c] for c in (f'python bench/bench.py --rows {o}' for o in ROWS) if c in new]
    facts = known.get('rows', {}) | about['rows']
    about = about | dict(rows={o: facts[o] for o in ROWS if o in facts})
    (out/'results.json').write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n')
    (out/'machine.json').write_text(json.dumps(about, indent=1, ensure_ascii=False) + '\n')
    (out/'README.md').write_text(table(kept, about))

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--source', default=os.environ.get('MALARIA_NIH_ZIP', 'sample'), help='archive or folder of cells')
    p.add_argument('--rows', default=','.join(o for o in ROWS if o != 'wall'), help=f"of {', '.join(ROWS)}")
    p.add_argument('--long', action='store_true', help='the long row alone')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--small', type=int, default=64, help='side of the pictures in the training row')
    p.add_argument('--limit', type=int, default=4000, help='cells of the training and the interpretation row')
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--minutes', type=float, default=60., help='when the long row is cut off, for each side')
    p.add_argument('--target', type=float, default=.95, help='accuracy of the long row')
    p.add_argument('--out', type=Path, default=Path(__file__).parent)
    a = p.parse_args(args)
    rows,names = [],['wall'] if a.long else a.rows.split(',')
    plt.switch_backend('agg')
    with tempfile.TemporaryDirectory() as d:
        bench = Bench(a, d)
        about = machine(bench) | dict(rows={})
        for name in names:
            start,about['rows'][name] = time.time(),measured()
            with contextlib.redirect_stdout(sys.stderr): rows.append(row(bench, name))
            print(f"{name}: {rows[-1]['ours']} / {rows[-1]['stock']} {rows[-1]['unit']}: {rows[-1]['ratio']} (bar {rows[-1]['bar']}), {time.time() - start:.0f} s", flush=True)
            if name in bench.bounds: about['rows'][name]['bound'] = bench.bounds[name]
            if not rows[-1]['met'] and name != 'wall': # which takes an hour
                with contextlib.redirect_stdout(sys.stderr): about['rows'][name]['profile'] = profile(bench, name)
            plt.close('all')
        write(a.out, rows, about)

if __name__ == '__main__': main()
