"""How far each assertion that follows a fit is from failing, over ten seeds: the least margin is what counts.

    python tests/margins.py --out results/margins.csv                                                     # this processor
    ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 python tests/margins.py --out results/margins.csv # imitates an old one

Rows of another setting stay in the file."""
import argparse,os,sys
from pathlib import Path
from tempfile import TemporaryDirectory
import numpy as np
import pandas as pd
import pytest
sys.path[:0] = [str(Path(__file__).resolve().parent)]
import test_evaluate,test_learner,test_source
from malaria_fastai.run import environment
from malaria_fastai.sample import draw_sample

def half_precision(seed, folder):
    "tests/test_learner.py::test_half_precision_trains: one epoch in half precision against single."
    data = test_learner.bunch(test_learner.three_colours(folder, seed), seed=seed)
    with pytest.MonkeyPatch.context() as patch: alike,loss,half_loss,_ = test_learner.half_against_single(data, patch)
    yield 'cosine of the weights','>',.9,alike
    yield 'relative difference of the loss','<',.02,abs(half_loss/loss-1)

def planted_flips(seed, folder):
    "tests/test_evaluate.py::test_planted_flips_come_up_out_of_fold_and_stay_hidden_in_sample: trees that have seen the flips or not."
    recall = test_evaluate.recall_of_flips(seed)
    yield 'found out of fold','>',.6,recall['outside']
    yield 'found in sample','<',.2,recall['inside']

def colour_alone(seed, folder):
    "tests/test_source.py::test_colour_alone_stays_under_nine_tenths: boosted trees on the colours of the sample, other folds."
    accuracy = test_source.accuracy_of_colour(draw_sample(folder/'sample'), seed)
    yield 'accuracy','>',.65,accuracy
    yield 'accuracy','<',.9,accuracy

def rows(seeds):
    for measure in (half_precision, planted_flips, colour_alone):
        for seed in range(seeds):
            with TemporaryDirectory() as folder: found = list(measure(seed, Path(folder)))
            for what,sign,bound,value in found: yield dict(test=measure.__doc__.split(': ')[0], what=what, sign=sign, bound=bound, seed=seed, value=value)
            print(measure.__name__, seed, *(f'{value:.4f}' for *_,value in found), flush=True)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='a table to write')
    parser.add_argument('--seeds', type=int, default=10)
    args = parser.parse_args()
    table = pd.DataFrame(rows(args.seeds))
    table['margin'] = (table.value-table.bound)*np.where(table.sign=='>', 1, -1)
    by = ['test', 'what', 'sign', 'bound']
    table = table.groupby(by, sort=False).agg(seeds=('seed', 'size'), least=('value', 'min'), most=('value', 'max'), least_margin=('margin', 'min')).reset_index()
    table['processor'] = os.environ.get('ATEN_CPU_CAPABILITY', 'its own')
    table['commit'] = environment('')['commit']
    if args.out and args.out.exists():
        old = pd.read_csv(args.out)
        table = pd.concat([old[old.processor!=table.processor[0]], table])
    print(table.round(4).to_string())
    if args.out: table.round(5).to_csv(args.out, index=False, lineterminator='\n')
    assert (table.least_margin>0).all()

if __name__=='__main__': main()
