"""The wheel, built without a network from what would be committed: what is in it, and that it works alone, without the checkout."""
import configparser,re,shutil,zipfile
from email.parser import Parser
import pytest
from packaging.requirements import Requirement
from fresh_environment import FreshEnvironment
from test_repo import PKG, ROOT, settings

@pytest.fixture(scope='module')
def env(tmp_path_factory): return FreshEnvironment(tmp_path_factory.mktemp('wheel'), ROOT)

@pytest.fixture(scope='module')
def wheel(env, tmp_path_factory):
    "The wheel as a user's pip makes it."
    folder = tmp_path_factory.mktemp('built')
    said = env.run(env.python, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', folder, f'{PKG} @ git+{settings(ROOT)["git_url"]}')
    assert not said.returncode, said.stderr
    return next(folder.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(env, wheel):
    "The environment with the wheel in it, and nothing of ours besides."
    said = env.run(env.python, '-m', 'pip', 'install', '-q', '--no-deps', wheel)
    assert not said.returncode, said.stderr
    return env

def contents(wheel):
    with zipfile.ZipFile(wheel) as z: return {o: z.read(o).decode('utf-8', 'replace') for o in z.namelist()}

def wheel_faults(there, tree):
    "What is wrong with the files of a wheel, name -> text, that was built from `tree`."
    s,info = settings(tree),f'{PKG}-{settings(tree)["version"]}.dist-info'
    want = {o.relative_to(tree).as_posix() for kind in ('*.py', 'templates/*', 'network/*') for o in (tree/PKG).rglob(kind)}
    want |= {f'{PKG}/facts/{o.name}' for o in (tree/'data/facts').iterdir()}
    want |= {f'{info}/{o}' for o in ('METADATA', 'RECORD', 'WHEEL', 'entry_points.txt', 'licenses/LICENSE', 'top_level.txt')}
    yield from (f'not in it: {o}' for o in sorted(want-{*there}))
    yield from (f'should not be in it: {o}' for o in sorted({*there}-want))
    meta = Parser().parsestr(there.get(f'{info}/METADATA', ''))
    requires = [Requirement(o) for o in meta.get_all('Requires-Dist') or []]
    if {str(o) for o in requires if 'extra' not in str(o.marker)}!={str(Requirement(o)) for o in s['requirements'].split()}: yield 'other requirements'
    extras = {k.removesuffix('_requirements').replace('_', '-') for k in s if k.endswith('_requirements')}
    if {*(meta.get_all('Provides-Extra') or [])}!=extras: yield 'other extras'
    if meta['Requires-Python']!=f'>={s["min_python"]}': yield 'another Python'
    if meta['Version']!=s['version'] or meta['Summary']!=s['description'] or meta['License-Expression']!=s['license']: yield 'other metadata'
    scripts = configparser.ConfigParser()
    scripts.read_string(there.get(f'{info}/entry_points.txt', ''))
    if dict(scripts['console_scripts'] if 'console_scripts' in scripts else {})!={'malaria-fastai': f'{PKG}.cli:main'}: yield 'no command'
    for name,text in there.items():
        if name.endswith(('.py', 'METADATA')) and re.search(r'(?<![\w.~-])/(home|root|tmp|Users)/\w', text): yield f'a path of this machine in {name}'

def test_wheel_holds_what_it_needs_and_nothing_else(wheel): assert [*wheel_faults(contents(wheel), ROOT)]==[]

INFO = f'{PKG}-{settings(ROOT)["version"]}.dist-info'

FAULTS = {'not in it: ': lambda t: t.pop(next(o for o in t if '/facts/' in o)), 'should not be in it: ': lambda t: t.update({'tests/test_x.py': ''}),
    'other requirements': lambda t: t.update({f'{INFO}/METADATA': t[f'{INFO}/METADATA'].replace('timm>=1.0.12', 'timm')}),
    'other extras': lambda t: t.update({f'{INFO}/METADATA': t[f'{INFO}/METADATA'].replace('Provides-Extra: onnx\n', '')}),
    'another Python': lambda t: t.update({f'{INFO}/METADATA': t[f'{INFO}/METADATA'].replace('Requires-Python: >=3.10', 'Requires-Python: >=3.8')}),
    'no command': lambda t: t.update({f'{INFO}/entry_points.txt': '[console_scripts]\n'}),
    'a path of this machine': lambda t: t.update({f'{PKG}/cli.py': f'x = "/{"home"}/ann"'})}

@pytest.mark.parametrize('said', FAULTS)
def test_finds_a_fault_of_a_wheel(said, wheel):
    there = contents(wheel)
    FAULTS[said](there)
    assert any(o.startswith(said) for o in wheel_faults(there, ROOT))

def test_wheel_works_alone(installed, tmp_path):
    "It is the installed package that answers, not the checkout; the command helps; the facts are read."
    code = f"import {PKG}, pandas; from {PKG}.source import facts; print({PKG}.__path__[0], len(pandas.read_csv(facts('manifest.csv.gz'))))"
    said = installed.run(installed.python, '-c', code, cwd=tmp_path)
    assert not said.returncode, said.stderr
    place,cells = said.stdout.split()
    assert place==str(installed.site/PKG) and int(cells)==27_558
    said = installed.run(installed.bin/'malaria-fastai', '--help', cwd=tmp_path)
    assert not said.returncode and 'train' in said.stdout and 'Not for diagnosis' in ' '.join(said.stdout.split()) and not said.stderr

def test_wheel_without_its_facts_says_so(installed, tmp_path):
    "The fault that the test above is there for."
    facts,aside = installed.site/PKG/'facts',tmp_path/'facts'
    shutil.move(facts, aside)
    try: said = installed.run(installed.python, '-c', f"from {PKG}.source import facts; facts('manifest.csv.gz')", cwd=tmp_path)
    finally: shutil.move(aside, facts)
    assert said.returncode and 'manifest.csv.gz' in said.stderr

@pytest.mark.slow
def test_wheel_trains(installed, tmp_path):
    "A very short demo, in a folder with nothing in it: drawn cells, a network, a report, a model that answers."
    words = 'train sample --arch squeezenet1_1 --size 32 --bs 16 --epochs 1 --finetune-epochs 0 --limit 120 --split patient --pretrained no --out run'
    said = installed.run(installed.bin/'malaria-fastai', *words.split(), cwd=tmp_path)
    assert not said.returncode, said.stderr
    assert {'metrics.json', 'predictions.csv', 'report.html', 'model'} <= {o.name for o in (tmp_path/'run').iterdir()}
    said = installed.run(installed.bin/'malaria-fastai', 'predict', 'run', 'data/drawn-sample/Uninfected', '--bs', '64', '-o', 'answers.csv', cwd=tmp_path)
    assert not said.returncode and (tmp_path/'answers.csv').exists(), said.stderr
