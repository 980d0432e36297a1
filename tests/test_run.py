"""What a lesson cell of 15_run and 18_cli cannot say: each file of a run folder against the others, interruptions, wrong inputs.

One small run of the command, in this process, is read by many tests; processes of their own are for what needs one."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fastai.callback.core import Callback
from sklearn.metrics import accuracy_score, matthews_corrcoef, roc_auc_score

from malaria_fastai import export as deploy, run as study
from malaria_fastai.cli import main
from malaria_fastai.extra import compare, crossval

MAIN = 'import sys; from malaria_fastai.cli import main; sys.exit(main())'
METRICS = ('accuracy', 'balanced_accuracy', 'auc', 'sensitivity', 'specificity', 'f1', 'mcc')


ENV = {**os.environ, 'TQDM_DISABLE': '1'} # as many threads as here: the last bits depend on them
TWO_STAGES = 'train sample --arch squeezenet1_1 --size 32 --bs 16 --epochs 2 --finetune-epochs 1 --lr 0.0003 --pretrained no --limit 120'.split()


def here(*words, cwd):
    "Run malaria-fastai in this process: its exit status, and what it says."
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        patch.chdir(cwd)
        status = main(words)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def command(*words, cwd=None):
    "Run malaria-fastai in a process of its own."
    return subprocess.run([sys.executable, '-c', MAIN, *map(str, words)], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=550)


DOOMED = '''import os, signal, sys
from malaria_fastai.cli import main
replace,last = os.replace,sys.argv.pop(1)
def replace_and_die(part, file):
    replace(part, file)
    if os.path.basename(file) == last: os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace_and_die
sys.exit(main())'''


def killed(*words, cwd, last):
    "Run malaria-fastai in a process of its own, which SIGKILL ends as soon as the file `last` is there; returns its exit status."
    return subprocess.run([sys.executable, '-c', DOOMED, last, *map(str, words)], cwd=cwd, env=ENV, capture_output=True, timeout=550).returncode


@pytest.fixture(scope='module')
def place(sample_root, tmp_path_factory):
    "A folder to work in, where the sample is drawn already."
    place = tmp_path_factory.mktemp('place')
    shutil.copytree(sample_root, place/'data'/'drawn-sample')
    return place


@pytest.fixture(scope='module')
def packed():
    "What the run asked to be packed: the model folder has tests of its own."
    return []


@pytest.fixture(scope='module')
def said(place, packed):
    "A run of the command on the drawn sample, in two stages."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, 'pack', lambda *args: packed.append(args))
        return here(*TWO_STAGES, '--out', 'runs/a', cwd=place)


@pytest.fixture(scope='module')
def run(said, place):
    assert said.returncode == 0, said.stderr
    return place/'runs'/'a'


@pytest.fixture(scope='module')
def found(run): return json.loads((run/'metrics.json').read_text('utf-8'))


def test_says_metrics_and_where_the_report_lies(said, found, packed):
    assert packed == [(Path('runs/a'), Path('data/drawn-sample'))]
    assert f"accuracy          {found['test']['accuracy']:.3f}" in said.stdout
    assert f"Report: {Path('runs/a/report.html')}" in said.stdout.splitlines()[-1]


def test_folder_is_whole(run):
    assert {'metrics.json', 'history.csv', 'predictions.csv', 'environment.json', 'model', 'report.html'} <= {p.name for p in run.iterdir()}


def test_metrics_have_every_key(found):
    assert {'arch', 'size', 'epochs', 'seed', 'split', 'seconds', 'pretrained'} <= set(found)
    for part in ('valid', 'test'):
        assert {'n', 'patients', *METRICS, *(f'{m}_ci' for m in METRICS)} <= set(found[part])
        for m in METRICS:
            lo,hi = found[part][f'{m}_ci'] or (0, 0) # which need not hold the number itself, where patients are few
            assert -1 <= lo <= hi <= 1


@pytest.mark.parametrize('part', ['valid', 'test'])
def test_metrics_follow_from_the_predictions(run, found, part):
    preds = pd.read_csv(run/'predictions.csv')
    preds = preds[preds.split == part]
    y,yes = preds.label == 'Parasitized',preds.p >= .5
    assert found[part]['n'] == len(preds) and found[part]['patients'] == preds.patient.nunique()
    np.testing.assert_allclose([found[part][m] for m in ('accuracy', 'auc', 'mcc')], [accuracy_score(y, yes), roc_auc_score(y, preds.p), matthews_corrcoef(y, yes)])
    clear = preds[(preds.p - .5).abs() > 1e-6] # between these, rounding decides
    assert (clear.pred == 'Parasitized').eq(clear.p > .5).all()


def test_no_patient_on_two_sides(run, found):
    assert found['leakage']['test']['patient'] == 0
    preds = pd.read_csv(run/'predictions.csv')
    assert preds.groupby('patient').split.nunique().max() == 1


def test_history_counts_both_stages(run):
    history = pd.read_csv(run/'history.csv')
    assert history[['stage', 'epoch']].values.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert history[['train_loss', 'valid_loss', 'accuracy']].notna().all(axis=None)


def test_environment_says_what_was_run(run):
    env = json.loads((run/'environment.json').read_text('utf-8'))
    assert env['command'].startswith('malaria-fastai train sample --arch squeezenet1_1 --size 32') and len(env['data_hash']) == 64
    assert {'torch', 'fastai', 'timm'} <= set(env['versions'])


def test_report_needs_nothing_from_anywhere(run):
    page = (run/'report.html').read_text('utf-8')
    assert not re.search(r'''(?:src|href)\s*=\s*["'](?!data:|#)''', page) and 'url(http' not in page and '@import' not in page
    for text in ('Confusion', 'ROC', 'malaria-fastai train sample', 'drawn', 'data:image/png;base64'): assert text in page, text


def test_model_answers_as_the_predictions_say(run, place):
    from malaria_fastai.all import load_learner, read_cells
    learn,preds = load_learner(run/'model'),pd.read_csv(run/'predictions.csv')
    root = place/'data'/'drawn-sample'
    for row in preds.iloc[::25].itertuples():
        p = learn.predict(root/row.path)[2][learn.dls.classes.index('Parasitized')]
        assert abs(float(p) - row.p) < 1e-4


def test_a_finished_run_is_not_overwritten(run, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = (run/'metrics.json').read_bytes()
    assert 'finished run' in refusal(capsys, 'train', 'sample', '--out', 'runs/a')
    assert (run/'metrics.json').read_bytes() == before


def weights(run):
    "Every weight of a run's model."
    from malaria_fastai.learner import read_model
    return {k: v.numpy() for k,v in read_model(run/'model'/'export.pkl')[1].items()}


def check_same_run(resumed, run):
    "To the last bit: predictions, history, weights; and nothing else lies there."
    assert (resumed/'predictions.csv').read_bytes() == (run/'predictions.csv').read_bytes()
    a,b = (pd.read_csv(o/'history.csv').drop(columns='seconds') for o in (run, resumed))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    a,b = weights(run),weights(resumed)
    assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)
    assert not (resumed/'states').exists() and {o.name for o in resumed.iterdir()} == {o.name for o in run.iterdir()}


class StopAt(Callback):
    "End a training as Ctrl-C does, after so many batches."
    looks_on = True
    def __init__(self, n): self.left = n
    def after_batch(self):
        self.left -= self.training
        if not self.left: raise KeyboardInterrupt


def test_interrupted_twice_and_resumed_it_is_the_same_run(run, place, monkeypatch):
    "In the middle of an epoch and before the last writing; without the cache, which changes nothing either."
    words = *TWO_STAGES, '--out', 'runs/again', '--every', 2, '--no-cache'
    def stopped(*args, **kwargs): raise KeyboardInterrupt
    make = study.recipe_learner
    with monkeypatch.context() as patch:
        patch.setattr(study, 'recipe_learner', lambda *args, **kwargs: make(*args, **kwargs, cbs=[StopAt(7)]))
        assert here(*words, cwd=place).returncode == 130
    with monkeypatch.context() as patch:
        patch.setattr(study, '_finish', stopped)
        said = here(*words, '--resume', cwd=place)
    assert said.returncode == 130 and 'Loaded stage1_1' in said.stdout and not (place/'runs/again/metrics.json').exists()
    monkeypatch.setattr(deploy, 'pack', lambda *args: None)
    said = here(*words, '--resume', cwd=place)
    assert said.returncode == 0 and 'Loaded stage2' in said.stdout, said.stderr
    check_same_run(place/'runs'/'again', run)


# In the middle of an epoch, between the stages, during the last writing
KILLS = ('stage1_1b2.state', 'stage2_start.state', 'predictions.csv')


@pytest.mark.slow
def test_killed_three_times_and_resumed_it_is_the_same_run(run, place):
    "With SIGKILL, which nothing can catch; each part is another process."
    words = *TWO_STAGES, '--out', 'runs/killed', '--every', 2
    resumed = place/'runs'/'killed'
    for last in KILLS: assert killed(*words, *['--resume']*resumed.exists(), cwd=place, last=last) == -signal.SIGKILL
    said = command(*words, '--resume', cwd=place)
    assert said.returncode == 0 and 'Loaded stage1_1' in said.stdout and 'Loaded stage2' in said.stdout, said.stderr
    assert said.stderr == '' and (resumed/'model'/'model.json').exists()
    check_same_run(resumed, run)


@pytest.fixture
def begun(run, place, monkeypatch):
    "A run folder that was killed right after it began; we are where `place` is."
    monkeypatch.chdir(place)
    shutil.rmtree('runs/begun', ignore_errors=True)
    Path('runs/begun').mkdir()
    shutil.copy(run/'run.json', 'runs/begun')
    yield Path('runs/begun')
    assert [o.name for o in Path('runs/begun').iterdir()] == ['run.json']


def refusal(capsys, *words):
    "What the command says, in this process, when it refuses."
    assert main(words) == 2
    return capsys.readouterr().err


def test_an_unfinished_run_is_not_overwritten(begun, capsys): assert '--resume' in refusal(capsys, *TWO_STAGES, '--out', begun)


def test_another_run_is_not_continued(begun, capsys):
    said = refusal(capsys, *TWO_STAGES, '--seed', 43, '--lr', .01, '--out', begun, '--resume')
    assert 'lr: 0.0003 then, 0.01 now' in said and 'seed: 42 then, 43 now' in said


def test_other_data_are_not_continued(begun, capsys):
    "The same words, but a cell has gone."
    shutil.copytree('data/drawn-sample', 'other/sample')
    min(Path('other/sample').rglob('*.png')).unlink()
    assert 'data:' in refusal(capsys, 'train', 'other/sample', *TWO_STAGES[2:], '--out', begun, '--resume')


# ---- a closer look

def told(capsys, *words):
    "What the command says, in this process, when all is well."
    assert main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_evaluate_adds_and_loses_nothing(run, place, monkeypatch):
    from malaria_fastai.extra.robustness import stress_test
    from malaria_fastai.extra.crossval import runs_table
    from malaria_fastai.run import evaluate_run
    monkeypatch.chdir(place)
    before = {o.name: o.read_bytes() for o in run.iterdir() if o.is_file()}
    evaluate_run('runs/a', out='runs/closer', look=partial(stress_test, n=20, kinds=['jpeg', 'scale']), draws=100)
    then,now = (json.loads((o/'metrics.json').read_text('utf-8')) for o in (run, place/'runs'/'closer'))
    assert {k: now[k] for k in then} == then and set(now) - set(then) == {'examined', 'robustness', 'shortcut', 'tta'}
    assert {o.name: o.read_bytes() for o in run.iterdir() if o.is_file()} == before
    rows = runs_table('runs/closer', parts=('test', 'eight views')).set_index('part')
    assert rows.n.nunique() == 1 and rows.accuracy['eight views'].startswith(f"{now['tta']['averaged']['accuracy']:.3f} (")
    table = pd.read_csv('runs/closer/robustness.csv')
    assert table.corruption.drop_duplicates().tolist() == ['none', 'jpeg', 'scale'] and len(table) == 11 and (table.n == 20).all()
    for k in ('sensitivity', 'specificity'): np.testing.assert_allclose(table[f'{k}_change'], table[k] - table[k][0])
    assert all(o in Path('runs/closer/report.html').read_text('utf-8') for o in ('Robustness', 'Shortcuts', 'Eight views'))


def test_the_mean_of_eight_views_is_that(run, place, monkeypatch):
    "Against the same network asked eight times by hand."
    from malaria_fastai.all import load_learner
    from malaria_fastai.run import eight_views, probabilities
    from PIL import Image
    monkeypatch.chdir(place)
    learn,preds = load_learner(run/'model'),pd.read_csv(run/'predictions.csv')
    test = preds[preds.split == 'test'][:12].reset_index(drop=True)
    root,small = place/'data'/'drawn-sample',dict(size=(32, 32), resample=Image.Resampling.BILINEAR)
    pictures = [np.asarray(Image.open(root/o).convert('RGB').resize(**small)) for o in test.path]
    views = [[np.rot90(x[:, ::flip], k) for x in pictures] for k in range(4) for flip in (1, -1)]
    p = np.mean([probabilities(learn, o, 'Parasitized') for o in views], 0)
    found = eight_views(learn, root, test, 'Parasitized', draws=20)
    assert abs(found['averaged']['brier'] - np.mean((p - (test.label == 'Parasitized'))**2)) < 1e-5
    assert abs(found['plain']['brier'] - np.mean((test.p - (test.label == 'Parasitized'))**2)) < 1e-5


def test_another_set_has_a_block_of_its_own_without_known_patients(run, place, capsys, monkeypatch):
    "The drawn sample whole: the run saw 120 of its 720 cells. The closer look that follows has a test of its own."
    from malaria_fastai.cells import read_cells
    monkeypatch.chdir(place)
    examined = []
    monkeypatch.setattr(study, 'examine_run', lambda folder, draws: examined.append(folder))
    then = json.loads((run/'metrics.json').read_text('utf-8'))
    split = pd.read_csv(run/'split.csv')
    known,cells = set(split.patient[split.split != 'test']),read_cells(place/'data'/'drawn-sample', progress=False)
    said = told(capsys, 'evaluate', 'runs/a', '--data', 'sample', '--corrupt', 0)
    left_out = int(cells.patient.isin(known).sum())
    assert f'{left_out} of 720 cells are left out' in said
    own,now = (json.loads((o/'metrics.json').read_text('utf-8')) for o in (run/'on_sample', run))
    assert own['test']['n'] == 720 - left_out == now['test on sample']['n'] and own['valid'] == then['valid']
    assert examined == [Path('runs/a/on_sample')]
    assert {k: now[k] for k in then} == then

def test_a_set_that_the_network_never_saw_is_judged_whole(run, place, capsys):
    from malaria_fastai.cells import read_cells
    root = place/'data'/'drawn-sample'
    cells = read_cells(root, progress=False)
    capsys.readouterr()
    nothing_known = pd.read_csv(run/'split.csv').head(0)
    judged = study._unseen(study.load_learner(run/'model'), root, cells.head(4), nothing_known, 'sample', 'Parasitized')
    assert len(judged)==4 and 'left out' not in capsys.readouterr().out

def test_another_set_of_other_classes_or_known_patients_is_refused(run, place, capsys, monkeypatch):
    from PIL import Image
    monkeypatch.chdir(place)
    Path('cats/cat').mkdir(parents=True), Path('cats/dog').mkdir()
    for o in ('cat/1.png', 'dog/2.png'): Image.new('RGB', (40, 40), 'red' if 'c' in o else 'blue').save(f'cats/{o}')
    assert 'cells of cat, dog; this network knows Parasitized, Uninfected' in refusal(capsys, 'evaluate', 'runs/a', '--data', 'cats')
    split = pd.read_csv(run/'split.csv')
    for path in split.path[split.split == 'train']:
        Path('seen', path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path('data/drawn-sample', path), Path('seen', path))
    assert 'trained on or tuned by' in refusal(capsys, 'evaluate', 'runs/a', '--data', 'seen')
    assert 'not a run' in refusal(capsys, 'evaluate', 'cats')


def test_review_of_a_cross_validation(run, place, capsys, monkeypatch):
    "Wrong labels planted among drawn cells come first in the list; a verdict stays; neither one run nor folds at random are reviewed."
    from malaria_fastai.cells import read_cells
    monkeypatch.chdir(place)
    root = place/'data'/'drawn-sample'
    cells = read_cells(root, progress=False)
    true,rng = cells.label == 'Parasitized',np.random.default_rng(0)
    wrong = pd.Series(cells.index.isin(rng.choice(cells.index[true], 20, replace=False)))
    p = np.where(true ^ wrong, .9, .1) + rng.uniform(-.05, .05, len(cells)) # what a network would say that is right about every cell but 20
    preds = cells[['path', 'label', 'patient']].assign(split='test', disputed=wrong, pred=np.where(p >= .5, 'Parasitized', 'Uninfected'), p=p,
                                                       fold=pd.factorize(cells.patient)[0] % 5)
    folder = place/'runs'/'cv'
    folder.mkdir()
    preds.to_csv(folder/'predictions.csv', index=False)
    found = json.loads((run/'metrics.json').read_text('utf-8'))
    (folder/'metrics.json').write_text(json.dumps(found | dict(split='patient', folds=5)))
    said = told(capsys, 'review', 'runs/cv', 'sample', '--out', 'look', '-k', 30)
    assert '20 labels of 720 are disputed already; AUC of the list 1.000' in said and 'first 20: 20 of them (100%), recall 100%' in said
    assert pd.read_csv('look/review.csv').disputed[:20].all() and {o.name for o in Path('look').glob('*.png')} == {'sheet_001.png', 'sheet_002.png'}
    asked = pd.read_csv('look/verdicts.csv', dtype=str, keep_default_na=False)
    asked.loc[0, 'verdict'] = 'wrong'
    asked.to_csv('look/verdicts.csv', index=False)
    told(capsys, 'review', 'runs/cv', 'sample', '--out', 'look', '-k', 30)
    assert (pd.read_csv('look/verdicts.csv', dtype=str, keep_default_na=False).verdict == 'wrong').sum() == 1
    assert 'no cross-validation by patient' in refusal(capsys, 'review', 'runs/a', 'sample')
    (folder/'metrics.json').write_text(json.dumps(found | dict(split='random', folds=5)))
    assert 'no cross-validation by patient' in refusal(capsys, 'review', 'runs/cv', 'sample')


WRONG = [
    (['train', 'nowhere', '--out', 'x'], 'nowhere'),
    (['train', 'smaple', '--out', 'x'], 'did you mean sample'),
    (['train', 'sample', '--arch', 'resnet81', '--out', 'x', '--pretrained', 'no'], 'did you mean'),
    (['train', 'sample', '--split', 'patients', '--out', 'x'], 'patient'),
    (['train', 'sample', '--split', 'folder', '--out', 'x'], 'folder'),
    (['train', 'sample', '--epochs', '0', '--finetune-epochs', '0', '--out', 'x'], 'nothing would be trained'),
    (['train', 'sample', '--size', '-3', '--out', 'x'], '--size'),
    (['train', 'sample', '--pretrained', 'maybe', '--out', 'x'], 'maybe'),
    (['train', 'sample'], '--out'),
    (['data', 'nowhere'], 'nowhere'),
    (['fly'], 'fly')]


@pytest.mark.parametrize('words,word', WRONG, ids=[' '.join(o[0][:4]) for o in WRONG])
def test_wrong_input_ends_in_words(words, word, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    try: status = main(words)
    except SystemExit as e: status = e.code
    said = capsys.readouterr().err
    assert status == 2 and word in said and 'Traceback' not in said
    lines = [o for o in re.split('[\r\n]', said) if o.strip() and '%|' not in o] # without the progress bar
    assert len(lines) == 1 or said.startswith('usage:')


def test_a_split_by_patient_needs_patients(place, capsys, monkeypatch):
    "Pictures without patients in their names are never taken for one patient each."
    from PIL import Image
    for label in ('cat', 'dog'):
        for i in range(12):
            (place/'pets'/label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng([i, len(label), ord(label[0])]).integers(0, 255, (40, 40, 3), np.uint8)).save(place/'pets'/label/f'{i}.png')
    monkeypatch.chdir(place)
    assert 'patient' in refusal(capsys, 'train', 'pets', '--split', 'patient', '--positive', 'dog', '--out', 'runs/pets')


def test_the_installed_command_describes_data(place):
    "As a shell finds it, in a process of its own."
    installed = shutil.which('malaria-fastai', path=str(Path(sys.executable).parent))
    said = subprocess.run([installed, 'data', 'sample'], cwd=place, env=ENV, capture_output=True, text=True, timeout=100)
    assert said.returncode == 0 and '720' in said.stdout and 'Thumbs.db' in said.stdout, said.stderr


SAID = dict(
    train=('train sample --size 40 --no-cache --resume --out x', dict(source='sample', size=40, cache=False, resume=True, out='x', arch=None)),
    recipe=('train sample --recipe squeezenet1_1 --pretrained no --size 40 --out x',
            dict(recipe='squeezenet1_1', pretrained='no', cache=True, resume=False, split=None, size=40)),
    crossval=('crossval sample --split random --folds 3 --epochs 2 --out x', dict(split='random', folds=3, epochs=2, cache=True, bs=None)),
    compare=('compare sample --recipes best,colour_floor --splits patient --limit 50 --out x',
             dict(recipes=('best', 'colour_floor'), splits=('patient',), limit=50, budget=None)),
    evaluate=('evaluate runs/a --data sample --corrupt 3 --on-bad skip', dict(args=('runs/a', 'sample', None, 3), on_bad='skip')))


@pytest.mark.parametrize('case', SAID)
def test_the_words_of_the_command_reach_the_function(case, tmp_path, monkeypatch):
    words,expected = SAID[case]
    got = {}
    def record(*args, **kwargs):
        got.update(kwargs, args=tuple(getattr(word, 'keywords', {}).get('n', word) for word in args)) # how many cells are damaged
        return tmp_path
    for room,name in ((study, 'train'), (study, 'evaluate_run'), (crossval, 'cross_validate'), (compare, 'compare')): monkeypatch.setattr(room, name, record)
    monkeypatch.setattr(study, 'summary', str)
    monkeypatch.chdir(tmp_path)
    Path('x').mkdir()
    Path('x/results.md').write_text('')
    assert main(words.split()) == 0
    assert {k: got.get(k) for k in expected} == expected
    assert got['command'] == f'malaria-fastai {words}'.replace(' --resume', '')


def test_help_is_quick_and_needs_no_torch():
    code = "import sys; from malaria_fastai.cli import parser; parser().format_help(), parser('train').format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'


@pytest.fixture(scope='module')
def few_real(nih_root, tmp_path_factory):
    "Every thirtieth real cell, of all 90 patients."
    few = tmp_path_factory.mktemp('few')/'cell_images'
    for o in sorted(nih_root.rglob('*.png'))[::30]:
        (few/o.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(o, few/o.parent.name)
    return few


@pytest.mark.real
def test_real_cells_in_one_command(few_real, place, record_property):
    "A short training from random weights on a few of the cells, judged on patients it never saw. How well it ends is shown."
    words = '--size 32 --bs 16 --epochs 3 --finetune-epochs 0 --pretrained no --out runs/real'.split()
    said = command('train', few_real, *words, cwd=place)
    assert said.returncode == 0, said.stderr
    found = json.loads((place/'runs'/'real'/'metrics.json').read_text('utf-8'))
    test,preds = found['test'],pd.read_csv(place/'runs'/'real'/'predictions.csv').query('split == "test"')
    assert found['leakage']['test']['patient'] == 0 and not found['data']['drawn']
    assert test['n'] == len(preds) and test['auc'] == pytest.approx(roc_auc_score(preds.label == 'Parasitized', preds.p))
    record_property('shown', f"three short epochs on few real cells: AUC {test['auc']:.3f}, accuracy {test['accuracy']:.3f} (nothing is asserted)")
