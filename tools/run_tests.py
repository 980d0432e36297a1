"""Run the tests, the quick ones or those that `make test` leaves out, and say how long they took.

    python tools/run_tests.py quick   # the repository's rules, every api notebook, the quick tests, lesson 1: `make test`
    python tools/run_tests.py rest    # slow cells and tests, every lesson, real cells, a browser, as far as they are there
    python tools/run_tests.py all     # both: `make test-all`

OMP_NUM_THREADS=2 lets every process use two threads; ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA imitate an older processor."""
import json,os,shutil,subprocess,sys,tempfile,time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, '-m', 'pytest']
NBDEV_TEST = [shutil.which('nbdev-test', path=str(Path(sys.executable).parent)) or 'nbdev-test']
PARALLEL = ['--numprocesses=2', '--dist=loadfile', '--no-loadscope-reorder'] # tests/conftest.py says what begins first
LEFT_OUT = 'slow or real or browser'

def slow_notebooks():
    "The api notebooks with a cell that is flagged slow."
    for path in sorted((ROOT/'nbs').glob('*/*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        if any(''.join(cell['source']).startswith('#| slow') for cell in cells): yield path

def quick():
    yield [*PYTEST, '-m', f'not ({LEFT_OUT})', *PARALLEL]
    # tests/test_colab.py runs the tutorials; the home page trains for a minute, and so do two others
    yield [*NBDEV_TEST, 'nbs', '--n-workers', '2', '--timing', '--skip-folder-re', r'^([_.]|tutorials$)', '--skip-file-re', r'^(\.|_|index|trouble|01_your_own)']

def rest():
    yield [*NBDEV_TEST, 'nbs', '--n-workers', '2', '--timing', '--skip-folder-re', r'^([_.]|api|extra|tutorials$)', '--file-re', r'^(index|trouble|01_your_own)']
    for path in slow_notebooks(): yield [*NBDEV_TEST, str(path), '--flags', 'slow', '--timing']
    yield [*PYTEST, '-m', LEFT_OUT, *PARALLEL]

def run(what):
    "The exit status of the first step that fails, or 0."
    steps = dict(quick=quick, rest=rest).get(what) or (lambda: [*quick(), *rest()])
    # a thread that waits in a loop for another one takes the core which that one needs: two processes of two threads on two cores
    # were three times slower so
    with tempfile.TemporaryDirectory(prefix='pictures-') as kept: # decoded pictures of tests do not stay in the user's cache
        environment = {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive', 'MALARIA_CACHE': kept, **os.environ, 'MALARIA_DATA': 'sample'}
        environment.pop('PYTHONDONTWRITEBYTECODE', None) # hundreds of processes import the library: one compiles it
        for command in steps():
            status = subprocess.run(command, cwd=ROOT, env=environment).returncode
            if status: return status
    return 0

if __name__=='__main__':
    what = sys.argv[1] if len(sys.argv)==2 else ''
    if what not in ('quick', 'rest', 'all'): sys.exit(__doc__)
    start = time.monotonic()
    status = run(what)
    print(f'{"passed" if status==0 else "FAILED"}: {what}, in {time.monotonic()-start:.0f} seconds', flush=True)
    sys.exit(status)
