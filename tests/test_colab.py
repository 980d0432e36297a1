"""Every tutorial, from its first cell to its last, as Colab runs it: a fresh environment that has PyTorch and fastai but not this package, a
`google.colab` module, an empty `content` folder with nothing but the notebook, and the repository's address, which leads to this checkout.
Nothing but the expected may be printed. Python 3.13, a T4 and a Drive cannot be imitated; what depends on them is asked of `start_notebook`.

The minutes in results/colab_run.csv are written by

    UPDATE_RESULTS=1 python -m pytest tests/test_colab.py -k runs_in_colab"""
import json,os,platform,re,shutil,subprocess,sys,time,venv
from importlib.metadata import distribution, requires, version
from pathlib import Path
from zipfile import ZipFile
import nbformat
import pandas as pd
import pip
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from fresh_environment import PUBLISHED, FreshEnvironment
from set_address import readdress
from test_repo import NOISE, ROOT, code_cells, settings

TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('[0-9]*.ipynb'))
RESULTS = ROOT/'results/colab_run.csv'

# What Colab's images ship, of what an install could touch: the pinned one of January 2026 and the one of June, from the lists that Colab publishes
# (googlecolab/backend-info, pip-freeze.gpu.txt); the newest as far as it is known.
IMAGES = pd.read_csv(Path(__file__).parent/'colab_images.csv', index_col='package', dtype=str)
COLAB = IMAGES['2026.08'].dropna().to_dict()
INSTALLS = ROOT/'results/colab_install.csv'

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
        "Run every cell of a copy of `notebook`, which is in the folder, as if somebody had published it; returns it with its outputs."
        nb = nbformat.reads(readdress(json.dumps(notebook), PUBLISHED), as_version=4)
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

# lesson 1 is in `make test`, the others in `make test-all`
LESSONS = [pytest.param(path, id=path.stem, marks=[] if path==TUTORIALS[0] else pytest.mark.slow) for path in TUTORIALS]

@pytest.mark.timeout(1200)
@pytest.mark.parametrize('path', LESSONS)
def test_tutorial_runs_in_colab(path, colab):
    colab.forget()
    assert not colab.has_package(), 'the package is there before the first cell installs it'
    stored,start = read(path),clocks()
    ran = colab.play(stored)
    wall,cpu = ((now-then)/60 for now,then in zip(clocks(), start))
    if found := [*surprises(ran, stored)]: pytest.fail('\n'.join(found), pytrace=False)
    assert colab.has_package()
    if os.environ.get('UPDATE_RESULTS'): write_row(path, wall, cpu)

@pytest.mark.parametrize('path', TUTORIALS, ids=lambda o: o.stem)
def test_first_cell_stops_with_one_sentence_while_nobody_has_published(path, monkeypatch):
    "And runs on as soon as the address names somebody: then the sentence is gone, and pip is asked for that address."
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell()
    asked = []
    monkeypatch.setattr(shell, 'system', asked.append)
    monkeypatch.setitem(sys.modules, 'malaria_fastai.all', None) # an import of it fails
    cell = code_cells(read(path))[0][1]
    stopped = shell.run_cell(cell).error_in_exec
    assert isinstance(stopped, SystemExit) and re.fullmatch(r'Not published yet: .*GitHub name for OWNER', stopped.code) and not asked
    assert isinstance(shell.run_cell(readdress(cell, 'somebody')).error_in_exec, ModuleNotFoundError)
    assert len(asked)==1 and re.search(r' @ git\+https://github\.com/somebody/malaria_fastai"', asked[0])

def clocks(): return time.time(),sum(os.times()[2:4]) # seconds, and seconds of processor time of kernels that ended

def write_row(path, wall, cpu):
    "Add a tutorial to the table, or replace it."
    row = dict(tutorial=path.stem, minutes=round(wall, 1), processor_minutes=round(cpu, 1), kilobytes=round(path.stat().st_size/1000), cells=len(code_cells(read(path))), data='sample',
               machine=f'{os.cpu_count()} cores {platform.machine()}', threads=os.environ.get('OMP_NUM_THREADS', ''), load=round(os.getloadavg()[0], 1),
               python=platform.python_version(), torch=version('torch'), fastai=version('fastai'))
    rows = pd.read_csv(RESULTS).to_dict('records') if RESULTS.exists() else []
    rows = sorted([r for r in rows if r['tutorial']!=path.stem] + [row], key=lambda r: r['tutorial'])
    pd.DataFrame(rows).to_csv(RESULTS, index=False, lineterminator='\n')

# ---- each check finds what it is there for

BAD = { # cell: what is said of it; None is fine
    'import warnings\nwarnings.warn("oh")': 'complains: ',
    'print(" 50%|#####     | 5/10 [00:01<00:01,  4.9it/s]")': 'leaves noise: ',
    'print("left over")': 'prints: left over',
    '1/0': 'stops: ZeroDivisionError',
    'open("../../results/compare.csv")': 'stops: FileNotFoundError',
    'import socket\nsocket.create_connection(("192.0.2.1", 80), timeout=5)': 'stops: OSError: a short test connects',
    'import malaria_fastai': 'stops: ModuleNotFoundError',
    '"shown"': 'shows what its stored page does not',
    'from PIL import Image\ndisplay(Image.new("L", (2, 2)))': 'shows 1 pictures',
    'import sys\n_ = sys.stderr.write("a bar 10%\\r         \\r")': None,
    'print("epoch 3 took 0.51 s")': None,
    'import sys\nassert "google.colab" in sys.modules': None}

def test_finds_what_is_wrong_in_a_run(colab):
    colab.forget()
    stored = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in BAD])
    stored.cells[-2].outputs = [nbformat.v4.new_output('stream', name='stdout', text='epoch 1 took 7 s\n')]
    found = [*surprises(colab.play(stored), stored)]
    for i,said in enumerate(BAD.values()):
        mine = [o for o in found if o.startswith(f'cell {i} ')]
        assert any(o.startswith(f'cell {i} {said}') for o in mine) if said else mine==[], (i, said, mine)

def test_sees_a_package_that_is_there_too_early(colab):
    colab.forget()
    assert not colab.has_package()
    (colab.site/'malaria_fastai').mkdir()
    (colab.site/'malaria_fastai/__init__.py').write_text('')
    assert colab.has_package()

def test_nothing_that_colab_has_is_installed_anew(colab):
    "pip has no registry here: it would fail if it wanted another fastai, and does, where settings.ini asks for one."
    colab.forget()
    tree = colab.content.parent/'repository'
    install = [colab.python, '-m', 'pip', 'install', '-q', '--target', colab.content/'wanted', f'malaria_fastai @ git+{settings(ROOT)["git_url"]}']
    before = (tree/'settings.ini').read_text()
    def commit(text):
        (tree/'settings.ini').write_text(text)
        colab.run('git', '-c', 'user.name=test', '-c', 'user.email=test@localhost', 'commit', '-qam', 'changed', '--allow-empty', cwd=tree)
    try:
        commit(before.replace('fastai>=2.8.8,<2.9', 'fastai>=99'))
        said = colab.run(*install)
    finally: commit(before)
    assert said.returncode and 'fastai>=99' in said.stderr, said.stderr

def unmet(requirements, versions):
    "The requirements that these versions do not satisfy."
    return [o for o in requirements.split() if (r := Requirement(o)).name in versions and versions[r.name] not in r.specifier]

def test_colab_satisfies_the_requirements():
    s = settings(ROOT)
    assert unmet(s['requirements'], COLAB)==[]
    assert f'python>={s["min_python"]}' not in unmet(f'python>={s["min_python"]}', COLAB)
    assert unmet('torch>=2.12 fastai>=2.8.8,<2.9 missing>=99', COLAB)==['torch>=2.12']

# ---- what pip's resolver answers in three of Colab's images

def wheel(folder, name, version, requires=(), extras=()):
    "A wheel that has nothing in it but its name, its version and what it requires."
    info = f'{name.replace("-", "_")}-{version}.dist-info'
    texts = dict(METADATA='\n'.join(['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}', *(f'Provides-Extra: {o}' for o in extras), *(f'Requires-Dist: {o}' for o in requires)])+'\n',
                 WHEEL='Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n', RECORD='')
    with ZipFile(folder/f'{info[:-10]}-py3-none-any.whl', 'w') as archive:
        for file,text in texts.items(): archive.writestr(f'{info}/{file}', text)

class Image:
    "An environment in which nothing but pip says that it is installed, and the packages of one of Colab's images."
    def __init__(self, folder, packages):
        venv.create(folder/'python', with_pip=False)
        self.python,self.packages = folder/'python/bin/python',packages
        site = next((folder/'python').glob('lib/*/site-packages'))
        for found in (Path(pip.__file__).parent, distribution('pip')._path): (site/found.name).symlink_to(found)
        for name,number in packages.items():
            info = site/f'{name.replace("-", "_")}-{number}.dist-info'
            info.mkdir()
            (info/'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n')

    def answer(self, registry, extra=''):
        "What pip would install for this project, name -> version, where the wheels of `registry` can be had."
        env = {k: v for k,v in os.environ.items() if not k.startswith('PIP_')} | dict(PIP_CONFIG_FILE=os.devnull)
        done = subprocess.run([self.python, '-m', 'pip', 'install', '--dry-run', '--quiet', '--no-index', '--find-links', registry, '--report', '-', f'malaria_fastai{extra}'],
                              env=env, capture_output=True, text=True)
        assert done.returncode==0, done.stderr
        new = {canonicalize_name(o['metadata']['name']): o['metadata']['version'] for o in json.loads(done.stdout)['install']}
        return {name: number for name,number in new.items() if name!='malaria-fastai'}

def closure(requirements):
    "Requirements and what those need, of what is installed here: name -> what it requires."
    found,todo = {},[*map(Requirement, requirements)]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in found or wanted.marker and not wanted.marker.evaluate(dict(extra='')): continue
        found[name] = [o for o in requires(name) or [] if 'extra ==' not in o]
        todo += map(Requirement, found[name])
    return found

def registry(folder, requirements, extras):
    "Wheels without anything in them: this project, as settings.ini describes it, and everything that it needs, as new as here."
    folder.mkdir()
    both = [*requirements, *(f'{o};extra=="{name}"' for name,wanted in extras.items() for o in wanted)]
    wheel(folder, 'malaria_fastai', settings(ROOT)['version'], both, extras)
    for name,wanted in closure([*requirements, *sum(extras.values(), [])]).items(): wheel(folder, name, version(name), wanted)
    return folder

EXTRAS = 'audit','distributed','onnx' # of lessons 4, 9 and 8
def asked(): return settings(ROOT)['requirements'].split(),{name: settings(ROOT)[f'{name}_requirements'].split() for name in EXTRAS}

def installs(folder):
    "A row for each image and each line that a lesson installs: what of Colab's own pip would change."
    wheels,rows = registry(folder/'registry', *asked()),[]
    for name in IMAGES:
        packages = IMAGES[name].dropna()
        image = Image(folder/name, packages.drop('python'))
        for extra in ('', *EXTRAS):
            new = image.answer(wheels, extra and f'[{extra}]')
            changed = [f'{o} {packages[o]} to {number}' for o,number in sorted(new.items()) if o in packages]
            rows.append(dict(image=name, python=packages['python'], torch=packages['torch'], fastai=packages['fastai'], extra=extra, changes=', '.join(changed)))
    return pd.DataFrame(rows)

@pytest.mark.slow
def test_what_pip_would_change_in_an_image_of_colab(tmp_path):
    "In the newest image nothing; what it would in older ones is written down."
    found = installs(tmp_path)
    if os.environ.get('UPDATE_RESULTS'): found.to_csv(INSTALLS, index=False, lineterminator='\n')
    stored = pd.read_csv(INSTALLS, dtype=str, keep_default_na=False)
    without_versions = lambda table: table.assign(changes=table.changes.str.replace(r' to [\w.]+', '', regex=True))
    pd.testing.assert_frame_equal(without_versions(found), without_versions(stored))
    newest = found[found.image=='2026.08']
    assert len(newest)==4 and not newest.changes.any()

@pytest.mark.slow
def test_the_resolver_finds_a_bound_that_replaces_what_colab_has(tmp_path):
    requirements,extras = asked()
    wheels = registry(tmp_path/'registry', ['fastai>2.8.8' if o.startswith('fastai') else o for o in requirements], extras)
    packages = IMAGES['2026.08'].dropna().drop('python')
    assert 'fastai' in Image(tmp_path/'image', packages).answer(wheels)

# ---- the head and the tail of each tutorial

def first_cell(url): return re.compile(r'try:(?: from malaria_fastai\.all import \*|\n    from malaria_fastai\.all import \*\n    import \w+)\nexcept ModuleNotFoundError:\n'
    rf"    address = '{re.escape(url)}'\n    if '/OWNER/' in address: raise SystemExit\(\n        '[^'\n]+'\)\n"
    r'    %pip install -q "malaria_fastai(?:\[\w+\])? @ git\+{address}"\n    from malaria_fastai\.all import \*(?:\n\n[\w,*]+ = (start_notebook\([^)]*\)))?')

OWN_WORDS = {'09_train_on_several_gpus': 'torch.cuda.get_device_name'} # it chooses nothing by its accelerator, so its second cell says which there is

def head_faults(name, nb, after):
    "What is missing at the beginning and the end of the tutorial `name`, which the tutorial `after` follows ('' if none does)."
    texts = [''.join(c['source']) for c in nb['cells'] if c['cell_type']=='markdown']
    opening,everything = '\n\n'.join(texts).split('\n## ')[0],'\n\n'.join(texts)
    if (nb['metadata'].get('accelerator'), nb['metadata'].get('colab'))!=('GPU', {'gpuType': 'T4'}): yield 'no T4 in the metadata'
    url = settings(ROOT)['git_url']
    badge = url.replace('https://github.com', 'https://colab.research.google.com/github') + f'/blob/main/nbs/tutorials/{name}.ipynb'
    if f'](https://colab.research.google.com/assets/colab-badge.svg)]({badge})' not in opening: yield 'no badge that opens it'
    codes = [s for _,s in code_cells(nb)]
    head = first_cell(url).fullmatch(codes[0].rstrip())
    if not head: yield 'the first code cell is not the one that installs what is missing'
    elif (OWN_WORDS[name] not in codes[1] if name in OWN_WORDS else not head[1]): yield 'it does not say which accelerator it found'
    elif any(re.search(r'\bruns/', s) for s in codes) and f"start_notebook('{name}'" not in (head[1] or ''): yield 'it does not say where its runs go'
    if any('pip install' in s for s in codes[1:]): yield 'a later cell installs something'
    for words in ('What you will learn', 'The data', 'The time'):
        if not re.search(rf'^\*\*{words}[.]\*\*', opening, re.M): yield f'the opening has no "{words}."'
    time_said = (re.findall(r'(?s)\*\*The time[.]\*\*.*?(?=\n\n|\Z)', opening) or [''])[0]
    for word in ('T4', 'estimated', 'CPU', 'measured'):
        if word not in time_said: yield f'The time: does not say {word}'
    if 'not for diagnosis' not in opening: yield 'the opening does not say: not for diagnosis'
    for words in ('## What we found', '### Exercises'):
        if f'\n{words}\n' not in everything: yield f'no section {words}'
    if not re.search(rf'\*\*Next:\*\* .*\]\({after}[\w./-]*\)[^\n]*\Z', everything.strip()): yield 'it does not end with the next page'

AFTER = {o.stem: n.name if n else '' for o,n in zip(TUTORIALS, [*TUTORIALS[1:], None])}

@pytest.mark.parametrize('path', TUTORIALS, ids=lambda o: o.stem)
def test_tutorial_begins_and_ends_as_it_should(path): assert [*head_faults(path.stem, read(path), AFTER[path.stem])]==[]

def replaced(old, new):
    def change(nb):
        text = json.dumps(nb)
        assert old in text, old
        return json.loads(text.replace(old, new))
    return change

HEAD_FAULTS = [('no T4', replaced('"T4"', '"A100"')), ('no T4', replaced('"accelerator"', '"x"')), ('no badge', replaced('01_malaria_with_fastai.ipynb)', '02.ipynb)')),
    ('the first code cell', replaced('ModuleNotFoundError', 'Exception')), ('the first code cell', replaced("address = 'https", "address = 'git+https")),
    ('it does not say where', replaced("start_notebook('01_malaria_with_fastai')", 'start_notebook()')), ('a later cell', replaced('test_eq(', '!pip install x\\ntest_eq(')),
    ('it does not say which', replaced("source,full,runs = start_notebook('01_malaria_with_fastai')", '')), ('the opening has no "What', replaced('**What you will learn.**', '')), ('the opening has no "The data', replaced('**The data.**', '')),
    ('The time: does not say estimated', replaced('estimated', 'about')), ('the opening does not say', replaced('not for diagnosis', 'for you')),
    ('no section ## What', replaced('## What we found', '## Found')), ('no section ### Ex', replaced('### Exercises', '### More')),
    ('it does not end', replaced('**Next:**', 'Then'))]

@pytest.mark.parametrize('said,change', HEAD_FAULTS)
def test_finds_a_fault_of_a_head(said, change):
    path = TUTORIALS[0]
    found = [*head_faults(path.stem, change(read(path)), AFTER[path.stem])]
    assert any(o.startswith(said) for o in found), found

@pytest.mark.parametrize('name', OWN_WORDS)
def test_a_lesson_that_chooses_nothing_says_its_accelerator_too(name):
    path = ROOT/f'nbs/tutorials/{name}.ipynb'
    nb = read(path)
    nb['cells'] = [c for c in nb['cells'] if OWN_WORDS[name] not in ''.join(c['source'])]
    assert [*head_faults(name, nb, AFTER[name])]==['it does not say which accelerator it found']

# ---- what start_notebook chooses

CHOICES = [ # Colab, GPU, MALARIA_DATA -> data set, settings of a GPU
    (False, False, None, 'sample', False), (False, True, None, 'sample', False), (False, True, 'nih', 'nih', True), (False, False, 'nih', 'nih', False),
    (True, True, None, 'nih', True), (True, False, None, 'sample', False), (True, False, 'nih', 'nih', False), (True, True, 'sample', 'sample', False),
    (True, True, 'my/cells.zip', 'my/cells.zip', True)]

@pytest.fixture
def place(monkeypatch, tmp_path):
    "A function that makes this process look like Colab, or not, with a GPU, or without."
    import torch
    def make(colab, gpu, said=None):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Tesla T4')
        if colab: monkeypatch.setitem(sys.modules, 'google.colab', object())
        if said: monkeypatch.setenv('MALARIA_DATA', said)
        else: monkeypatch.delenv('MALARIA_DATA', raising=False)
    return make

@pytest.mark.parametrize('colab,gpu,said,source,full', CHOICES)
def test_settings_follow_from_one_variable_and_the_accelerator(place, capsys, colab, gpu, said, source, full):
    from malaria_fastai.run import start_notebook
    place(colab, gpu, said)
    assert start_notebook()==(source, full, None)
    printed = capsys.readouterr().out
    assert f'Data: {source}' in printed and ('full' if full else 'small') in printed and ('Tesla T4' if gpu else 'none') in printed
    assert ('drawn by code' in printed)==(source=='sample') and ('For a T4: Runtime' in printed)==(colab and not gpu)

def test_colab_is_told_how_to_keep_runs(place, capsys, monkeypatch, tmp_path):
    from malaria_fastai import run as study
    place(True, True)
    folder = study.start_notebook('02_x')[2]
    said = capsys.readouterr().out
    assert folder==tmp_path/'runs/02_x' and "drive.mount('/content/drive')" in said and "runs='/content/drive/MyDrive/runs'" in said
    with pytest.raises(FileNotFoundError, match='your Drive is not there yet'): study.start_notebook('02_x', runs='/content/drive/MyDrive/runs')
    monkeypatch.setattr(study, '_DRIVE', str(tmp_path/'drive'))
    (tmp_path/'drive/MyDrive').mkdir(parents=True)
    capsys.readouterr()
    kept = study.start_notebook('02_x', runs=tmp_path/'drive/MyDrive/runs')[2]
    assert kept==tmp_path/'drive/MyDrive/runs/02_x' and kept.is_dir() and 'lost' not in capsys.readouterr().out

def test_a_fresh_folder_never_deletes(place, capsys):
    from malaria_fastai.run import start_notebook
    place(False, False)
    names = []
    for _ in range(3):
        folder = start_notebook('08_x', fresh=True)[2]
        (folder/'model').write_text('')
        names.append(folder.name)
    assert names==['08_x', '08_x-2', '08_x-3'] and start_notebook('08_x')[2].name=='08_x'
    assert all((folder.parent/o/'model').exists() for o in names)
