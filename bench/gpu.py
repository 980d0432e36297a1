"""What a GPU does with this library: waits, speed beside stock fastai, idle time, exactness, memory. Writes one JSON and results/gpu.csv.

    python bench/gpu.py cell_images.zip --out gpu.json                   on a GPU, about five minutes
    python bench/gpu.py sample --out gpu.json --small                    a few drawn cells, on the CPU too: a dry run of the same program
    python bench/gpu.py cell_images.zip --out gpu.json --only waits      some of the checks, --budget SECONDS to begin none later

Each check is a function below. What it measured is written to the JSON as soon as it is there; one that fails says why and the next
one runs. The clock is read when the GPU is done. A row of the table says on which card it was measured, when, and with which versions."""
import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from bench import our_data, stock_data, stock_learner
from fastai.callback.core import Callback

from malaria_fastai.cells import locate, read_cells
from malaria_fastai.export import pack
from malaria_fastai.extra.onnx import export_onnx
from malaria_fastai.files import replacing, write_atomically
from malaria_fastai.interpret import ClassificationInterpretation, grad_cam
from malaria_fastai.learner import HalfPrecision, cnn_learner, load_learner, weights_hash
from malaria_fastai.predict import Predictor
from malaria_fastai.resume import SaveModelCallback
from malaria_fastai.run import train
from malaria_fastai.split import split_by

GPU = torch.cuda.is_available()
COLUMNS = 'check', 'setting', 'value', 'unit', 'card', 'date', 'versions', 'commit'

@dataclass
class Task:
    "The cells, and how large everything is."
    root:Path
    cells:pd.DataFrame
    folder:Path
    small:bool
    @property
    def size(self): return 32 if self.small else 128
    @property
    def arch(self): return 'test_resnet' if self.small else 'resnet18'
    @property
    def batches(self): return (16,) if self.small else (64, 256)

    def data(self, bs=None, size=None, cells=None):
        return our_data(self.root, self.cells if cells is None else cells, size or self.size, bs or self.batches[0], self.folder/'pictures')
    def learner(self, name, data=None, arch=None, **options):
        return cnn_learner(data or self.data(), arch or self.arch, pretrained=False, path=self.folder/name, **options)

# ---- measuring

def done():
    "Wait until the GPU has computed what it was asked."
    if GPU: torch.cuda.synchronize()

def seconds(what):
    done()
    start = time.perf_counter()
    what()
    done()
    return time.perf_counter()-start

@contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield learn

def precision(half): return [HalfPrecision()] if half and GPU else []
def word(half): return 'half' if half else 'single'

class Batches(Callback):
    "Counts batches, and says which part they are of."
    order = -1000
    def __init__(self): self.part,self.seen = '',Counter()
    def before_train(self): self.part = 'training'
    def before_validate(self): self.part = 'validation'
    def after_batch(self): self.seen[self.part] += 1
    def after_train(self): self.part = ''
    def after_validate(self): self.part = ''

def our_line():
    "The innermost line of the library that is running."
    frame = sys._getframe(1)
    while frame is not None:
        if '/malaria_fastai/' in frame.f_code.co_filename: return f'{Path(frame.f_code.co_filename).name}:{frame.f_lineno}'
        frame = frame.f_back
    return 'elsewhere'

# ---- checks: a task -> rows (setting, value, unit)

def environment(task):
    "Which machine this is."
    if GPU: yield 'memory', round(torch.cuda.get_device_properties(0).total_memory/2**30, 1), 'GiB'
    yield 'bfloat16 in hardware', GPU and torch.cuda.is_bf16_supported(including_emulation=False), ''
    yield 'cells', len(task.cells), ''

def path_of_2019(task):
    "Rate finder, frozen, thawed, errors with heat maps, export: does the exported model answer the same?"
    for half in (False, True):
        learn = task.learner(f'path_{word(half)}')
        for cb in precision(half): learn.add_cb(cb)
        before = weights_hash(learn.model)
        with quiet(learn):
            learn.lr_find(num_it=12)
            yield f'{word(half)}: the rate finder gives the weights back', weights_hash(learn.model)==before, ''
            learn.freeze(), learn.fit_one_cycle(1, 3e-3), learn.unfreeze(), learn.fit_one_cycle(1, slice(1e-4, 1e-3))
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(4, heatmap=True), interp.plot_confusion_matrix()
        for cb in [*learn.cbs]:
            if cb.name=='mixed_precision': learn.remove_cb(cb)
        with quiet(learn): before = learn.get_preds()[0]
        learn.export()
        again = load_learner(learn.path)
        again.data = task.data()
        with quiet(again): yield f'{word(half)}: the exported model differs by', float((again.get_preds()[0]-before).abs().max()), ''

def waits(task):
    "How often the CPU stands still until the GPU is done, a batch."
    for half in (False, True):
        learn,batches,seen = task.learner(f'waits_{word(half)}'),Batches(),Counter()
        def note(message, *rest, **more):
            if 'synchroniz' in str(message): seen[batches.part, our_line()] += 1
        with quiet(learn), warnings.catch_warnings():
            learn.fit(1, 1e-3, callbacks=precision(half)) # first uses wait
            warnings.simplefilter('always')
            warnings.showwarning = note
            if GPU: torch.cuda.set_sync_debug_mode('warn')
            try: learn.fit(1, 1e-3, callbacks=[batches, *precision(half)])
            finally:
                if GPU: torch.cuda.set_sync_debug_mode('default')
        for part,n in batches.seen.items():
            lines = {line: count for (where,line),count in seen.items() if where==part}
            yield f"{word(half)}, {part}{', at '*bool(lines)}{', '.join(lines)}", round(sum(lines.values())/n, 3), 'waits/batch'

def exact_resume(task):
    "Stopped and continued: are the weights those of the run that was not stopped?"
    class Stop(Callback):
        looks_on = True
        def before_batch(self):
            if self.training and (self.epoch, self.iter)==(1, 2): raise KeyboardInterrupt
    few = task.cells.iloc[::1 if task.small else 4].reset_index(drop=True)
    for half in (False, True):
        for every in (3,) if task.small else ('epoch', 3):
            ends = []
            for stopped in (False, True):
                for run in range(1+stopped):
                    learn = task.learner('resume', task.data(cells=few, size=min(64, task.size)))
                    stop = [Stop()] if stopped and not run else []
                    with quiet(learn):
                        try: learn.fit_one_cycle(2, 3e-3, start_epoch='last' if run else 0,
                                                 callbacks=[SaveModelCallback(learn, every=every, name='run'), *stop, *precision(half)])
                        except KeyboardInterrupt: pass
                ends.append(weights_hash(learn.model))
                shutil.rmtree(task.folder/'resume')
            yield f'{word(half)}, a state every {every}: equal to the bit', ends[0]==ends[1], ''

def throughput(task):
    "Pictures a second of a whole epoch, training and validation: ours and stock fastai 2 on the same cells, measured in turn."
    both = task.cells.assign(split=task.cells.split.where(task.cells.split=='train', 'valid'))
    top = task.folder/'folders'
    for cell in both.itertuples():
        file = top/cell.split/cell.path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists(): file.symlink_to((task.root/cell.path).resolve())
    for half in (False, True):
        for bs in task.batches:
            ours,theirs = task.learner('speed', task.data(bs, cells=both)),stock_learner(stock_data(top, task.size, bs, valid='valid'))
            if half and GPU: ours,theirs = ours.to_fp16(),theirs.to_fp16()
            rates = {}
            for turn in range(1 if task.small else 3):
                for who,learn in (('ours', ours), ('stock', theirs)):
                    n = len(learn.dls.train)*bs+len(learn.dls.valid.dataset)
                    with quiet(learn): rates[who] = n/seconds(lambda: learn.fit(1, 1e-3)) # the first turns warm up
            for who,rate in rates.items(): yield f'{word(half)}, bs {bs}, {who}', round(rate), 'pictures/s'
            yield f'{word(half)}, bs {bs}, ours / stock', round(rates['ours']/rates['stock'], 2), 'times'

def idle(task):
    "Share of a training epoch in which the GPU computes nothing."
    from torch.profiler import ProfilerActivity,profile
    for half in (False, True):
        for bs in task.batches:
            learn = task.learner('idle', task.data(bs))
            with quiet(learn):
                learn.fit(1, 1e-3, callbacks=precision(half))
                with profile(activities=[ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU]) as seen:
                    wall = seconds(lambda: learn.fit(1, 1e-3, callbacks=precision(half)))
            busy = sum(getattr(event, 'self_device_time_total', 0) for event in seen.key_averages())/1e6
            yield f'{word(half)}, bs {bs}', round(1-busy/wall, 3), 'of the epoch'

def layouts(task):
    "A training step of a batch that lies on the GPU: channels last or first."
    for half in (False, True):
        for arch in (task.arch, 'tf_efficientnet_lite0'):
            for last in (True, False):
                learn = task.learner('layout', task.data(16 if task.small else 128), arch, channels_last=last)
                x,y = (part.as_subclass(torch.Tensor) for part in learn.dls.train.one_batch())
                learn.create_opt()
                def step():
                    with torch.autocast('cuda', torch.float16, enabled=half and GPU): out = learn.model(x)
                    learn.loss_func(out.float(), y).backward()
                    learn.opt.step()
                    learn.opt.zero_grad()
                learn.model.train()
                n = 2 if task.small else 15
                seconds(step)
                yield f"{word(half)}, {arch}, channels {'last' if last else 'first'}", round(1000*seconds(lambda: [step() for _ in range(n)])/n, 2), 'ms'

def memory(task):
    "The most memory that an epoch of the settings of lesson 1 takes; a T4 has 15 GiB."
    for arch,bs in (('resnet34', 256), ('resnet18', 512)):
        if GPU: torch.cuda.reset_peak_memory_stats()
        learn = task.learner('memory', task.data(16 if task.small else bs), task.arch if task.small else arch)
        with quiet(learn): learn.fit(1, 1e-3)
        yield f'{arch}, bs {bs}', round(torch.cuda.max_memory_allocated()/2**30, 2) if GPU else 0., 'GiB'

def heat_maps(task):
    "Heat maps of the GPU beside those of the CPU, same weights: the largest difference of values in [0, 1]."
    learn = task.learner('maps')
    x,y = learn.dls.valid_dl.one_batch()
    on_gpu = grad_cam(learn.model, x[:8], y[:8])
    on_cpu = grad_cam(learn.model.cpu(), x[:8].cpu(), y[:8].cpu())
    yield 'largest difference', float(abs(on_gpu-on_cpu).max()), 'of 1'

def deployed(task):
    "`train`, the model folder, and both engines: do they decide alike?"
    shutil.rmtree(task.folder/'run', ignore_errors=True)
    arch,size,limit = ('squeezenet1_1', 32, 300) if task.small else (None, 64, 2000)
    run = train(task.root, task.folder/'run', arch, size, bs=32, epochs=1, finetune_epochs=1, pretrained='no', limit=limit,
                cache=str(task.folder/'pictures'), draws=20)
    folder = pack(run, task.root, n=60)
    made = export_onnx(folder, data=task.root)
    yield 'ONNX differs by', made['largest_difference'], ''
    files = [task.root/path for path in task.cells.path[:12]]
    by_torch,by_onnx = (Predictor(folder, engine=engine)(files) for engine in ('torch', 'onnx'))
    yield 'engines differ by', float((by_torch.p-by_onnx.p).abs().max()), ''
    yield 'decisions equal', bool((by_torch.decision==by_onnx.decision).all()), ''

CHECKS = environment, waits, throughput, idle, path_of_2019, exact_resume, layouts, memory, heat_maps, deployed

# ---- writing it down

def about():
    names = 'malaria_fastai', 'fastai', 'torch'
    from malaria_fastai.run import environment as machine
    return dict(card=torch.cuda.get_device_name() if GPU else 'none: a dry run on the CPU', date=date.today().isoformat(),
                versions=' '.join(f'{name} {version(name)}' for name in names), commit=machine('')['commit'])

def measure(task, checks, out, budget):
    "Run the checks one after the other; the JSON is whole after each."
    start,known = time.time(),about()
    result = dict(known, rows=[], failed={}, left_out=[])
    for check in checks:
        name = check.__name__
        if time.time()-start>budget: result['left_out'].append(name)
        else:
            begin = time.time()
            try:
                for setting,value,unit in check(task): result['rows'].append(dict(check=name, setting=setting, value=value, unit=unit))
            except Exception as error:
                result['failed'][name] = f'{type(error).__name__}: {error}'
                traceback.print_exc()
            print(f"{name}: {'FAILED' if name in result['failed'] else 'measured'}, {time.time()-begin:.0f} s", flush=True)
        write_atomically(out, json.dumps(result, indent=1))
    return result

def table(result):
    "Rows as in results/gpu.csv."
    return pd.DataFrame([row | {name: result[name] for name in COLUMNS[4:]} for row in result['rows']], columns=COLUMNS)

def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='archive or folder of cells, or sample')
    parser.add_argument('--out', type=Path, required=True, help='the JSON')
    parser.add_argument('--table', type=Path, help='the rows as a table too, such as results/gpu.csv')
    parser.add_argument('--small', action='store_true', help='tiny pictures and batches: does the program run?')
    parser.add_argument('--only', default='', help='names of checks, separated by commas')
    parser.add_argument('--budget', type=float, default=600, help='seconds after which no check begins')
    args = parser.parse_args(words)
    chosen = [check for check in CHECKS if check.__name__ in args.only.split(',') or not args.only]
    with tempfile.TemporaryDirectory() as folder:
        root = locate(args.source, folder=folder)
        cells = read_cells(root, progress=False)
        if args.small: cells = cells.iloc[::4].reset_index(drop=True)
        by = 'patient' if cells.patient.notna().all() and cells.patient.nunique()>9 else 'random'
        result = measure(Task(root, split_by(cells, by), Path(folder), args.small), chosen, args.out, args.budget)
    if args.table:
        with replacing(args.table) as file: table(result).to_csv(file, index=False)
    for name,why in result['failed'].items(): print(f'{name}: {why}', file=sys.stderr)
    return bool(result['failed'])

if __name__ == '__main__': sys.exit(main())
