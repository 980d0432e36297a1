"""Which settings train the best cell classifier? Writes results/best_trials.csv, one row a trial.

Fold 0 of the pinned patients is set aside: its pictures are not read here. Every trial learns from the training patients of the other folds
and is judged on their validation patients. What wins becomes the recipe `best`; `make best` then judges it once, on fold 0.

    python bench/best_trials.py cell_images.zip lite0_64             one trial, or several
    python bench/best_trials.py cell_images.zip lite0_64 --seed 43   the same with other draws (the patients stay)
    python bench/best_trials.py cell_images.zip                      all of them

Do small pictures first save time? One that is not asked to be the best, beside the same ten epochs in one size:

    python bench/best_trials.py cell_images.zip resnet18_64_stain resnet18_32_64_stain --out results/progressive.csv"""
import argparse
import time
from pathlib import Path

import pandas as pd

import malaria_fastai.extra.packaged_weights # noqa: F401  (the networks of the recipes start from them)
from malaria_fastai.files import replacing
from malaria_fastai.evaluate import metrics, paired_difference
from malaria_fastai.recipes import RECIPES, Recipe
from malaria_fastai.run import environment, fit_recipe, positive_class, prepare, recipe_data, recipe_learner

LITE = RECIPES['efficientnet_lite0'].but(bs=64, epochs=1, finetune_epochs=6, finetune_lr=(3e-4, 3e-3))
SCRATCH = RECIPES['fastai_resnet18_scratch'].but(size=64, bs=64, tfms=LITE.tfms, lin_ftrs=(512,), opt='adam', epochs=10)
STAIN = LITE.tfms | dict(max_stain=.3)
HALF = SCRATCH.but(precision='half', tfms=STAIN)
TRIALS = {
    'lite0_64': LITE.but(size=64),
    'lite0_64_stain': LITE.but(size=64, tfms=STAIN),
    'lite0_96_stain': LITE.but(size=96, tfms=STAIN),
    'resnet18_64_plain': HALF.but(tfms=LITE.tfms),
    'resnet18_64_stain': HALF,
    'resnet18_64_stain_strong': HALF.but(tfms=STAIN | dict(max_stain=.5, max_lighting=.4)),
    'resnet18_64_stain_turned': HALF.but(tfms=STAIN | dict(max_rotate=45., max_zoom=1.1)),
    'resnet18_96_stain': HALF.but(size=96)}
ASIDE = {'resnet18_32_64_stain': RECIPES['progressive_resnet18']} # a question of time, not of the best: results/progressive.csv


def trial(recipe, root, cells, seed):
    "Train on the training patients, judge on the validation patients: with one view, and with the mean of the eight dihedral ones."
    positive,start,cpu = positive_class(cells.label),time.time(),time.process_time()
    data = recipe_data(recipe, root, cells, seed, cache=root.parent/'pictures')
    learn = recipe_learner(recipe, data)
    with learn.no_bar(): fit_recipe(learn, recipe)
    seconds,cpu,valid = time.time() - start,time.process_time() - cpu,cells[cells.split == 'valid']
    one = learn.predict_cells(valid, positive)
    with learn.no_bar(): mean = learn.TTA(beta=None, dl=data.test_dl([root/o for o in valid.path]))[1]
    eight = one.assign(p=mean[:, data.classes.index(positive)].double().numpy(), pred=[data.classes[k] for k in mean.argmax(1)])
    a,b,gain = metrics(one, positive),metrics(eight, positive),paired_difference(one, eight, positive, draws=500)
    return dict(accuracy=a['accuracy'], auc=a['auc'], accuracy_eight=b['accuracy'], auc_eight=b['auc'], auc_gain_lo=gain.lo['auc'], auc_gain_hi=gain.hi['auc'],
                train_seconds=round(seconds), cpu_seconds=round(cpu), parameters=sum(p.numel() for p in learn.model.parameters()),
                epochs_valid_loss=' '.join(f"{o['valid_loss']:.4f}" for o in learn.recorder.history))


def said(r:Recipe):
    "A trial in one line."
    start = 'ImageNet' if r.pretrained else 'random weights'
    return (f"{r.arch}, {start}, {f'{r.size_first}, then '*(r.size_first > 0)}{r.size} px, bs {r.bs}, {r.epochs} {'head' if r.frozen == 'body' else 'all'} at {r.lr}"
            + (f" + {r.finetune_epochs} all at {r.finetune_lr}" if r.finetune_epochs else '') + f", dropout {r.ps}, decay {r.wd}, {r.precision} precision, {r.tfms}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('source', help='archive of real cells')
    p.add_argument('trials', nargs='*', help=f"of {', '.join(TRIALS | ASIDE)}")
    p.add_argument('--seed', type=int, default=42, help='names weights, order and draws; the patients stay the same')
    p.add_argument('--data-dir', default='data')
    p.add_argument('--out', type=Path, default=Path('results/best_trials.csv'))
    a = p.parse_args()
    root,cells = prepare(a.source, 'fold:0', 42, data_dir=a.data_dir)
    cells = cells[cells.split != 'test'].reset_index(drop=True)
    valid = cells[cells.split == 'valid']
    for name in a.trials or TRIALS:
        command = f"python bench/best_trials.py {Path(a.source).name} {name} --seed {a.seed}"
        about = environment(command)
        recipe = (TRIALS | ASIDE)[name]
        row = dict(trial=name, seed=a.seed, recipe=said(recipe), **trial(recipe, root, cells, a.seed), train_cells=int((cells.split == 'train').sum()),
                   valid_cells=len(valid), valid_patients=int(valid.patient.nunique()), cores=about['cores'], commit=about['commit'], command=command)
        old = pd.read_csv(a.out) if a.out.exists() else pd.DataFrame(columns=list(row))
        table = pd.concat([o for o in (old[(old.trial != name) | (old.seed != a.seed)], pd.DataFrame([row]).round(4)) if len(o)], ignore_index=True)
        with replacing(a.out) as part: table.to_csv(part, index=False)
        print({k: row[k] for k in ('trial', 'seed', 'accuracy', 'auc', 'accuracy_eight', 'auc_eight', 'train_seconds')}, flush=True)


if __name__ == '__main__': main()
