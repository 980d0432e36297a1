"""The code of the 2019 tutorial, taken from its text and run in order on real cells.

The text is not ours and not in this repository: the variable MALARIA_TUTORIAL_2019 names it. Its import lines are replaced by
`from malaria_fastai.all import *`. Whatever else is changed is listed in `EDITS`, with the reason; what is not run, in `SKIPPED`."""
import ast, os, re, warnings, zipfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
import pytest

pytestmark = [pytest.mark.real, pytest.mark.skipif(not os.environ.get('MALARIA_TUTORIAL_2019'), reason='MALARIA_TUTORIAL_2019 names no text')]

# What is changed: how often it occurs, the line of 2019, today's, why. An edit that does not occur so often is an error.
IMPORTS,QUICK,OFFLINE,WRONG,TEXT,BLANK,TYPO = ('the imports are replaced', 'a small run', 'no ImageNet weights here', 'the callback was given another learner than the one that trains',
    'lost in the formatting of the text', 'a blank that the reader fills in', 'a typing error of the text')
EDITS = [
    (1, 'from fastai.vision import *\nfrom fastai.metrics import error_rate\nfrom fastai.callbacks import SaveModelCallback# Imports', 'from malaria_fastai.all import *\n# Imports', IMPORTS),
    (1, 'path = Path("./data")', 'path = Path(DATA)', 'the data path'),
    (1, 'bs = 256 ', 'bs = 32 ', QUICK),
    (1, 'size = 128 ', 'size = 32 ', QUICK),
    (1, '**bs=512**', 'bs=48', QUICK + '; ' + TEXT),
    (1, '**valid_pct = 0.2**', 'valid_pct = 0.2', TEXT),
    (1, 'learn.fit_one_cycle(10,', 'learn.fit_one_cycle(2,', QUICK),
    (1, 'learn18.fit_one_cycle(10,', 'learn18.fit_one_cycle(2,', QUICK),
    (1, 'learn18.fit_one_cycle(30, **max_lr=slice(1e-4,1e-5)**,', 'learn18.fit_one_cycle(2, max_lr=slice(1e-4,1e-5),', QUICK + '; ' + TEXT),
    (2, 'learn.fit_one_cycle(20,', 'learn.fit_one_cycle(3,', QUICK),
    (1, 'cnn_learner(data, models.resnet34, metrics=error_rate)', 'cnn_learner(data, models.resnet34, metrics=error_rate, pretrained=False)', OFFLINE),
    (1, 'cnn_learner(data, models.resnet18, metrics=error_rate)', 'cnn_learner(data, models.resnet18, metrics=error_rate, pretrained=False)', OFFLINE),
    (1, "SaveModelCallback(learn, every='epoch', monitor='accuracy', name='malaria18-1')", "SaveModelCallback(learn18, every='epoch', monitor='accuracy', name='malaria18-1')", WRONG),
    (1, "SaveModelCallback(learn, \n                    every='epoch', monitor='accuracy', \n                    name='malaria18')",
        "SaveModelCallback(learn18, \n                    every='epoch', monitor='accuracy', \n                    name='malaria18')", WRONG),
    (1, 'from_learner(learn)losses,idxs = interp.top_losses()len(', 'from_learner(learn)\nlosses,idxs = interp.top_losses()\nlen(', TEXT),
    (2, 'interp.top_losses()interp.plot', 'interp.top_losses()\ninterp.plot', TEXT),
    (1, 'name=***<callback_save_file>***', "name='interrupted'", BLANK),
    (1, '***name=<callback_save_file>***', "name='interrupted'", BLANK),
    (1, 'your Colab sessionlearn = cnn_learner(data, models.<your_model_here>,', 'your Colab session\nlearn = cnn_learner(data, models.resnet34, pretrained=False,', f'{BLANK}; {OFFLINE}; {TEXT}'),
    (1, '***start_epoch=<next_epoch#>***', 'start_epoch=2', BLANK),
    (1, 'learn50.unfreeze()', 'learn.unfreeze()', TYPO)]

# What is not run: how a block begins, and what it is.
SKIPPED = {'%reload_ext': 'notebook magics', '!/opt/bin/nvidia-smi': 'shell', '!wget': 'shell', '!unzip': 'shell', '!mv': 'shell', '!apt': 'shell', '!tree': 'shell',
    'Thu May': 'output', 'total 345208': 'output', 'Archive:': 'output', './data\n': 'output', 'Transforms =  2': 'output', 'ImageDataBunch;': 'output', 'Sequential(': 'output', 'Downloading:': 'output'}

def blocks():
    "The code of the text, block by block, before any edit."
    text = Path(os.environ['MALARIA_TUTORIAL_2019']).read_text(encoding='utf-8')
    return [o for o in re.findall(r'^```\n(.*?)^```$', text, re.S | re.M) if not o.startswith(tuple(SKIPPED))]

def edited(code):
    "The blocks with all edits, each of which must occur as often as it says."
    seen = [sum(o.count(old) for o in code) for _,old,_,_ in EDITS]
    assert seen == [n for n,*_ in EDITS], [(n, k, old) for (n,old,*_),k in zip(EDITS, seen) if n != k]
    for _,old,new,_ in EDITS: code = [o.replace(old, new) for o in code]
    return code

def run(code, names):
    "Run a block as a notebook does: the value of a last expression is what it shows."
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, '2019', 'exec'), names)
    return eval(compile(ast.Expression(last.value), '2019', 'eval'), names) if last else None

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "`data/train/{Parasitized,Uninfected}` with 60 real cells each, spread over the archive."
    data = tmp_path_factory.mktemp('tutorial')/'data'
    with zipfile.ZipFile(os.environ['MALARIA_NIH_ZIP']) as z:
        for label in ('Parasitized', 'Uninfected'):
            names = sorted(o for o in z.namelist() if o.endswith('.png') and Path(o).parent.name == label and 'MACOSX' not in o)
            to = data/'train'/label
            to.mkdir(parents=True)
            for o in names[::len(names)//60][:60]: (to/Path(o).name).write_bytes(z.read(o))
    return data

@pytest.fixture(scope='module')
def told(folder):
    "The whole tutorial, run: the names it leaves, and what each block showed and warned of."
    said = StringIO()
    names,shown,warned = dict(DATA=folder, SAID=said),[],[]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        for before,code in zip(blocks(), edited(blocks())):
            if 'SaveModelCallback(learn, ' in before and 'learn18.fit' in before: refuses_the_wrong_learner(before, code, names)
            if 'start_epoch' in before: after_the_interruption(names, shown)
            with warnings.catch_warnings(record=True) as w:
                warnings.simplefilter('always')
                with redirect_stdout(said): shown.append((code, run(code, names)))
            warned += [str(o.message) for o in w]
    return names,shown,warned

def refuses_the_wrong_learner(before, code, names):
    "The line as it was: an error, before anything is trained."
    for o in ('fit_one_cycle(2', 'max_lr=slice(1e-4,1e-5)'): assert o in code or 'unfreeze' not in code
    as_it_was = re.sub(r'SaveModelCallback\(learn18, ', 'SaveModelCallback(learn, ', code)
    with pytest.raises(ValueError, match='another learner'): run(as_it_was, names)

def after_the_interruption(names, shown):
    "The text: before resuming, recreate the data bunch. So its first one is made again, by its own lines."
    from malaria_fastai.learner import weights_hash
    names['UNINTERRUPTED'] = weights_hash(names['learn'].model)
    del names['learn']
    run(next(code for code,_ in shown if 'ImageDataBunch.from_folder' in code), names)

def test_every_block_is_run_or_listed():
    text = Path(os.environ['MALARIA_TUTORIAL_2019']).read_text(encoding='utf-8')
    every = re.findall(r'^```\n(.*?)^```$', text, re.S | re.M)
    assert len(every) == text.count('\n```')//2 and len(blocks()) == 22
    assert all(any(o.startswith(k) for o in every) for k in SKIPPED)
    assert not any(line.startswith(('!', '%')) for o in blocks() for line in o.splitlines())
    assert sum('fastai' in line for o in edited(blocks()) for line in o.splitlines() if 'import' in line) == 1

def test_it_runs_and_says_what_its_text_says(told, folder):
    names,shown,warned = told
    data,learn18 = names['data'],names['learn18']
    assert len(shown) == 22 and len(names['tfms']) == 2 and data.classes == ['Parasitized', 'Uninfected']
    assert (len(data.train_ds), len(data.valid_ds), names['size'], data.bs) == (96, 24, 32, 32)
    values = [v for _,v in shown]
    assert 'Transforms =  2' in names['SAID'].getvalue()
    assert repr(data) in map(repr, values) and any(v is True for v in values)    # len(data.valid_ds)==len(losses)==len(idxs)
    text = next(repr(v) for v in values if repr(v).startswith('ImageDataBunch;'))
    assert 'Train: LabelList (96 items)\nx: ImageList\nImage (3, 32, 32),Image (3, 32, 32)' in text and text.endswith('Test: None')
    assert sum(type(v).__name__ == 'Figure' for v in values) == 7                # batch, losses twice, matrix three times, curves
    assert next(v for v in values if type(v).__name__ == 'Sequential') is not None
    assert any("monitor='accuracy' is not measured" in o for o in warned)
    assert learn18.recorder.to_frame().stage.tolist() == [0, 0, 1, 1] and len(learn18.recorder.losses) == 4*(96//48)
    interp = names['interp']
    assert interp.confusion_matrix().sum() == 24 and len(names['losses']) == 24

def test_its_files(told, folder):
    from malaria_fastai.learner import load_learner, weights_hash
    names,there = told[0],{o.name for o in (folder/'models').iterdir()}
    assert {'malaria-stage-1.pth', 'malaria18-stage-1.pth', 'malaria18-stage-2.pth', *(f'{o}_{i}.pth' for o in ('malaria-1', 'malaria18-1', 'malaria18') for i in (0, 1))} <= there
    assert (folder/'imageDataBunch-bs-32-size-32.pkl').is_file() and (folder/'export.pkl').is_file()
    back = names['restoreStageFrom'](folder)
    assert weights_hash(back.model) == weights_hash(names['learn18'].model) == weights_hash(load_learner(folder).model)
    back.data = names['data']
    back.freeze()
    back.fit_one_cycle(1, slice(1e-4))                                            # "for example to continue fine-tuning"

def test_each_resnet18_file_holds_a_resnet18(told, folder):
    names = told[0]
    for o in ('malaria18-1_1', 'malaria18_0', 'malaria18-stage-2'): names['learn18'].load(o)

def test_the_resumed_run_is_the_uninterrupted_one(told):
    from malaria_fastai.learner import weights_hash
    names = told[0]
    assert weights_hash(names['learn'].model) == names['UNINTERRUPTED']
    assert names['learn'].recorder.to_frame().epoch.tolist()[-3:] == [0, 1, 2]
    assert 'Loaded interrupted_1' in names['SAID'].getvalue()
