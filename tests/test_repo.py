"""Rules of the repository that no single notebook can check.

A rule is a function: the folder of a repository -> complaints, each beginning with the file's name. `RULES`, below, is the table:
every rule beside the faults it must find. A rule has to be silent on this repository and on a small healthy one, and to name the
file in which a fault was planted."""
import ast,filecmp,json,os,re,shutil,subprocess,sys,tarfile,zipfile
from configparser import ConfigParser
from pathlib import Path
from tempfile import TemporaryDirectory
import draw_house
import house
import planted_faults
import pandas as pd
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from make_readme import readme
from set_address import files,owner,owners,readdress,text_files
try: import tomllib
except ImportError: import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PKG = 'malaria_fastai'

# Modules in the order of their notebooks' numbers, and what each may import of the others.
MAY_IMPORT = dict(
    files      = '',
    source     = 'files',
    sample     = 'files source',
    cells      = 'files source sample',
    split      = 'files source sample cells',
    transforms = 'files source sample cells v1',
    data       = 'files source sample cells split transforms v1',
    datablock  = 'files source sample cells split transforms data v1',
    backbone   = 'files source sample transforms v1',
    learner    = 'files source sample cells split transforms data datablock backbone v1',
    resume     = 'files source sample cells split transforms data backbone learner v1',
    interpret  = 'files source sample cells split transforms data backbone learner v1',
    evaluate   = 'files source sample cells',
    report     = 'files source sample cells evaluate',
    recipes    = 'files',
    run        = 'files source sample cells split transforms data backbone learner resume interpret evaluate report recipes',
    predict    = 'files source sample cells backbone learner evaluate recipes',
    export     = 'files source sample cells split transforms data backbone learner evaluate recipes predict',
    cli        = 'files source sample cells split interpret evaluate report recipes run predict export extra',
    all        = 'files source sample cells split transforms data datablock backbone learner resume interpret evaluate report recipes '
                 'run predict export cli v1',
    v1         = '')
EXTRA = set(MAY_IMPORT) - {'cli', 'all'} | {'extra'} # what only some need: it may import the rooms above, never the other way
# What tools/house.py measures: the smaller, the better. A bound may only fall.
BOUNDS = dict(
    nodes                  = 49_453,  # syntax nodes: expressions and statements
    core_nodes             = 42_399,  # the same, without the folder `extra`
    over_120               = 0,     # lines of more than 120 characters
    mean_code_line         = 56.5,    # characters
    nodes_per_line         = 6.5,
    public_names           = 184,     # without the words of fastai 1
    star_names             = 102,     # those of them that `malaria_fastai.all` brings
    private_in_two_modules = 0,
    public_with_two_owners = 0,
    exceptions             = 19,      # classes
    helpers_called_once    = 127,
    undocumented_helpers   = 0,     # of more than three lines
    definitions_per_cell   = 1.1,    # of the notebook cells that export any
    largest_cell           = 55,     # lines of an exported cell without a class
    lesson_lines_over_88   = 0,
    terms_missing          = 0)       # words of the field that nobody would find
LIGHT = 'v1 files source sample cells split evaluate report recipes predict cli'.split() # these import neither torch nor fastai

# ---- reading a repository

def modules(tree):
    "Name and path of every module that is exported from a notebook."
    paths = [o for o in sorted((tree/PKG).rglob('*.py')) if not o.stem.startswith('_')]
    return {'.'.join(o.relative_to(tree/PKG).with_suffix('').parts): o for o in paths}

def notebooks(tree):
    "Path, as text, and content of every notebook."
    paths = [o for o in sorted((tree/'nbs').rglob('*.ipynb')) if not any(p[0] in '._' for p in o.relative_to(tree).parts)]
    return {o.relative_to(tree).as_posix(): json.loads(o.read_text(encoding='utf-8')) for o in paths}

def code_cells(nb): return [(i, ''.join(c['source'])) for i,c in enumerate(nb['cells']) if c['cell_type']=='code']
def outputs(nb): return [(i, o) for i,c in enumerate(nb['cells']) for o in c.get('outputs', [])]
def directive(source, names): return re.search(rf'^#\|\s*({names})\b', source, re.M)

def plain(source):
    "A code cell as plain Python: magics become calls; None for a cell in another language."
    if re.match(r'%%(?!(time|timeit|capture)\b)', re.sub(r'^(#.*)?\n', '', source, flags=re.M)): return None
    return TransformerManager().transform_cell(source)

def settings(tree):
    cfg = ConfigParser(delimiters=['='])
    cfg.read_string((tree/'settings.ini').read_text(encoding='utf-8'))
    return cfg['DEFAULT']

def python(tree, code):
    "Run `code` where `tree`'s package is the one that is imported; returns the last line of its complaint, or ''."
    env = {k:v for k,v in os.environ.items() if k!='IN_TEST'} | {'PYTHONPATH': str(tree), 'PYTHONDONTWRITEBYTECODE': '1'}
    out = subprocess.run([sys.executable, '-c', code], cwd=tree, env=env, capture_output=True, text=True)
    return '' if not out.returncode else out.stderr.strip().splitlines()[-1]

def copy(tree, to):
    "Copy what git would commit."
    for path in files(tree):
        new = to/path.relative_to(tree)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, new)
    return to

# ---- the rules

def siblings(path):
    "The modules of this package that the file at `path` imports, at its top or inside a function."
    here = [PKG, 'extra'] if path.parent.name=='extra' else [PKG]
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(o, ast.ImportFrom):
            base = '.'.join(here[:len(here)+1-o.level]*bool(o.level) + [o.module or '']*bool(o.module))
            names = [f'{base}.{a.name}' for a in o.names] if base==PKG else [base]
        elif isinstance(o, ast.Import): names = [a.name for a in o.names]
        elif isinstance(o, ast.Call) and re.search(r'import', ast.unparse(o.func)):
            names = [a.value if a.value[0]!='.' else PKG+a.value for a in o.args if isinstance(a, ast.Constant) and a.value]
        else: continue
        yield from (n.split('.')[1] for n in names if n.startswith(f'{PKG}.'))

def imports_go_one_way(tree):
    for mod,path in modules(tree).items():
        name = path.relative_to(tree).as_posix()
        if mod not in MAY_IMPORT and not mod.startswith('extra.'): yield f'{name} is not in the table of modules'; continue
        allowed = EXTRA if mod.startswith('extra.') else {*MAY_IMPORT[mod].split()}
        for o in sorted({*siblings(path)} - allowed - {'_modidx'}): yield f'{name} imports {o}'

NO_TORCH = """
import importlib,sys
class Refuse:
    def find_spec(self, name, *args):
        if name.split('.')[0] in ('torch','fastai','torchvision','timm'): raise SystemError(f'imports {name}')
sys.meta_path.insert(0, Refuse())
"""

def light_modules_stay_light(tree):
    for mod in LIGHT:
        if mod in modules(tree) and (said := python(tree, f'{NO_TORCH}import {PKG}.{mod}')): yield f'{PKG}/{mod}.py: {said}'

UNTOUCHED = """
import sys
from types import ModuleType
import torch, fastai.vision.all, fastai.callback.all

def theirs(o): return str(getattr(getattr(o, 'fget', o), '__module__', None)).split('.')[0] in ('fastai','fastcore','torch')

def attributes():
    homes = {m for n,m in sys.modules.items() if n.split('.')[0] in ('fastai','fastcore') and isinstance(m, ModuleType)}
    homes |= {o for m in homes for o in vars(m).values() if isinstance(o, type) and theirs(o)}
    homes |= {torch.nn.Module, torch.Tensor, torch.optim.Optimizer}
    return {o: {k:v for k,v in vars(o).items() if k[:2]!='__' or callable(v)} for o in homes}

before = attributes()
import malaria_fastai.all
after = attributes()
found = [f'{o.__name__}.{k}' for o,old in before.items() for k in {*old, *after[o]} if after[o].get(k) is not old.get(k)
         and not isinstance(after[o].get(k), ModuleType) and not (k in after[o] and theirs(after[o][k]))]
if found: sys.exit('patches ' + ' '.join(sorted(found)))
"""

def fastai_is_left_alone(tree):
    if 'all' in modules(tree) and (said := python(tree, UNTOUCHED)): yield f'{PKG}/all.py {said}'

def notebooks_are_small(tree):
    for name in notebooks(tree):
        if (size := (tree/name).stat().st_size) > 300_000: yield f'{name} has {size/1000:.0f} KB, more than 300'

MACHINE = re.compile(r'(?<![\w.~-])/((home|Users|root|tmp|work|farm|var/folders)/\w|content/(?!drive)\w)|\b[A-Z]:\\{1,2}Users')

def no_path_of_a_machine(tree):
    for path,text in text_files(tree):
        if found := MACHINE.search(text): yield f'{path.relative_to(tree).as_posix()} names a place on one machine: {found[0]}…'

REGISTRY = re.compile(r'(?i)pypi[.]org|pythonhosted[.]org|npmjs[.](com|org)|deb[.]debian[.]org|download[.]pytorch[.]org/whl')

def no_registry_is_named(tree):
    for path,text in text_files(tree):
        if found := REGISTRY.search(text): yield f'{path.relative_to(tree).as_posix()} names a package registry: {found[0]}'

def changed(tree, names, make):
    "Of the files that `names` finds: those that `make`, run in a copy, changes, adds or removes."
    with TemporaryDirectory() as tmp:
        new = copy(tree, Path(tmp))
        if said := python(new, make): yield said
        for o in sorted({p.relative_to(t).as_posix() for t in (tree, new) for p in t.glob(names)}):
            if not (tree/o).exists() or not (new/o).exists() or not filecmp.cmp(tree/o, new/o, shallow=False): yield o

EXPORT = f"""
from pathlib import Path
from nbdev.doclinks import nbdev_export
for o in Path('{PKG}').rglob('*.py'): o.name=='__init__.py' or o.unlink()
nbdev_export.__wrapped__()
"""

def export_in_sync(tree):
    for o in changed(tree, f'{PKG}/**/*.py', EXPORT): yield f'{o} is not what nbdev-export writes from nbs'

def notebooks_are_clean(tree):
    for o in changed(tree, 'nbs/**/*.ipynb', 'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()'):
        yield f'{o} is not what nbdev-clean leaves'

def house_is_drawn(tree):
    path = tree/'nbs/images/house.svg'
    if path.exists() and path.read_text(encoding='utf-8')!=draw_house.drawing(tree): yield 'nbs/images/house.svg is not what tools/draw_house.py draws'

EXPORTING = ('nbs/api/', 'nbs/extra/')

def notebooks_are_numbered(tree):
    want = {f'nbs/api/{i:02}_{o}.ipynb': o for i,o in enumerate(MAY_IMPORT)}
    for name,nb in notebooks(tree).items():
        if not name.startswith(EXPORTING): continue
        exports = [m[1] for _,s in code_cells(nb) for m in re.finditer(r'^#\|\s*default_exp:?\s+(\S+)', s, re.M)]
        extra = re.fullmatch(r'nbs/(extra)/\d\d_(\w+)[.]ipynb', name)
        module = '.'.join(extra.groups()) if extra else want.get(name)
        if exports!=[module]: yield f'{name} exports {exports}: not the number and name of the table'

def tutorials_export_nothing(tree):
    for name,nb in notebooks(tree).items():
        exports = [i for i,s in code_cells(nb) if directive(s, 'export[si]?|default_exp')]
        if exports and not name.startswith(EXPORTING): yield f'{name} exports, in cells {exports}'

def imports_stand_alone(tree):
    for name,nb in notebooks(tree).items():
        for i,source in code_cells(nb):
            if directive(source, 'eval: *false') or 'nbdev_export()' in source or plain(source) is None: continue
            kinds = {isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(plain(source)).body}
            if len(kinds)==2: yield f'{name} mixes imports with other code in cell {i}: give them a cell of their own'

def parses_as_python_310(tree):
    cells = [(f'{name}, cell {i}', plain(s)) for name,nb in notebooks(tree).items() for i,s in code_cells(nb)]
    files = [(p.relative_to(tree).as_posix(), text) for p,text in text_files(tree) if p.suffix=='.py']
    for name,text in cells+files:
        try: text and ast.parse(text, feature_version=(3, 10))
        except SyntaxError as e: yield f'{name} is not Python 3.10: {e}'

NOISE = re.compile(r'\d%\|.*\|? *\d+/|\d(it/s|s/it)\b|<progress\b|progress \{|\r(?!\n)|\w+Warning: |Traceback \(most recent')

def outputs_are_tidy(tree):
    for name,nb in notebooks(tree).items():
        for i,o in outputs(nb):
            texts = [o.get('text', ''), *(v for k,v in o.get('data', {}).items() if k.startswith('text/'))]
            text = ''.join(''.join(t) for t in texts)
            if o['output_type']=='error' or o.get('name')=='stderr' or NOISE.search(text):
                yield f'{name} stores an error, a warning or a progress bar below cell {i}'

def cells_ran_in_order(tree):
    for name,nb in notebooks(tree).items():
        ran = [c['execution_count'] for c in nb['cells'] if c.get('execution_count')]
        if ran!=sorted({*ran}): yield f'{name} was not run from top to bottom: {ran}'

def functions_are_short_and_said(tree):
    for mod,path in modules(tree).items():
        body = ast.parse(path.read_text(encoding='utf-8'))
        for o in ast.walk(body):
            lines = o.end_lineno-o.body[0].lineno+1 if isinstance(o, ast.FunctionDef) else 0
            if lines>40: yield f'{PKG}/{mod}.py: {o.name} has {lines} lines'
        for o in body.body:
            if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and o.name[0]!='_' and not ast.get_docstring(o):
                yield f'{PKG}/{mod}.py: {o.name} does not say what it does'

def requirements_are_said_once(tree):
    seen = {}
    for key,value in settings(tree).items():
        if not key.endswith('requirements'): continue
        names = [re.match(r'[\w.-]+', o)[0].lower().replace('_', '-') for o in value.split()]
        for o in sorted({o for o in names if names.count(o)>1}): yield f'settings.ini: {key} names {o} twice'
        for o,req in zip(names, value.split()):
            if seen.setdefault(o, req)!=req: yield f'settings.ini: {o} is {seen[o]} here and {req} there'

def metadata_agrees(tree):
    s = settings(tree)
    proj = tomllib.loads((tree/'pyproject.toml').read_text(encoding='utf-8'))['project']
    cite = dict(re.findall(r'^(\S+): *"?(.*?)"?$', (tree/'CITATION.cff').read_text(encoding='utf-8'), re.M))
    log = (tree/'CHANGELOG.md').read_text(encoding='utf-8')
    toml = dict(lib_name=proj['name'], license=proj['license'], author=proj['authors'][0]['name'],
                keywords=' '.join(proj['keywords']), git_url=proj['urls']['Repository'], doc_url=proj['urls']['Documentation'])
    cff = {'version': cite['version'], 'license': cite['license'], 'git_url': cite['repository-code'], 'doc_url': cite['url']}
    for name,there in [('pyproject.toml', toml), ('CITATION.cff', cff)]:
        for k,v in there.items():
            if v!=s[k]: yield f'{name} says {v!r}, settings.ini says {k} = {s[k]}'
    if s['version'] not in log: yield f"CHANGELOG.md does not know version {s['version']}"

def one_address(tree):
    for path,text in text_files(tree):
        strays = owners(text) - {owner(tree)}
        if strays: yield f'{path.relative_to(tree).as_posix()} has the address of {strays}: run make address'

def readme_is_made(tree):
    text,pictures = readme(tree/'nbs/index.ipynb')
    if (tree/'README.md').read_text(encoding='utf-8')!=text: yield 'README.md is not what make readme writes from nbs/index.ipynb'
    for o,data in pictures.items():
        if not (tree/o).exists() or (tree/o).read_bytes()!=data: yield f'{o} is not what make readme writes from nbs/index.ipynb'

def demo_is_the_same_without_make(tree):
    made = (tree/'Makefile').read_text(encoding='utf-8')
    text = re.sub(r'\\\n\s+', '', (tree/'README.md').read_text(encoding='utf-8')) # a long command goes on in the next line
    for o in re.findall(r'^malaria-fastai train sample .*', text, re.M):
        if o not in made: yield f'README.md and Makefile differ: {o}'

def links_lead_somewhere(tree):
    ours = re.escape(settings(tree)['git_url']) + r'/(?:blob|tree)/main/'
    for path,text in text_files(tree):
        if path.suffix!='.md': continue
        for own,link in re.findall(rf'\]\(({ours})?([^)#\s]+)', text):
            if ':' in link or ((tree if own else path.parent)/link).exists(): continue
            yield f'{path.relative_to(tree).as_posix()} links to {link}, which is not there'

def no_real_cell_is_stored(tree):
    real = {Path(o).name for o in pd.read_csv(tree/'data/facts/manifest.csv.gz', usecols=[0]).iloc[:, 0]}
    yield from (f'{o.relative_to(tree).as_posix()} has the name of a real picture' for o in files(tree) if o.name in real)

WHEEL = """
import os,tarfile
from pathlib import Path
from setuptools import build_meta
tarfile.open(build_meta.build_sdist('.')).extractall('unpacked')
os.chdir(next(Path('unpacked').iterdir()))
build_meta.build_wheel('../..')
"""

def wheel_is_whole(tree):
    "The wheel, built from the source archive, holds the modules, the templates, the network and the facts, and nothing else."
    with TemporaryDirectory() as tmp:
        new = copy(tree, Path(tmp))
        if said := python(new, WHEEL): yield f'setup.py: {said}'; return
        there = {o for o in zipfile.ZipFile(next(new.glob('*.whl'))).namelist() if '.dist-info/' not in o}
    want = {o.relative_to(tree).as_posix() for kind in ('*.py', 'templates/*', 'network/*') for o in (tree/PKG).rglob(kind)}
    want |= {f'{PKG}/facts/{o.name}' for o in (tree/'data/facts').iterdir()}
    for o in sorted(there ^ want): yield f'{o} is {"not " if o in want else ""}in the wheel'

# ---- a small healthy repository, and faults to plant in it

MOD,NB,TUT = f'{PKG}/cells.py','nbs/api/03_cells.ipynb','nbs/tutorials/01_lesson.ipynb'

def write_nb(path, *sources):
    "A notebook of code cells; a source that begins with `# ` is a markdown cell."
    cells = [dict(cell_type='markdown', metadata={}, source=[s]) if s[:2]=='# ' else
             dict(cell_type='code', metadata={}, source=s.splitlines(True), outputs=[], execution_count=None) for s in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nb = dict(cells=[dict(id=f'cell{i}', **c) for i,c in enumerate(cells)], metadata={}, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(nb))

@pytest.fixture(scope='session')
def healthy(tmp_path_factory):
    tree = tmp_path_factory.mktemp('healthy')
    for o in 'settings.ini pyproject.toml setup.py Makefile MANIFEST.in CITATION.cff CHANGELOG.md LICENSE'.split():
        shutil.copy(ROOT/o, tree)
    write_nb(tree/'nbs/index.ipynb', '# A title')
    write_nb(tree/'nbs/api/01_source.ipynb', '# source', '#| default_exp source',
             '#| export\ndef there():\n    "Say where."\n    return 1')
    write_nb(tree/NB, '# cells', '#| default_exp cells', '#| export\nfrom malaria_fastai.source import *',
             '#| export\ndef count():\n    "Count."\n    return there()')
    write_nb(tree/TUT, '# A lesson', 'from malaria_fastai.cells import count', '%time count()')
    (tree/'data/facts').mkdir(parents=True)
    pd.DataFrame({'name': ['C1P1_IMG_1_cell_1.png']}).to_csv(tree/'data/facts/manifest.csv.gz', index=False)
    (tree/PKG).mkdir()
    (tree/PKG/'__init__.py').write_text('"A package."\n')
    (tree/'README.md').write_text(readme(tree/'nbs/index.ipynb')[0])
    assert not python(tree, f'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()\n{EXPORT}')
    return tree

# A fault is what a complaint must begin with, mostly the file's name, and a function that plants it.
def fault(name, change):
    def plant(tree):
        path = tree/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change(path.read_text(encoding='utf-8') if path.exists() else ''), encoding='utf-8')
    return name,plant

def add(name, text): return fault(name, lambda old: f'{old}{text}\n')
def swap(name, a, b): return fault(name, lambda old: old.replace(a, b))
def gone(name): return name, lambda tree: (tree/name).unlink()

def cell(notebook, source, /, count=None, **output):
    "Append a code cell, perhaps with its count and an output, to `notebook`."
    def change(old):
        nb = json.loads(old)
        nb['cells'].append(dict(cell_type='code', id='fault', metadata={}, source=source.splitlines(True), execution_count=count,
                                outputs=[output] if output else []))
        return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False)+'\n'
    return fault(notebook, change)

def shows(text, name='stdout'): return cell(TUT, 'f()', output_type='stream', name=name, text=[text])

def blame(name, fault): return name,fault[1]

PATCHES = """
import fastai.learner
from fastai.learner import Learner
from torch import nn
Learner.added = 1
Learner.fit = lambda self: 1
Learner.model = property(lambda self: 1)
del Learner.predict
nn.Module.moved = print
fastai.learner.load_learner = lambda path: path
"""

RULES = {
    imports_go_one_way: [add(MOD, 'from .learner import cnn_learner'), add(MOD, 'from malaria_fastai import learner'),
        add(MOD, 'def f():\n    import malaria_fastai.learner'), add(MOD, 'def f():\n    from malaria_fastai.all import *'),
        add(MOD, 'import importlib\nimportlib.import_module("malaria_fastai.learner")'), add(f'{PKG}/{"utils"}.py', 'x = 1')],
    light_modules_stay_light: [add(MOD, 'import torch'), add(MOD, 'from fastai.vision.all import *'),
        blame(MOD, add(f'{PKG}/source.py', 'def f(): pass\nimport timm'))],
    fastai_is_left_alone: [blame(f'{PKG}/all.py patches Learner.added Learner.fit Learner.model Learner.predict Module.moved '
        'fastai.learner.load_learner', add(f'{PKG}/all.py', PATCHES))],
    notebooks_are_small: [cell(TUT, '#'*300_000)],
    no_path_of_a_machine: [add('README.md', f'see /{"home"}/ann/cells'), shows(f'saved in /{"tmp"}/x1'),
        add(MOD, f'# C:\\{"Users"}\\ann'), shows(f"PosixPath('/{'content'}/data')"), add('CHANGELOG.md', f'`/{"work"}/main`')],
    no_registry_is_named: [add('README.md', f'https://py{"pi"}.org/project/fastai')],
    export_in_sync: [add(MOD, 'x = 1'), blame(MOD, cell(NB, '#| export\nx = 1')), blame(MOD, gone(NB)), gone(MOD),
        add(f'{PKG}/old.py', 'x = 1')],
    notebooks_are_clean: [cell(TUT, '1', count=3), swap(TUT, '"metadata": {}', '"metadata": {"tags": ["x"]}')],
    house_is_drawn: [add('nbs/images/house.svg', '<svg/>')],
    notebooks_are_numbered: [swap(NB, 'default_exp cells', 'default_exp split'), add('nbs/api/05_source.ipynb', '{"cells": []}')],
    tutorials_export_nothing: [cell(TUT, '#| export\nx = 1'), cell(TUT, '#|default_exp x'),
        cell('nbs/index.ipynb', '#| exports\nx = 1')],
    imports_stand_alone: [cell(TUT, 'import os\nos.getcwd()'), cell(NB, '#| export\nfrom os import sep\nx = sep')],
    parses_as_python_310: [cell(TUT, 'try: 1\nexcept* ValueError: 2'), cell(TUT, 'def f(:'), add(MOD, 'type X = int')],
    outputs_are_tidy: [shows(' 50%|#####     | 5/10 [00:01<00:01,  4.9it/s]'), shows('oh', 'stderr'),
        shows('UserWarning: oh'), shows('a\rb'),
        cell(TUT, 'f()', output_type='error', ename='E', evalue='', traceback=[]),
        cell(TUT, 'f()', output_type='display_data', metadata={}, data={'text/html': ['<progress value=1>']})],
    cells_ran_in_order: [('nbs/api/03_cells.ipynb', lambda t: [cell(NB, '1', count=o)[1](t) for o in (2, 1)])],
    functions_are_short_and_said: [add(MOD, 'def f(): return 1'), add(MOD, 'class A: pass'),
        add(MOD, 'def f():\n    "F."\n'+'    1\n'*41)],
    requirements_are_said_once: [swap('settings.ini', 'timm>=1.0.12', 'timm>=1.0.12 Timm'),
        add('settings.ini', 'x_requirements = timm>=2')],
    metadata_agrees: [swap('CITATION.cff', 'version: 0', 'version: 9'), swap('pyproject.toml', 'Apache-2.0', 'MIT'),
        swap('CHANGELOG.md', '0.1.0', 'none')],
    one_address: [add('README.md', f'https://github.com/{"ann"}/malaria_fastai'),
        add(TUT, f'https://{"ann"}.github.io/malaria_fastai'),
        blame('CITATION.cff', swap('settings.ini', 'github.com/', 'github.com/ann-'))],
    readme_is_made: [add('README.md', 'More.'), blame('README.md', swap('nbs/index.ipynb', 'A title', 'Another'))],
    demo_is_the_same_without_make: [add('README.md', 'malaria-fastai train sample --epochs 99')],
    links_lead_somewhere: [add('README.md', '[x](missing.md)'),
        add('README.md', f'[x]({settings(ROOT)["git_url"]}/blob/main/missing.md)')],
    no_real_cell_is_stored: [add('tests/C1P1_IMG_1_cell_1.png', 'x')],
    wheel_is_whole: [blame(f'{PKG}/facts/x.json', add('data/facts/x.json', '{}')), blame('setup.py', gone('MANIFEST.in'))],
}

@pytest.mark.parametrize('rule', RULES, ids=lambda o: o.__name__)
def test_holds_here(rule):
    if found := [*rule(ROOT)]: pytest.fail('\n'.join(found), pytrace=False)

@pytest.mark.parametrize('rule', RULES, ids=lambda o: o.__name__)
def test_holds_in_a_healthy_repository(rule, healthy): assert [*rule(healthy)]==[]

FAULTS = [pytest.param(rule, o, id=f'{rule.__name__}-{i}') for rule,faults in RULES.items() for i,o in enumerate(faults)]

@pytest.mark.parametrize('rule,fault', FAULTS)
def test_finds_a_planted_fault(rule, fault, healthy, tmp_path):
    blamed,plant = fault
    tree = copy(healthy, tmp_path/'tree')
    plant(tree)
    found = [*rule(tree)]
    assert any(o.startswith(blamed) for o in found), f'expected a complaint that begins with {blamed}, got {found}'

@pytest.mark.parametrize('fault', planted_faults.FAULTS, ids=lambda fault: f'{fault.module}: {fault.what}')
def test_faults_can_be_planted(fault):
    "Each names one place of its module, and finders that are there."
    text = (ROOT/PKG/f"{fault.module.replace('.', '/')}.py").read_text(encoding='utf-8')
    assert text.count(fault.old)==1 and fault.old!=fault.new
    for finder in ' '.join(fault.finders).split(): assert (ROOT/finder).is_file()

def test_the_table_has_no_circle():
    for i,(mod,may) in enumerate(MAY_IMPORT.items()): assert {*may.split()} - {'extra', 'v1'} <= {*list(MAY_IMPORT)[:i]}, mod

def test_the_address_is_written_everywhere():
    text = 'https://github.com/{0}/malaria_fastai https://{0}.github.io/malaria_fastai https://github.com/fastai/fastai'
    assert readdress(text.format('bob'), 'ann')==text.format('ann')

# ---- the house: size, density and scatter only fall

def test_the_house_only_gets_better():
    if found := [*house.complaints(house.measure(ROOT), BOUNDS)]: pytest.fail('\n'.join(found), pytrace=False)

def test_a_bound_is_held_from_both_sides():
    assert [*house.complaints(dict(nodes=5), dict(nodes=5))]==[]
    assert [*house.complaints(dict(nodes=6), dict(nodes=5))]==['nodes is 6: the bound is 5, and it only tightens']
    assert [*house.complaints(dict(nodes=4), dict(nodes=5))]==['nodes is better than its bound of 5: tighten the bound to 4']
    assert [*house.complaints({}, dict(nodes=5))]==['nodes has a bound and is not measured']
    assert [*house.complaints(dict(nodes=5), {})]==['nodes is 5 and has no bound']

def export_here(module): return swap(module, '__all__ = [', "__all__ = ['here', ")

UNSAID = 'def _helper(x):\n'+'    x = 1\n'*4
HOUSE_FAULTS = dict( # measure: what makes it larger in the healthy repository
    nodes=[add(MOD, 'x = 1')], core_nodes=[add(MOD, 'x = 1')], over_120=[add(MOD, '#'*121)], mean_code_line=[add(MOD, f'x = "{"a"*99}"')],
    nodes_per_line=[add(MOD, 'x = [f(g(y+1))+2, -z[3:4], {5: 6}]')], public_names=[export_here(MOD)],
    star_names=[export_here(MOD), add(f'{PKG}/all.py', 'from .cells import here')],
    private_in_two_modules=[add(MOD, 'def _f(): pass'), add(f'{PKG}/source.py', 'class _f: pass')],
    public_with_two_owners=[export_here(MOD), export_here(f'{PKG}/source.py')],
    exceptions=[add(MOD, 'class NoCells(ValueError): pass')], helpers_called_once=[add(MOD, 'def _f(): pass\n_f()')],
    undocumented_helpers=[add(MOD, UNSAID)], definitions_per_cell=[cell(NB, '#| export\ndef f(): pass\ndef g(): pass')],
    largest_cell=[cell(NB, '#| export\n'+'x = 1\n'*9)], lesson_lines_over_88=[cell(TUT, '#'*89)])

@pytest.mark.parametrize('measure', HOUSE_FAULTS)
def test_a_measure_sees_what_makes_it_worse(measure, healthy, tmp_path):
    tree = copy(healthy, tmp_path/'tree')
    before = house.measure(tree)[measure]
    for _,plant in HOUSE_FAULTS[measure]: plant(tree)
    assert house.measure(tree)[measure]>before

def test_a_term_of_the_field_is_looked_for(healthy, tmp_path):
    tree = copy(healthy, tmp_path/'tree')
    before = house.measure(tree)['terms_missing']
    write_nb(tree/'nbs/tutorials/02_words.ipynb', '# A checkpoint, and a zip bomb')
    assert house.measure(tree)['terms_missing']==before-2

def test_every_measure_is_tried(): assert {*BOUNDS}=={*HOUSE_FAULTS, 'terms_missing'}
