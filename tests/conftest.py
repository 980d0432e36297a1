"What the tests share: quiet libraries, no network, the drawn sample, and the real cells where there are any."
import os
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('OMP_NUM_THREADS', str(min(2, os.cpu_count() or 1)))

import tempfile
_kept = tempfile.TemporaryDirectory(prefix='pictures-') # of this process; nothing of a test stays in the user's cache
os.environ.setdefault('MALARIA_CACHE', _kept.name)

import shutil
import socket
import sys
from pathlib import Path
import pytest
from filelock import FileLock # torch brings it

LONGEST = 'test_repo', 'test_colab', 'test_site', 'test_export', 'test_resume'

def pytest_collection_modifyitems(items):
    """What uses the real cells is marked `real`; what is marked `real` is skipped, with the reason, where there are none. What
    looks at the built site is slow: the site takes minutes to build. The longest files begin first: one that begins last keeps everybody
    waiting (`--no-loadscope-reorder`, or xdist begins with those that have the most tests)."""
    items.sort(key=lambda o: o.path.stem not in LONGEST)
    there = os.environ.get('MALARIA_NIH_ZIP')
    for o in items:
        if 'nih_root' in getattr(o, 'fixturenames', ()): o.add_marker('real')
        if 'site' in getattr(o, 'fixturenames', ()): o.add_marker('slow')
        if o.get_closest_marker('real') and not there: o.add_marker(pytest.mark.skip(reason='MALARIA_NIH_ZIP names no archive'))

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file stays in one process, for its fixtures; but test_colab.py would keep it busy for ten minutes alone, so each lesson that
    `make test` leaves out goes to the process that is free."""
    from xdist.scheduler import LoadFileScheduling
    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if '::test_tutorial_runs_in_colab[' in nodeid and '[01_' not in nodeid else super()._split_scope(nodeid)
    return Scheduling(config, log)

def pytest_terminal_summary(terminalreporter):
    "What a test leaves with `record_property('shown', line)` is printed at the end, also where it passes."
    runs = [o for some in terminalreporter.stats.values() for o in some if getattr(o, 'when', '')=='call']
    said = [v for o in runs for k,v in o.user_properties if k=='shown']
    if said: terminalreporter.section('measured')
    for o in said: terminalreporter.write_line(o)

@pytest.fixture(scope='session', autouse=True)
def offline():
    "Only this machine answers: a test that reaches for the network fails, on every machine alike."
    connect = socket.socket.connect
    def refuse(self, address):
        if self.family!=socket.AF_UNIX and str(address[0]) not in ('127.0.0.1', '::1', 'localhost'):
            raise OSError(f'tests are offline, and this one connects to {address}')
        return connect(self, address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, 'connect', refuse)
        yield

@pytest.fixture(autouse=True)
def figures_closed():
    "Our plots leave their figures open, as pyplot does: each test begins without any."
    yield
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')

@pytest.fixture(scope='session')
def made_once(tmp_path_factory):
    "`made_once(name, make)` is a folder that `make(folder)` has filled, once for all processes of a run. Do not write into it."
    top = tmp_path_factory.getbasetemp()
    if os.environ.get('PYTEST_XDIST_WORKER'): top = top.parent
    def folder(name, make):
        done,part = top/name,top/f'{name}.part'
        with FileLock(top/f'{name}.lock'):
            if not done.exists():
                shutil.rmtree(part, ignore_errors=True) # of a test that failed while it made it
                make(part)
                part.rename(done)
        return done
    return folder

@pytest.fixture(scope='session')
def sample_root(made_once):
    "The folder of the drawn sample. Do not write into it."
    from malaria_fastai.sample import draw_sample
    return made_once('sample', draw_sample)

@pytest.fixture(scope='session')
def nih_root(made_once):
    "The folder of the real cells, extracted once. Do not write into it."
    from malaria_fastai.cells import locate
    archive = Path(os.environ['MALARIA_NIH_ZIP'])
    return locate(archive, folder=made_once('nih', lambda folder: locate(archive, folder=folder))) # which finds what is there
