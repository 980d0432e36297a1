"""How well does the review list find wrong labels? Writes results/label_audit.csv.

Two questions. Planted: some undisputed labels are flipped before cross-validation, so that models learn from them as from any other; how many
are found? Disputed: does the list agree with the labels that Fuhad et al. (2020) dispute? Every probability is out of fold by patient.

Run with the archive of real cells, and the folder of a cross-validation if there is one:
    python bench/label_audit.py cell_images.zip --cv runs/patient
    python bench/label_audit.py cell_images.zip --network   # also cross-validates a small network on the planted labels: 20 minutes on one core
With --review FOLDER the list, the sheets of its first hundred cells and a file for verdicts are written there; keep that out of the repository."""
import argparse
import shlex
import sys
import time
from pathlib import Path

import pandas as pd

from malaria_fastai.all import ImageDataBunch, ResizeMethod, data_hash, is_drawn, locate, positive_class, read_cells
from malaria_fastai.evaluate import flip_labels, read_predictions, review_agreement, review_list
from malaria_fastai.report import write_review
from malaria_fastai.source import DRAWN_NOTE
from malaria_fastai.split import fold_rules, split_by
from malaria_fastai.study import augmentation, boosted, colour_features, environment, make_learner


def left_out(cells, folds, predict):
    "Out-of-fold predictions: `predict` gets a split of `cells` and the number of the fold, and answers for its test part."
    parts = []
    for k,rule in enumerate(fold_rules(cells, 'patient', folds)):
        preds = predict(split_by(cells, rule), k)
        parts.append(preds[preds.split == 'test'].assign(fold=k))
    return pd.concat(parts).sort_values('path', ignore_index=True)


def network(root, positive, size, epochs, seed):
    "A ResNet18 from random weights."
    def predict(cells, k):
        data = ImageDataBunch.from_cells(root, cells, ds_tfms=augmentation(cells.label), size=size, resize_method=ResizeMethod.SQUISH, bs=64, val_bs=256, seed=seed)
        learn = make_learner(data, 'resnet18', 'no')
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
        return learn.predict_cells(cells[cells.split == 'test'], positive)
    return predict


def rows(review, truth, **about):
    "One row for each number of labels that a human would look at."
    found = review_agreement(review, truth)
    if not found: return []
    whole = {k: found[k] for k in ('n', 'marked', 'auc', 'contradicted')} | dict(auc_low=found['auc_ci'][0], auc_high=found['auc_ci'][1])
    sides = {f'contradicted_{k}': v['contradicted'] for k,v in found['by_label'].items()}
    return [dict(about, truth=truth, **o, **whole, **sides, suspected=int(review.suspected.sum())) for o in found['at']]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('source', help='a folder, a zip, or the name of a data set')
    p.add_argument('--cv', type=Path, help='folder of a cross-validation by patient, for the disputed labels')
    p.add_argument('--network', action='store_true', help='cross-validate a small network on the planted labels too')
    p.add_argument('--size', type=int, default=32)
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--share', type=float, default=.03, help='share of the labels to flip')
    p.add_argument('--seeds', type=int, default=3, help='how many times labels are flipped for the boosting; the network takes the first')
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--review', type=Path, help='where to write the list, sheets and verdicts of --cv')
    p.add_argument('--data-dir', default='data')
    p.add_argument('--out', type=Path, default=Path('results/label_audit.csv'))
    a = p.parse_args()
    root,start = locate(a.source, folder=a.data_dir),time.time()
    cells = read_cells(root)
    positive,features,found = positive_class(cells.label),colour_features(root, cells),[]

    def note(name, preds, truth, seed, **more):
        review = review_list(preds, positive)
        found.extend(rows(review, truth, model=name, seed=seed, **more))
        write(a.out, found, cells, start)
        return review

    def boosting(t, k): # nothing is chosen on validation cells, so it learns from them too
        return boosted(features.loc[t.path].to_numpy(), t.assign(split=t.split.replace('valid', 'train')), positive)

    colours = f'gradient boosting on 30 colour numbers, {a.folds} folds by patient'
    note(colours, left_out(cells, a.folds, boosting), 'disputed', None)
    for seed in range(42, 42 + a.seeds):
        planted = flip_labels(cells, a.share, seed)
        note(colours, left_out(planted, a.folds, boosting), 'flipped', seed, share=a.share)
    if a.cv:
        review = note(f'network of {a.cv.name}, cross-validated by patient', read_predictions(a.cv/'predictions.csv'), 'disputed', None)
        if a.review: write_review(a.review, root, review, cells, note=DRAWN_NOTE if is_drawn(root) else '')
    if a.network:
        name = f'ResNet18 from random weights, {a.size} px, {a.epochs} epochs, {a.folds} folds by patient'
        preds = left_out(flip_labels(cells, a.share, 42), a.folds, network(root, positive, a.size, a.epochs, 42))
        note(name, preds, 'flipped', 42, share=a.share)


def write(out, found, cells, start):
    "The table so far, with what made it."
    about = environment(shlex.join(['python', 'bench/label_audit.py', *(Path(o).name if '/' in o else o for o in sys.argv[1:])]))
    out.parent.mkdir(exist_ok=True, parents=True)
    made = dict(patients=cells.patient.nunique(), data_hash=data_hash(cells)[:12], seconds=round(time.time() - start), cores=about['cores'], commit=about['commit'],
                command=about['command'])
    pd.DataFrame(found).round(4).assign(**made).to_csv(out, index=False)
    print(pd.DataFrame(found[-8:]).round(3).to_string(index=False), flush=True)


if __name__ == '__main__': main()
