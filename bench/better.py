"""From a plain network to a good one, one change at a time: what does each gain on unseen patients? Writes results/better.csv.

    OMP_NUM_THREADS=1 python bench/better.py cell_images.zip --folds 1 2 --work runs/better

Every step trains on the training patients of a fold and is judged on its *validation* patients; test patients are not read. A step is
compared with the one that its row names, cell by cell, with an interval by patient over all folds that both have. The same command goes
on where it was stopped: predictions stay in the folder of --work, and a training that was interrupted goes on exactly. `--small` is a
try: few cells, 32 px, one epoch."""
import argparse
import shutil
import time
from pathlib import Path

import pandas as pd

import malaria_fastai.extra.packaged_weights # noqa: F401
from malaria_fastai.evaluate import mean_of, metrics, paired_difference, read_predictions
from malaria_fastai.files import write_atomically
from malaria_fastai.recipes import find_recipe
from malaria_fastai.run import _all_views, environment, fit_recipe, positive_class, prepare, recipe_data, recipe_learner

BEST = find_recipe('best').but(average=0., tta=False)
FLIPS = dict(max_rotate=None, max_zoom=None, max_warp=None)
PLAIN = find_recipe('best_resnet18').but(tfms=FLIPS, epochs=7, precision='single', lr=3e-2)
NET = BEST.but(size=64, tfms=FLIPS, finetune_lr=3e-3)
STEPS = { # Name -> the step it is compared with, what changes, the recipe (or how many networks of that step are averaged)
    'plain': ('', 'ResNet18 from random weights, 64 px, seven epochs at 0.03, mirrored pictures', PLAIN),
    'rate': ('plain', 'the rate that the finder suggests, 0.003', PLAIN.but(lr=3e-3)),
    'imagenet': ('rate', 'EfficientNet-Lite0 with ImageNet weights: one epoch for the head, six for all', NET),
    'body': ('imagenet', 'the body learns at a tenth of the rate', NET.but(finetune_lr=(3e-4, 3e-3))),
    'views': ('body', 'all eight views in training', NET.but(finetune_lr=(3e-4, 3e-3), tfms=FLIPS | dict(flip_vert=True))),
    'stain': ('views', 'stain changes in training', BEST.but(size=64)),
    'pad': ('stain', 'black borders in place of squishing', BEST.but(size=64, resize='PAD')),
    'crop': ('stain', 'the middle cut out in place of squishing', BEST.but(size=64, resize='CROP')),
    'size96': ('stain', '96 px', BEST),
    'size128': ('size96', '128 px', BEST.but(size=128)),
    'average': ('size96', 'weights averaged over the last third', BEST.but(average=1/3)),
    'eight': ('average', 'eight views when predicting', BEST.but(average=1/3, tta=True)),
    'three': ('eight', 'the mean of three networks', 3)}


def predicted(recipe, source, fold, seed, out, small, data_dir):
    "The predictions of the validation patients by a network that is trained now, or goes on."
    rule = f'patient:{fold}/5' if small else f'fold:{fold}'
    root,cells = prepare(source, rule, 42, limit=300 if small else None, data_dir=data_dir)
    cells,positive = cells[cells.split != 'test'].reset_index(drop=True),positive_class(cells.label)
    if small: recipe = recipe.but(size=32, bs=16, epochs=1, finetune_epochs=min(1, recipe.finetune_epochs))
    learn = recipe_learner(recipe, recipe_data(recipe, root, cells, seed), path=out, model_dir='states')
    with learn.no_bar(): fit_recipe(learn, recipe, every='epoch', resume=True)
    table = learn.predict_cells(cells[cells.split == 'valid'], positive)
    if recipe.tta: table = _all_views(learn, table, positive)
    return table.assign(minutes=sum(row['seconds'] for row in learn.recorder.history)/60)


def step(name, source, fold, seed, work, small, data_dir):
    "The predictions of a step on a fold, from its file, or made now."
    file,recipe = work/f'{name}_{fold}_{seed}.csv',STEPS[name][2]
    if isinstance(recipe, int):
        tables = [step(STEPS[name][0], source, fold, seed + i, work, small, data_dir) for i in range(recipe)]
        minutes = sum(table.minutes.astype(float).iloc[0] for table in tables)
        return mean_of(*tables).assign(minutes=minutes)
    if not file.exists():
        states = work/f'{name}_{fold}_{seed}'
        table = predicted(recipe, source, fold, seed, states, small, data_dir)
        write_atomically(file, table.to_csv(index=False))
        shutil.rmtree(states)
    return read_predictions(file)


def row(name, tables, positive, draws, about):
    "The numbers of a step over its folds, and what it gained: for all cells, and for those whose label nobody disputes."
    before,change,_ = STEPS[name]
    now = pd.concat([tables[name, fold] for fold in about['folds']], ignore_index=True)
    found = dict(step=name, change=change, against=before, folds=' '.join(map(str, about['folds'])), n=len(now),
                 patients=now.patient.nunique(), minutes=round(now.groupby('fold').minutes.first().astype(float).mean(), 1))
    then = before and pd.concat([tables[before, fold] for fold in about['folds']], ignore_index=True)
    for kind,chosen in (('all', now.path), ('undisputed', now.path[~now.disputed.fillna(False).astype(bool)])):
        mine = now[now.path.isin(chosen)]
        numbers = metrics(mine, positive)
        found |= {f'{metric}_{kind}': round(numbers[metric], 4) for metric in ('accuracy', 'auc', 'brier')}
        if not before: continue
        gap = paired_difference(then[then.path.isin(chosen)], mine, positive, draws=draws)
        for metric in ('accuracy', 'auc', 'brier'):
            one = gap.loc[metric]
            found[f'{metric}_{kind}_gain'] = f'{one.difference:+.4f} ({one.lo:+.4f} to {one.hi:+.4f})'
    return found | {name: about[name] for name in ('seed', 'cores', 'commit', 'command')}


def main():
    "Do what the command line says."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='archive of real cells')
    parser.add_argument('steps', nargs='*', help=f"of {', '.join(STEPS)}; all unless given")
    parser.add_argument('--folds', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--seed', type=int, default=42, help='names weights, order and draws; the patients stay the same')
    parser.add_argument('--work', type=Path, default=Path('runs/better'))
    parser.add_argument('--out', type=Path, default=Path('results/better.csv'))
    parser.add_argument('--data-dir', default='data')
    parser.add_argument('--small', action='store_true', help='a try on few cells')
    words = parser.parse_args()
    folds = ' '.join(map(str, words.folds))
    command = f'python bench/better.py {Path(words.source).name} --folds {folds} --seed {words.seed}'
    about = environment(command, seed=words.seed, folds=words.folds)
    tables,rows,start = {},[],time.time()
    for name in words.steps or STEPS:
        for one in filter(None, (STEPS[name][0], name)):
            for fold in words.folds:
                if (one, fold) not in tables:
                    found = step(one, words.source, fold, words.seed, words.work, words.small, words.data_dir)
                    tables[one, fold] = found.assign(fold=fold)
        positive = positive_class(tables[name, words.folds[0]].label)
        rows.append(row(name, tables, positive, 50 if words.small else 2000, about))
        table = pd.DataFrame(rows)
        write_atomically(words.out, table.to_csv(index=False))
        print(f'{(time.time() - start)/60:.1f} minutes; {rows[-1]}', flush=True)


if __name__ == '__main__': main()
