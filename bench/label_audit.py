"""How well does the review list find wrong labels? Writes results/label_audit.csv.

Two questions. Planted: some undisputed labels are flipped before cross-validation, so that models learn from them as from any other; how many
are found? Disputed: does the list agree with the labels that Fuhad et al. (2020) dispute? Every probability is out of fold by patient.

Run with the archive of real cells, and the folder of a cross-validation if there is one:
    python bench/label_audit.py cell_images.zip boosting
    python bench/label_audit.py cell_images.zip network                    # cross-validates a small network on the planted labels
    python bench/label_audit.py cell_images.zip cv --cv runs/patient       # the disputed labels, by a cross-validation that was made before
Each replaces its own rows of the table and keeps the others. With --review FOLDER the list, the sheets of its first hundred cells and a file for verdicts are written there; keep that out of the repository."""
import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import pandas as pd

from malaria_fastai.all import ImageDataBunch, ResizeMethod, cnn_learner, data_hash, get_transforms, is_drawn, locate, positive_class, read_cells
from malaria_fastai.files import replacing
from malaria_fastai.evaluate import read_predictions
from malaria_fastai.extra.audit import flip_labels, review_agreement, review_list
from malaria_fastai.extra.contact_sheets import write_review
from malaria_fastai.sample import DRAWN_NOTE
from malaria_fastai.split import fold_rules, split_by
from malaria_fastai.run import augmentation, boosted, colour_features, environment


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
        data = ImageDataBunch.from_cells(root, cells, ds_tfms=get_transforms(**augmentation(cells.label)), size=size, resize_method=ResizeMethod.SQUISH, bs=64,
                                         val_bs=256, seed=seed)
        learn = cnn_learner(data, 'resnet18', pretrained=False)
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
    p.add_argument('models', nargs='+', choices=('boosting', 'network', 'cv'), help='whose probabilities are taken')
    p.add_argument('--cv', type=Path, help='folder of a cross-validation by patient, for the disputed labels')
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
    positive,found = positive_class(cells.label),[]

    def note(name, preds, truth, seed, **more):
        review = review_list(preds, positive)
        found.extend(rows(review, truth, model=name, seed=seed, **more))
        if found: write(a.out, found, cells, start)
        return review

    if 'boosting' in a.models:
        features = colour_features(root, cells)
        def boosting(t, k): # nothing is chosen on validation cells, so it learns from them too
            return boosted(features.loc[t.path].to_numpy(), t.assign(split=t.split.replace('valid', 'train')), positive)

        name = f'gradient boosting on 30 colour numbers, {a.folds} folds by patient'
        note(name, left_out(cells, a.folds, boosting), 'disputed', None)
        for seed in range(42, 42 + a.seeds):
            note(name, left_out(flip_labels(cells, a.share, seed), a.folds, boosting), 'flipped', seed, share=a.share)
    if 'cv' in a.models:
        about = json.loads((a.cv/'metrics.json').read_text('utf-8'))
        name = f"{about['arch']}, {about['size']} px, {about['epochs']}+{about['finetune_epochs']} epochs, {about['folds']} folds by {about['split']}"
        review = note(name, read_predictions(a.cv/'predictions.csv'), 'disputed', None)
        if a.review: write_review(a.review, root, review, cells, note=DRAWN_NOTE if is_drawn(root) else '')
    if 'network' in a.models:
        name = f'resnet18 from random weights, {a.size} px, {a.epochs} epochs, {a.folds} folds by patient'
        preds = left_out(flip_labels(cells, a.share, 42), a.folds, network(root, positive, a.size, a.epochs, 42))
        note(name, preds, 'flipped', 42, share=a.share)


def write(out, found, cells, start):
    "These rows, with what made them, in place of earlier rows of the same models."
    command = shlex.join(['python', 'bench/label_audit.py', *(Path(o).name if '/' in o else o for o in sys.argv[1:])])
    about = environment(command)
    new = pd.DataFrame(found).round(4).assign(patients=cells.patient.nunique(), data_hash=data_hash(cells)[:12], seconds=round(time.time() - start),
                                              cores=about['cores'], commit=about['commit'], command=command)
    old = pd.read_csv(out) if out.exists() else new[:0]
    both = pd.concat([o for o in (old[~old.model.isin(new.model)], new) if len(o)], ignore_index=True)
    with replacing(out) as part: both.to_csv(part, index=False)
    print(new[['model', 'truth', 'seed', 'k', 'found', 'precision', 'recall', 'auc', 'contradicted']].tail(6).to_string(index=False), flush=True)


if __name__ == '__main__': main()
