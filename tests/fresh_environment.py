"""A bare environment for tests. It borrows everything that is installed here except this package, as Colab brings its own PyTorch;
this repository's address leads to a copy of the checkout, and pip cannot reach any registry."""
import os,subprocess,sys,sysconfig,venv
from pathlib import Path
from set_address import owner
from test_repo import copy

PUBLISHED = 'somebody' # who holds the repository there: while nobody does, a lesson stops
OWN = ('malaria_fastai', '__editable__', 'nbdev') # what is not lent: this package, and what only its makers need
MINE = ('MALARIA_', 'PIP_', 'PYTEST', 'JUPYTER', 'IN_TEST', 'MPLBACKEND', 'PYTHONPATH', 'TQDM_DISABLE') # what the tests' own surroundings must not lend

def lend(folder):
    "Links in `folder` to every installed package but our own."
    folder.mkdir()
    for base in {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}:
        for o in Path(base).iterdir():
            if not o.name.startswith(OWN): (folder/o.name).symlink_to(o)
    return folder

def snapshot(tree, folder):
    "A git repository of what would be committed from `tree`."
    copy(tree, folder)
    git = ['git', '-c', 'user.name=test', '-c', 'user.email=test@localhost']
    for words in (['init', '-q', '-b', 'main'], ['add', '-A', '-f'], ['commit', '-q', '-m', 'As it is']):
        subprocess.run([*git, *words], cwd=folder, check=True, capture_output=True)
    return folder

class FreshEnvironment:
    "A virtual environment in `folder`: packages are lent, this one is missing, and its address leads to `tree`."
    def __init__(self, folder, tree):
        venv.create(folder/'python', with_pip=False)
        self.bin = folder/'python'/('Scripts' if os.name=='nt' else 'bin')
        self.python = self.bin/'python'
        self.site = next((folder/'python').glob('[Ll]ib/**/site-packages'))
        (self.site/'lent.pth').write_text(f'{lend(folder/"lent")}\n')
        here = ''.join(f'    insteadOf = https://github.com/{name}/malaria_fastai\n' for name in (owner(tree), PUBLISHED))
        (folder/'gitconfig').write_text(f'[url "{snapshot(tree, folder/"repository").as_uri()}"]\n{here}[protocol "file"]\n    allow = always\n')
        # PIP_NO_BUILD_ISOLATION: 0 means that there is none (pypa/pip, issue 5735); setuptools is among what is lent
        self.env = {k:v for k,v in os.environ.items() if not k.startswith(MINE)} | dict(PATH=f'{self.bin}{os.pathsep}{os.environ["PATH"]}',
            GIT_CONFIG_GLOBAL=str(folder/'gitconfig'), PIP_NO_INDEX='1', PIP_NO_BUILD_ISOLATION='0', PIP_DISABLE_PIP_VERSION_CHECK='1',
            PIP_CONFIG_FILE=os.devnull, PYTHONNOUSERSITE='1')

    def run(self, *words, **kwargs):
        "Run a command in this environment; returns what it said."
        return subprocess.run([str(o) for o in words], env=self.env, capture_output=True, text=True, **kwargs)
