"""Every tutorial, from its first cell to its last, as Colab runs it: a fresh environment that has PyTorch and fastai but not this package, a
`google.colab` module, an empty `content` folder with nothing but the notebook, and the repository's address, which leads to this checkout.
Nothing but the expected may be printed. Python 3.13, a T4 and a Drive cannot be imitated; what depends on them is asked of `start_notebook`.

The minutes in results/colab_run.csv are written by

    UPDATE_RESULTS=1 python -m pytest tests/test_colab.py -k runs_in_colab"""
import json,os,platform,re,shutil,sys,time
from importlib.metadata import version
import nbformat
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from fresh_environment import FreshEnvironment
from test_repo import NOISE, ROOT, code_cells, settings

TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))
RESULTS = ROOT/'results/colab_run.csv'

# Colab's own, of those that settings.ini asks for, in August 2026; what it does not have pip fetches
COLAB = dict(python='3.13.15', torch='2.11.0', torchvision='0.26.0', fastai='2.8.8', timm='1.0.28', numpy='2.1.3', pandas='2.2.3',
             matplotlib='3.10.0', pillow='11.3.0', **{'scikit-learn': '1.6.1'})

# ---- the imitation

STARTUP = """
import google.colab, socket
def _only_here(self, address, connect=socket.socket.connect):
    if self.family != socket.AF_UNIX and str(address[0]) not in ('127.0.0.1', '::1', 'localhost'): raise OSError(f'a short test connects to {address}')
    return connect(self, address)
socket.socket.connect = _only_here
del socket, google
"""

class Colab(FreshEnvironment):
    "A fresh environment with a kernel, Colab's module and its folder."
    def __init__(self, folder, tree):
        super().__init__(folder, tree)
        (self.site/'google/colab').mkdir(parents=True)
        (self.site/'google/colab/__init__.py').write_text('')
        (self.site/'google/colab/drive.py').write_text('def mount(path): print(f"Mounted at {path}")\n')
        startup = folder/'ipython/profile_default/startup'
        startup.mkdir(parents=True)
        (startup/'colab.py').write_text(STARTUP)
        spec = folder/'kernels/colab'
        spec.mkdir(parents=True)
        start = [str(self.python), '-m', 'ipykernel_launcher', '-f', '{connection_file}']
        (spec/'kernel.json').write_text(json.dumps(dict(argv=start, display_name='Colab', language='python')))
        self.specs = KernelSpecManager(kernel_dirs=[str(spec.parent)])
        self.content = folder/'content'
        self.env |= dict(IPYTHONDIR=str(folder/'ipython'), MALARIA_DATA='sample')

    def forget(self):
        "A new machine: nothing installed, nothing in the folder."
        for o in self.site.glob('malaria_fastai*'): shutil.rmtree(o)
        shutil.rmtree(self.content, ignore_errors=True)
        self.content.mkdir()

    def has_package(self): return not self.run(self.python, '-c', 'import malaria_fastai', cwd=self.content).returncode

    def play(self, notebook):
        "Run every cell of a copy of `notebook`, which is in the folder; returns it with its outputs."
        nb = nbformat.reads(json.dumps(notebook), as_version=4)
        for c in nb.cells:
            if c.cell_type=='code': c.outputs = []
        nbformat.write(nb, self.content/'tutorial.ipynb')
        manager = AsyncKernelManager(kernel_name='colab', kernel_spec_manager=self.specs)
        client = NotebookClient(nb, km=manager, timeout=600, allow_errors=True, resources=dict(metadata=dict(path=str(self.content))))
        client.execute(env=self.env, cleanup_kc=True)
        return nb

@pytest.fixture(scope='module')
def colab(tmp_path_factory): return Colab(tmp_path_factory.mktemp('colab'), ROOT)

# ---- what may be printed

EXPECTED = [r'Note: you may need to restart the kernel to use updated packages\.', # IPython's, after every %pip
            r'Accelerator: none\. For a T4: Runtime, Change runtime type, T4 GPU, Run all',
            r'Runs: runs/\w+, lost when Colab disconnects\. To keep them on your Drive: .*']

def skeleton(line):
    "A line without its numbers, hashes and spaces."
    return ' '.join(re.sub(r'\b[0-9a-f]{8,}\b|\d+(?:[.,:]\d+)*', '#', line).split())

def rendered(text):
    "What a reader sees of a text: a line that is written over, as progress bars are, is gone."
    return re.sub(r'[^\n]*\r(?!\n)', '', text)

def text_of(output): return ''.join(''.join(o) for o in [output.get('text', ''), *(v for k,v in output.get('data', {}).items() if k=='text/html')])

def visible(output):
    "Whether a reader sees anything of it."
    data = output.get('data', {})
    html = re.sub(r'(?s)<style>.*?</style>|<[^>]+>', '', ''.join(data.get('text/html', '')))
    return bool(output.get('text') or html.strip() or 'text/html' not in data and data)

def pictures(cell): return sum(any(k.startswith('image/') for k in o.get('data', {})) for o in cell.get('outputs', []))

def joined(outputs):
    "Outputs, with the streams of each name in one piece, as a page shows them."
    streams = {name: ''.join(o.text for o in outputs if o.get('name')==name) for name in ('stdout', 'stderr')}
    made = [nbformat.v4.new_output('stream', name=k, text=rendered(v)) for k,v in streams.items()]
    return [o for o in made if o.text.strip()] + [o for o in outputs if o.output_type=='error' or o.output_type!='stream' and visible(o)]

def surprises(ran, stored):
    "What the cells of a run showed, beyond what the stored notebook shows."
    known = {skeleton(l) for c in stored['cells'] for o in c.get('outputs', []) if o.get('name')=='stdout' for l in text_of(o).splitlines()}
    for i,(new,old) in enumerate(zip(ran['cells'], stored['cells'])):
        shown = joined(new.get('outputs', []))
        for o in shown:
            text = text_of(o)
            if o.output_type=='error': yield f'cell {i} stops: {o.ename}: {o.evalue}'
            elif o.get('name')=='stderr': yield f'cell {i} complains: {text.strip()}'
            elif NOISE.search(text): yield f'cell {i} leaves noise: {text.strip()[:200]}'
            elif o.output_type=='stream':
                for l in text.splitlines():
                    if l.strip() and skeleton(l) not in known and not any(re.fullmatch(e, l) for e in EXPECTED): yield f'cell {i} prints: {l}'
        if pictures(new)>pictures(old): yield f'cell {i} shows {pictures(new)} pictures, its stored page {pictures(old)}'
        if any(o.output_type!='stream' for o in shown) and not old.get('outputs'): yield f'cell {i} shows what its stored page does not'

def read(path): return json.loads(path.read_text(encoding='utf-8'))

@pytest.mark.timeout(1200)
@pytest.mark.parametrize('path', TUTORIALS, ids=lambda o: o.stem)
def test_tutorial_runs_in_colab(path, colab):
    colab.forget()
    assert not colab.has_package(), 'the package is there before the first cell installs it'
    stored,start = read(path),clocks()
    ran = colab.play(stored)
    wall,cpu = ((now-then)/60 for now,then in zip(clocks(), start))
    if found := [*surprises(ran, stored)]: pytest.fail('\n'.join(found), pytrace=False)
    assert colab.has_package()
    if os.environ.get('UPDATE_RESULTS'): write_row(path, wall, cpu)

def clocks(): return time.time(),sum(os.times()[2:4]) # seconds, and seconds of processor time of kernels that ended

def write_row(path, wall, cpu):
    "Add a tutorial to the table, or replace it."
    row = dict(tutorial=path.stem, minutes=round(wall, 1), processor_minutes=round(cpu, 1), kilobytes=round(path.stat().st_size/1000), cells=len(code_cells(read(path))), data='sample',
               machine=f'{os.cpu_count()} cores {platform.machine()}', threads=os.environ.get('OMP_NUM_THREADS', ''), load=round(os.getloadavg()[0], 1),
               python=platform.python_version(), torch=version('torch'), fastai=version('fastai'))
    rows = pd.read_csv(RESULTS).to_dict('records') if RESULTS.exists() else []
    rows = sorted([r for r in rows if r['tutorial']!=path.stem] + [row], key=lambda r: r['tutorial'])
    pd.DataFrame(rows).to_csv(RESULTS, index=False, lineterminator='\n')
