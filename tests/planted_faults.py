"""Plant a fault in each module, one at a time in a copy of the repository, and see which part of `make test` finds it.

    python tests/planted_faults.py --out results/planted_faults.csv

A fault is one line that is changed in the exported module. What is run is the module's own notebook and its quick tests, in the
order of the table, until one fails. The rule that compares modules with notebooks is left out: it would find every fault."""
import argparse,os,re,subprocess,sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
import pandas as pd
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
from run_tests import LEFT_OUT,NBDEV_TEST,PYTEST
from set_address import files

ROOT = Path(__file__).resolve().parent.parent

@dataclass(frozen=True)
class Fault:
    "One line of a module, `old`, becomes `new`; `finders` are the notebooks and tests that are asked, in order."
    module:str
    what:str
    old:str
    new:str
    finders:tuple

def asks(notebook, tests): return f'nbs/api/{notebook}.ipynb',tests

SOURCE   = asks('01_source', 'tests/test_source.py')
CELLS    = asks('03_cells', 'tests/test_cells.py')
SPLIT    = asks('04_split', 'tests/test_split.py')
TRANSFORMS = asks('05_transforms', 'tests/test_data.py')
DATA     = asks('06_data', 'tests/test_data.py')
LEARNER  = asks('09_learner', 'tests/test_learner.py')
RESUME   = asks('10_resume', 'tests/test_resume.py')
INTERPRET = asks('11_interpret', 'tests/test_interpret.py')
EVALUATE = asks('12_evaluate', 'tests/test_evaluate.py')
REPORT   = asks('13_report', 'tests/test_report.py')
RECIPES  = asks('14_recipes', 'tests/test_recipes.py')
STUDY    = asks('15_run', 'tests/test_run.py tests/test_robustness.py')
EXPORT   = asks('17_export', 'tests/test_export.py')
PREDICT  = asks('16_predict', 'tests/test_predict.py')
CLI      = asks('18_cli', 'tests/test_run.py')

FAULTS = [
    Fault('source', 'a name that leaves the folder is let in', "if '..' in name.split('/')", "if '...' in name.split('/')", SOURCE),
    Fault('source', 'a zip bomb is compared the wrong way', 'size > _MAX_RATIO*max(1, packed)', 'size < _MAX_RATIO*max(1, packed)', SOURCE),
    Fault('cells', 'a picture under two labels passes', '[names.str.len() > 1]', '[names.str.len() > 2]', CELLS),
    Fault('cells', 'a name in two classes is not told', 'if twice:', 'if len(twice) > 9:', CELLS),
    Fault('split', 'one patient too many in a part', 'round(n*share)) for share', 'round(n*share)+1) for share', SPLIT),
    Fault('split', 'the seed is ignored', 'order = np.random.RandomState(seed).permutation(n)', 'order = np.random.RandomState(0).permutation(n)', SPLIT),
    Fault('transforms', 'a mirrored view is mirrored the other way', 'if k & 1: x = flip(x, (-1,))', 'if k & 1: x = flip(x, (-2,))', TRANSFORMS),
    Fault('data', 'the classes are swapped', 'names = sorted(found)',
          'names = sorted(found, reverse=True)', DATA),
    Fault('learner', 'the cycle does not reach its end', '(i-up)/(n-up)', '(i-up)/n', LEARNER),
    Fault('learner', 'the peak is one batch late', 'up = int(n*self.pct_start)', 'up = int(n*self.pct_start)+1', LEARNER),
    Fault('resume', 'what is written is not flushed to the disk', '        os.fsync(opened.fileno())\n', '', RESUME),
    Fault('resume', 'a stream of random numbers is not set', "    torch.set_rng_state(streams['torch'])\n", '', RESUME),
    Fault('interpret', 'truth and prediction change places', 'skm.confusion_matrix(self.y_true, self.pred_class,', 'skm.confusion_matrix(self.pred_class, self.y_true,', INTERPRET),
    Fault('interpret', 'the smallest losses come first', 'largest=largest)', 'largest=not largest)', INTERPRET),
    Fault('evaluate', 'sensitivity and specificity change places', 'sensitivity=sens, specificity=spec,\n', 'sensitivity=spec, specificity=sens,\n', EVALUATE),
    Fault('evaluate', 'a wrong sign in MCC', 'a*n-b*p', 'a*n+b*p', EVALUATE),
    Fault('report', 'a loss is written as a gain', "replace('-', '−')", "replace('-', '+')", REPORT),
    Fault('recipes', 'cells that were left out are not told', 'if here < there', 'if here > there', RECIPES),
    Fault('run', 'one cell more than the limit', 'permutation(len(cells))[:n]', 'permutation(len(cells))[:n+1]', STUDY),
    Fault('predict', 'probabilities add up over cells', 'return e/e.sum(-1, keepdims=True)', 'return e/e.sum(0, keepdims=True)', PREDICT),
    Fault('backbone', 'pictures are normalised the wrong way', '.float()/255 - self.mean)/self.std', '.float()/255 - self.mean)*self.std', EXPORT),
    Fault('cli', 'an error exits with 1', '        return 2\n', '        return 1\n', CLI),
    Fault('all', 'a module is not in the star import', 'from .sample import DRAWN_NOTE, draw_sample, is_drawn\n', '', ('nbs/api/19_all.ipynb', 'tests/test_all.py')),
]

def copy(to):
    "Copy what git would commit."
    for path in files(ROOT):
        new = to/path.relative_to(ROOT)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(path.read_bytes())
    return to

def plant(tree, fault):
    path = tree/'malaria_fastai'/f'{fault.module}.py'
    text = path.read_text(encoding='utf-8')
    if text.count(fault.old)!=1: raise ValueError(f'{fault.module}.py has {text.count(fault.old)} places that say {fault.old!r}, not one')
    path.write_text(text.replace(fault.old, fault.new), encoding='utf-8')

def complaint(tree, finder):
    "The test or the notebook that fails in `tree`, or ''."
    if finder.endswith('.ipynb'): command = [*NBDEV_TEST, finder]
    else: command = [*PYTEST, '-q', '-x', '-m', f'not ({LEFT_OUT})', *finder.split()]
    environment = dict(os.environ, PYTHONPATH=str(tree), MALARIA_DATA='sample', OMP_NUM_THREADS='1')
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode==0: return ''
    named = re.search(r'^(?:FAILED|ERROR) (\S+)', done.stdout, re.M)
    return named[1] if named else finder

def hunt(fault):
    with TemporaryDirectory() as folder:
        tree = copy(Path(folder))
        plant(tree, fault)
        found = next(filter(None, (complaint(tree, finder) for finder in fault.finders)), '')
    print(f'{"found" if found else "MISSED"}: {fault.module}, {fault.what}: {found}', flush=True)
    return dict(module=fault.module, fault=fault.what, before=fault.old, after=fault.new, found_by=found)

if __name__=='__main__':
    parser = argparse.ArgumentParser(description='Plant a fault in each module and see which part of make test finds it.')
    parser.add_argument('--out', type=Path, help='the table, CSV')
    parser.add_argument('--module', help='this module alone')
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.module in (None, fault.module)]
    with ThreadPoolExecutor(2) as pool: rows = [*pool.map(hunt, chosen)]
    if options.out: pd.DataFrame(rows).to_csv(options.out, index=False, lineterminator='\n')
    missed = [row for row in rows if not row['found_by']]
    print(f'{len(rows)-len(missed)} of {len(rows)} planted faults were found')
    sys.exit(bool(missed))
