"""How long does a whole report take? Writes results/report_time.csv.

    OMP_NUM_THREADS=2 python bench/report_time.py

12,670 drawn predictions, 2,000 bootstrap draws: metrics with intervals, `examine`, every figure, one page. Once as the valid and test part of a run,
once as the test part of a cross-validation, where all cells are reported."""
import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from malaria_fastai.evaluate import evaluate
from malaria_fastai.extra.simulate import simulate_predictions
from malaria_fastai.report import examine_run


def run_folder(folder, preds, draws):
    "What training leaves behind, with intervals for each part."
    blocks = {k: evaluate(preds[preds.split == k], 'Parasitized', draws=draws) for k in ('valid', 'test') if (preds.split == k).any()}
    (folder/'metrics.json').write_text(json.dumps(dict(data=dict(positive='Parasitized', drawn=True), split='patient', **blocks)))
    preds.to_csv(folder/'predictions.csv', index=False)


def timed(preds, draws):
    "Seconds of the clock and of the processor, for everything after prediction."
    with tempfile.TemporaryDirectory() as d:
        clock,cpu = time.perf_counter(),time.process_time()
        run_folder(Path(d), preds, draws)
        page = examine_run(d, draws=draws)
        return dict(seconds=round(time.perf_counter() - clock, 1), cpu_seconds=round(time.process_time() - cpu, 1), page_kb=page.stat().st_size//1000)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--draws', type=int, default=2000)
    p.add_argument('--out', type=Path, default=Path('results/report_time.csv'))
    a = p.parse_args()
    preds = simulate_predictions(patients=181, cells=70)
    rows = [dict(what=name, cells=len(t), patients=t.patient.nunique(), draws=a.draws, **timed(t, a.draws), cores=os.cpu_count(),
                 threads=os.environ.get('OMP_NUM_THREADS', 'all'), load=round(os.getloadavg()[0], 1), command='python bench/report_time.py')
            for name,t in (('a run, half valid and half test', preds), ('a cross-validation, all cells in test', preds.assign(split='test')))]
    a.out.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(a.out, index=False)
    print(pd.DataFrame(rows).T)


if __name__ == '__main__': main()
