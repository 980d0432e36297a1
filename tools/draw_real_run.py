"""Draw what lessons show of a real run beside their drawn cells: each patient a dot, and whether p means what it says.

    malaria-fastai crossval cell_images.zip --recipe best --out runs/best_cv --resume
    python tools/draw_real_run.py runs/best_cv --out results/best

Each cell is judged by the network of the fold that never saw its patient; the temperature is that of the fold's validation patients.
Writes `best_patients.svg` and `best_reliability.svg`: dots and curves, no picture of a cell."""
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from malaria_fastai.evaluate import apply_temperature,fit_temperature,read_predictions
from malaria_fastai.report import plot_patients,plot_reliability
from malaria_fastai.run import positive_class


def judged(folder):
    "Test cells of all folds that are finished, as trained and after the temperature; the positive class."
    tables = [read_predictions(file) for file in sorted(folder.glob('fold*/predictions.csv'))]
    positive = positive_class(tables[0].label)
    parts = [dict([*table.groupby('split')]) for table in tables]
    after = [apply_temperature(part['test'], fit_temperature(part['valid'], positive)) for part in parts]
    return pd.concat(part['test'] for part in parts),pd.concat(after),positive


def save(ax, file, title):
    "The same numbers make the same file: no date, no ids by chance."
    ax.figure.supxlabel(title, fontsize=8, color='.4')
    with plt.rc_context({'svg.hashsalt': file.stem}): ax.figure.savefig(file, metadata=dict(Date=None))
    plt.close(ax.figure)
    print(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path, help='a cross-validation on real cells')
    parser.add_argument('--out', type=Path, required=True, help='beginning of the names of the two files')
    asked = parser.parse_args()
    preds,after,positive = judged(asked.folder)
    title = f'{len(preds):,} real cells of {preds.patient.nunique()} patients'
    plots = dict(patients=plot_patients(preds, positive), reliability=plot_reliability(preds, positive, after))
    for name,ax in plots.items(): save(ax, asked.out.with_name(f'{asked.out.name}_{name}.svg'), title)


if __name__ == '__main__': main()
