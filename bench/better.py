"""From a plain network to a good one, one change at a time: what does each gain on unseen patients? Writes results/better.csv.

    OMP_NUM_THREADS=1 python bench/better.py cell_images.zip --folds 1 2 --work runs/better

Every step trains on the training patients of a fold and is judged on its *validation* patients; test patients are not read. A step is
compared with the one that its row names, cell by cell, with an interval by patient over all folds that both have. Steps that only read
a training in another way (averaged weights, eight views, the mean of several networks) take it from the step that they are compared with.

`--cells` and `--epochs` make every training shorter, and the table says so. The same command goes on where it was stopped: predictions
stay in the folder of --work, and a training that was interrupted goes on exactly. `--small` is a try: few cells, 32 px, one epoch.

    python bench/better.py --runs runs/best_cv/fold0 runs/best_cv/fold1

adds two rows from run folders of the recipe `best`: one view and eight, again on the validation patients. Rows of other commands stay."""
import argparse
import copy
import json
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.callback.core import Callback

import malaria_fastai.extra.packaged_weights # noqa: F401
from malaria_fastai.evaluate import both_lines, evaluate, mean_of, paired_difference, read_predictions
from malaria_fastai.files import write_atomically
from malaria_fastai.recipes import Recipe, find_recipe
from malaria_fastai.run import environment, fit_recipe, limit_cells, positive_class, prepare, recipe_data, recipe_learner

FLIPS = dict(max_rotate=None, max_zoom=None, max_warp=None)
VIEWS = FLIPS | dict(flip_vert=True)
PLAIN = find_recipe('best_resnet18').but(tfms=FLIPS, epochs=7, lr=3e-2)
BEST = find_recipe('best').but(average=0., tta=False)
NET = BEST.but(size=64, tfms=FLIPS, finetune_lr=3e-3)
SLOW = NET.but(finetune_lr=(3e-4, 3e-3))


@dataclass
class Step:
    "One change: what it is compared with, what is trained for it, and how that network is asked."
    against: str        # Name of the step before; '' for none
    change: str         # What is different now
    recipe: Recipe      # What is trained
    training: str = ''  # The step whose training this one takes; '' is its own
    way: str = 'last'   # 'last', 'mean' (averaged weights) or 'eight' (these, and eight views)
    networks: int = 1   # Mean of so many, from this seed on
    later: int = 0      # Added to the seed
    rule: str = 'fold'  # 'fold' by patient, or 'random'


STAIN = BEST.but(size=64, average=1/3)
STEPS = dict(
    plain=Step('', 'ResNet18 from random weights, 64 px, the rate 0.03, mirrored pictures', PLAIN),
    seed=Step('plain', 'no change, another seed: chance alone', PLAIN, training='plain', later=1),
    rate=Step('plain', 'a tenth of the rate, 0.003', PLAIN.but(lr=3e-3)),
    imagenet=Step('rate', 'EfficientNet-Lite0 with ImageNet weights, one epoch for the head, the others for all', NET),
    body=Step('imagenet', 'the first layers learn at a tenth of the rate', SLOW),
    views=Step('body', 'all eight views in training', SLOW.but(tfms=VIEWS)),
    stain=Step('views', 'stain changes in training', STAIN),
    again=Step('stain', 'no change, another seed', STAIN, training='stain', later=1),
    pad=Step('stain', 'padded with black in place of squished', BEST.but(size=64, resize='PAD')),
    crop=Step('stain', 'cropped in place of squished', BEST.but(size=64, resize='CROP')),
    size96=Step('stain', '96 px', BEST),
    size128=Step('size96', '128 px', BEST.but(size=128)),
    average=Step('stain', 'weights averaged over the last third', STAIN, training='stain', way='mean'),
    eight=Step('average', 'eight views when predicting', STAIN, training='stain', way='eight'),
    three=Step('eight', 'the mean of three networks', STAIN, training='stain', way='eight', networks=3),
    random=Step('', "as 'stain changes', but cells drawn at random: the patients are in training too", STAIN, rule='random'))


class KeepLast(Callback):
    "Keep the last weights, before their mean takes the place."
    order = 59
    def after_fit(self): self.learn.last_weights = copy.deepcopy(self.model.state_dict())


def shortened(recipe, words):
    "The recipe, within the limits of the command line."
    epochs = 1 if words.small else words.epochs
    if words.small: recipe = recipe.but(size=32, bs=16)
    if epochs is None: return recipe
    if not recipe.finetune_epochs: return recipe.but(epochs=epochs)
    return recipe.but(epochs=1, finetune_epochs=max(1, epochs - 1))


@cache
def prepared(source, rule, limit, data_dir):
    "The folder and the checked cells; they are read once."
    return prepare(source, rule, 42, limit=limit, data_dir=data_dir)


def chosen_cells(rule, fold, words):
    "The folder and the cells of a fold for training, at most as many as the command line allows, and for validation: all."
    rules = dict(fold=f'patient:{fold}/5' if words.small else f'fold:{fold}', random=f'random:{fold}/5')
    root,cells = prepared(words.source, rules[rule], 300 if words.small else None, words.data_dir)
    parts = dict([*cells.groupby('split')])
    return root,pd.concat([limit_cells(parts['train'], words.cells), parts['valid']]).sort_values('path', ignore_index=True)


def train(name, fold, seed, words):
    "Train for a step, or go on, and write what it says of the validation patients, asked in each way there is."
    step = STEPS[name]
    recipe,(root,cells) = shortened(step.recipe, words),chosen_cells(step.rule, fold, words)
    valid,positive,began = cells[cells.split == 'valid'],positive_class(cells.label),time.process_time()
    states = words.work/f'{name}_{fold}_{seed}'
    learn = recipe_learner(recipe, recipe_data(recipe, root, cells, seed), path=states, model_dir='states')
    with learn.no_bar(): fit_recipe(learn, recipe, every='epoch', resume=True, cbs=[KeepLast()])
    about = dict(fold=fold, minutes=(time.process_time() - began)/60, train_cells=int((cells.split == 'train').sum()),
                 epochs=recipe.epochs + recipe.finetune_epochs)
    tables = {}
    if recipe.average:
        tables['mean'] = learn.predict_cells(valid, positive)
        column = learn.dls.classes.index(positive)
        with learn.no_bar(): eight = learn.TTA(beta=None, dl=learn.dls.cells_dl(valid))[1][:, column].double().numpy()
        called = np.where(eight >= .5, positive, [o for o in learn.dls.classes if o != positive][0])
        tables['eight'] = tables['mean'].drop(columns='loss').assign(p=eight, pred=called)
        learn.model.load_state_dict(learn.last_weights)
    tables['last'] = learn.predict_cells(valid, positive)
    for way,table in tables.items():
        write_atomically(words.work/f'{name}_{fold}_{seed}_{way}.csv', table.assign(**about).to_csv(index=False))
    shutil.rmtree(states)


def predicted(name, fold, words):
    "What a step says of the validation patients of a fold, from its files, or made now."
    step,tables = STEPS[name],[]
    training,first = step.training or name,words.seed + step.later
    for seed in range(first, first + step.networks):
        file = words.work/f'{training}_{fold}_{seed}_{step.way}.csv'
        if not file.exists(): train(training, fold, seed, words)
        tables.append(read_predictions(file))
    minutes = sum(table.minutes.astype(float).iloc[0] for table in tables)
    return mean_of(*tables, positive=positive_class(tables[0].label)).assign(minutes=minutes)


def pooled(tables):
    "The folds in one table; a patient who is for validation in two of them counts in both."
    return pd.concat([table.assign(path=table.fold.astype(str) + '/' + table.path) for table in tables], ignore_index=True)


def numbers(now, then, draws):
    "Three metrics with their intervals by patient, and what was gained: for all cells, and for those whose label nobody disputes."
    found,positive = {},positive_class(now.label)
    for kind,block in both_lines(evaluate(now, positive, draws=draws)).items():
        kind,mine = kind.split()[0],now
        if kind == 'undisputed': mine = now[~now.disputed.fillna(False).astype(bool)]
        found |= {f'n_{kind}': len(mine), f'wrong_{kind}': int(((mine.p >= .5) != (mine.label == positive)).sum())}
        found |= {f'{name}_{kind}': f'{block[name]:.4f} ({{:.4f}}–{{:.4f}})'.format(*block[f'{name}_ci'])
                  for name in ('accuracy', 'auc', 'brier')}
        if then is None: continue
        gap = paired_difference(then[then.path.isin(mine.path)], mine, positive, draws=draws)
        found |= {f'{name}_{kind}_gain': f'{gap.difference[name]:+.4f} ({gap.lo[name]:+.4f} to {gap.hi[name]:+.4f})'
                  for name in ('accuracy', 'auc', 'brier')}
    return found


def row(name, change, against, now, then, about, draws=2000):
    "A row of the table."
    by_fold = now.groupby('fold').first()
    found = dict(step=name, change=change, against=against, patients=now.patient.nunique(),
                 folds=' '.join(map(str, by_fold.index)), train_cells=round(by_fold.train_cells.astype(int).mean()),
                 epochs=int(by_fold.epochs.iloc[0]), minutes=round(by_fold.minutes.astype(float).mean(), 1))
    return found | numbers(now, then, draws) | {key: about[key] for key in ('seed', 'cores', 'commit', 'command')}


def write(rows, out):
    "Put rows into the table, in the order of the steps; others stay."
    table = pd.DataFrame(rows)
    if out.exists():
        there = pd.read_csv(out)
        table = pd.concat([table, there[~there.step.isin(table.step)]], ignore_index=True)
    place = {name: i for i,name in enumerate(STEPS)}
    table = table.sort_values('step', key=lambda names: names.map(place).fillna(len(place)), kind='stable')
    write_atomically(out, table.to_csv(index=False, lineterminator='\n'))


def of_runs(folders, draws=2000):
    "Two rows of run folders: what their networks say of the validation patients, from one view and from eight."
    both = dict(one=[], eight=[])
    for folder in folders:
        env,found = (json.loads((folder/f'{name}.json').read_text()) for name in ('environment', 'metrics'))
        epochs,train_cells = found['epochs'] + found['finetune_epochs'],found['data']['parts']['train']
        table = read_predictions(folder/'predictions.csv')
        valid = table[table.split == 'valid'].assign(fold=int(found['split'].partition(':')[2]), minutes=found['seconds']/60,
                                                     epochs=epochs, train_cells=train_cells)
        both['eight'].append(valid)
        both['one'].append(valid.drop(columns=['pred', 'loss']).assign(p=valid.p_one_view.astype(float)))
    one,eight = (pooled(tables) for tables in both.values())
    command = f"malaria-fastai crossval cell_images.zip --recipe best --out runs/best_cv; python bench/better.py --runs {' '.join(map(str, folders))}"
    about = dict(seed=found['seed'], cores=env['cores'], commit=env['commit'], command=command)
    return [row('best', 'the recipe best at full length: 96 px, averaged weights, one view', '', one, None, about, draws),
            row('best_eight', 'the same networks, eight views when predicting', 'best', eight, one, about, draws)]


def main():
    "Do what the command line says."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', nargs='?', help='archive of real cells')
    parser.add_argument('steps', nargs='*', help=f"of {', '.join(STEPS)}, in this order; all unless given")
    parser.add_argument('--folds', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--seed', type=int, default=42, help='names weights, order and draws; the patients stay the same')
    parser.add_argument('--cells', type=int, help='at most so many training cells of a fold')
    parser.add_argument('--epochs', type=int, help='of each training, in place of seven')
    parser.add_argument('--runs', type=Path, nargs='+', help='run folders of the recipe best, in place of an archive')
    parser.add_argument('--work', type=Path, default=Path('runs/better'))
    parser.add_argument('--out', type=Path, default=Path('results/better.csv'))
    parser.add_argument('--data-dir', default='data')
    parser.add_argument('--small', action='store_true', help='a try on few cells')
    words = parser.parse_args()
    if words.runs: return write(of_runs(words.runs), words.out)
    if not words.source: parser.error('an archive of real cells, or --runs')
    words.work.mkdir(parents=True, exist_ok=True)
    limits = ''.join(f' --{name} {value}' for name,value in (('cells', words.cells), ('epochs', words.epochs)) if value)
    command = f"python bench/better.py {Path(words.source).name} --folds {' '.join(map(str, words.folds))} --seed {words.seed}{limits}"
    about,rows,start = environment(command, seed=words.seed, folds=words.folds),[],time.time()
    for name in words.steps or STEPS:
        step = STEPS[name]
        now,then = (pooled([predicted(one, fold, words) for fold in words.folds]) if one else None for one in (name, step.against))
        rows.append(row(name, step.change, step.against, now, then, about, 50 if words.small else 2000))
        write(rows, words.out)
        print(f'{(time.time() - start)/60:.1f} minutes; {rows[-1]}', flush=True)


if __name__ == '__main__': main()
