"""What makes an epoch of training fast? Each setting is taken away, or added, alone. Writes results/epoch.csv and results/epoch_profile.txt.

    MALARIA_NIH_ZIP=cell_images.zip python bench/epoch.py     some eight minutes on two cores, on a quiet machine

ResNet18 from random weights, 64 px, 4,000 cells by patient, one epoch of training and one of validation: first one that is not counted, then
the settings take turns, and the median of each counts. The profile is one epoch as shipped, by the time inside each function."""
import argparse
import cProfile
import io
import os
import pstats
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Adam

from malaria_fastai.all import ImageDataBunch, ResizeMethod, accuracy, cnn_learner, get_transforms, prepare
from malaria_fastai.files import replacing
from malaria_fastai.learner import Bfloat16
from malaria_fastai.run import environment


class Waits(Callback):
    "Fetches the loss after every batch, as a progress bar that shows it each time does; on a GPU this waits."
    def after_loss(self): float(self.loss)


VARIANTS = { # name -> (arguments of cnn_learner, callbacks of fit)
    'as shipped': ({}, []),
    "fastai's optimizer, one parameter at a time": (dict(opt_func=partial(Adam, eps=1e-5)), []),
    'channels first': (dict(channels_last=False), []),
    'the loss fetched after every batch': ({}, [Waits]),
    'bfloat16 in training': ({}, [Bfloat16])}


def learner(data, **kwargs): return cnn_learner(data, 'resnet18', pretrained=False, metrics=accuracy, **kwargs)


def epoch(learn, cbs):
    "Seconds of training and validation."
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[o() for o in cbs])
    return time.perf_counter() - start


def profile(learn, n=12):
    "Where the time of one epoch goes."
    p,said = cProfile.Profile(),io.StringIO()
    p.runcall(epoch, learn, [])
    pstats.Stats(p, stream=said).strip_dirs().sort_stats('tottime').print_stats(n)
    return '\n'.join(o.rstrip() for o in said.getvalue().strip().splitlines()[2:]) + '\n'


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--limit', type=int, default=4000)
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path('results/epoch.csv'))
    a = p.parse_args()
    about,load = environment('python bench/epoch.py ' + ' '.join(f'--{k} {getattr(a, k)}' for k in ('limit', 'size', 'rounds'))),os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as d:
        root,cells = prepare(os.environ['MALARIA_NIH_ZIP'], 'patient', 42, a.limit, data_dir=d)
        data = ImageDataBunch.from_cells(root, cells, ds_tfms=get_transforms(flip_vert=True, max_rotate=None, max_warp=None, max_zoom=1.), size=a.size,
                                         resize_method=ResizeMethod.SQUISH, bs=64, cache=Path(d)/'pictures')
        learns = {k: learner(data, **kwargs) for k,(kwargs,_) in VARIANTS.items()}
        times = {k: [] for k in VARIANTS}
        for i in range(a.rounds + 1):
            for k,(_,cbs) in VARIANTS.items():
                took = epoch(learns[k], cbs)
                if i: times[k].append(took)
                print(f'{k}: {took:.1f} s', flush=True)
        text = profile(learns['as shipped'])
    base = statistics.median(times['as shipped'])
    rows = [dict(setting=k, seconds=statistics.median(v), shortest=min(v), longest=max(v), times_as_shipped=statistics.median(v)/base, rounds=a.rounds, cells=len(cells),
                 size=a.size, threads=torch.get_num_threads(), load=round(load, 1), device=about['device'], commit=about['commit'], command=about['command']) for k,v in times.items()]
    table = pd.DataFrame(rows).round(3)
    with replacing(a.out) as part: table.to_csv(part, index=False, lineterminator='\n')
    with replacing(a.out.with_name(f'{a.out.stem}_profile.txt')) as part: part.write_text(f"{about['command']}, as shipped, commit {about['commit']}\n{text}", encoding='utf-8')
    print(table[['setting', 'seconds', 'times_as_shipped']].to_string(), text, sep='\n')


if __name__ == '__main__': main()
