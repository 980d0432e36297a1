"""Which of fastai v1's and fastai 2's settings trains better on real cells? Writes results/defaults.csv.

Run with the archive of real cells: MALARIA_NIH_ZIP=cell_images.zip python bench/defaults.py
Judged on validation patients only; test patients are not touched."""
import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
from fastai.optimizer import Adam

from malaria_fastai.all import (FASTAI_V1, ImageDataBunch, ResizeMethod, accuracy, cnn_learner, get_transforms, positive_class, prepare)
from malaria_fastai.evaluate import metrics
from malaria_fastai.run import environment

VARIANTS = { # name -> what differs from cnn_learner's defaults
    'ours': {},
    'not normalised (2019 tutorial)': dict(normalize=False),
    'Adam eps 1e-8 (v1)': dict(opt_func=partial(Adam, eps=1e-8)),
    'decay of batch norm (v1)': dict(wd_bn_bias=True),
    'no biases in the head (fastai 2)': dict(head_bias=False),
    'all of v1': FASTAI_V1,
    'rate slice(3e-3) (v1)': dict(lr=slice(3e-3)),
    'rate 1e-3 (fastai 2)': dict(lr=1e-3),
    'rate 1e-2': dict(lr=1e-2)}


def trial(root, cells, size, epochs, seed, lr=3e-3, **kwargs):
    "Train once, judge on the validation patients."
    data = ImageDataBunch.from_cells(root, cells, ds_tfms=get_transforms(flip_vert=True, max_rotate=None, max_warp=None, max_zoom=1.),
                                     size=size, resize_method=ResizeMethod.SQUISH, bs=64, seed=seed)
    learn = cnn_learner(data, 'resnet18', pretrained=False, metrics=accuracy, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    preds = learn.predict_cells(cells[cells.split == 'valid'], positive_class(cells.label))
    found = metrics(preds, positive_class(cells.label))
    return dict(accuracy=found['accuracy'], auc=found['auc'], loss=learn.recorder.history[-1]['valid_loss'])


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--size', type=int, default=32)
    p.add_argument('--epochs', type=int, default=5)
    p.add_argument('--limit', type=int, default=4000)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--out', type=Path, default=Path('results/defaults.csv'))
    a = p.parse_args()
    rows,about = [],environment('python bench/defaults.py ' + ' '.join(f'--{k} {getattr(a, k)}' for k in ('size', 'epochs', 'limit', 'seeds')))
    said = f"{about['command']} (resnet18 from random weights, split by patient; torch {about['versions']['torch']}, {about['device']}, commit {about['commit']})"
    with tempfile.TemporaryDirectory() as d:
        for seed in range(42, 42 + a.seeds):
            root,cells = prepare(os.environ['MALARIA_NIH_ZIP'], 'patient', seed, a.limit, data_dir=d)
            for name,kwargs in VARIANTS.items():
                rows.append(dict(variant=name, seed=seed, **trial(root, cells, a.size, a.epochs, seed, **kwargs), size=a.size, epochs=a.epochs,
                                 cells=len(cells), valid_patients=int(cells[cells.split == 'valid'].patient.nunique())))
                print(rows[-1], flush=True)
                a.out.parent.mkdir(exist_ok=True)
                a.out.write_text(f'# {said}\n' + pd.DataFrame(rows).round(4).to_csv(index=False), encoding='utf-8')
    print(pd.DataFrame(rows).groupby('variant', sort=False)[['accuracy', 'auc', 'loss']].mean().round(4))


if __name__ == '__main__': main()
