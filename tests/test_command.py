"""What the command refuses, and how: every word, in this process, before anything is read. Silent faults have their members here.

A refusal is one line that names the thing, and exit status 2. What may not happen is watched: no picture is read, nothing is written."""
import itertools
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from properties import cases

from malaria_fastai import run as study
from malaria_fastai.cli import main
from malaria_fastai.evaluate import BadPredictions, choose_threshold, evaluate
from malaria_fastai.export import pack
from malaria_fastai.extra import crossval
from malaria_fastai.extra.crossval import cross_validate
from malaria_fastai.files import check_output
from malaria_fastai.predict import Predictor, predict_files, read_folder, read_threshold
from malaria_fastai.recipes import Recipe, check_words
from malaria_fastai.run import own_record, train
from test_export import needs_onnx, small_run
from test_run import ENV, MAIN, TWO_STAGES


@pytest.fixture(scope='module')
def sample(sample_root, tmp_path_factory):
    "A copy of the drawn sample that may be spoilt."
    return Path(shutil.copytree(sample_root, tmp_path_factory.mktemp('data')/'cells'))


@pytest.fixture(scope='module')
def run(sample_root, made_once, tmp_path_factory):
    "A small run that is packed; nobody changes it."
    out = Path(shutil.copytree(made_once('small_run', partial(small_run, sample_root)), tmp_path_factory.mktemp('command')/'run'))
    pack(out)
    return out


def refused(capsys, *words):
    "What the command says when it refuses."
    capsys.readouterr()
    try: status = main(words)
    except SystemExit as end: status = end.code
    said = capsys.readouterr().err.rpartition('\r')[2].lstrip() # without the progress bar
    assert status == 2 and 'Traceback' not in said
    assert said.startswith(('malaria-fastai: ', 'usage: ')) and (said.startswith('usage') or said.count('\n') == 1), said
    return said


def everything(folder): return {path: path.is_file() and path.read_bytes() for path in Path(folder).rglob('*')}


# ---- arguments

LONG = [ # Arguments that are refused, whatever the word
    '--lr 0', '--lr -1', '--lr nan', '--lr inf', '--lr 11', '--bs 1', '--bs 0', '--bs -3', '--bs 2.5', '--size 0', '--size 7', '--size 9999', '--size x',
    '--epochs -1', '--epochs 1.5', '--finetune-epochs -1', '--epochs 0 --finetune-epochs 0', '--seed -1', '--seed 4294967296', '--limit 0', '--limit 9',
    '--split fold:5', '--split sideways', '--split patient:x', '--every 0', '--every batch', '--arch resnet81', '--recipe bets', '--pretrained maybe', '--on-bad shrug']


@pytest.fixture
def nothing_is_read(monkeypatch):
    "Reading a data set, or training, is a failure."
    def read(*args, **kwargs): raise AssertionError('the data were read')
    for name in ('locate', 'read_cells'): monkeypatch.setattr(study, name, read)


@pytest.mark.parametrize('words', LONG)
def test_an_argument_out_of_range_is_refused_before_anything_is_read(words, tmp_path, monkeypatch, capsys, nothing_is_read):
    monkeypatch.chdir(tmp_path)
    name = words.split()[-2].strip('-').replace('-', '_')
    for word in ('train', 'crossval'):
        if word == 'crossval' and 'split' in words: continue
        said = refused(capsys, word, 'sample', '--out', 'x', *words.split())
        assert name in said.replace('-', '_') or name in ('arch', 'recipe', 'finetune_epochs'), said
    assert not list(tmp_path.iterdir())


OTHERS = ['crossval sample --out x --folds 1', 'crossval sample --out x --folds 0', 'compare sample --out x --recipes ,', 'compare sample --out x --recipes best,bets', 'evaluate x --corrupt -1',
          'compare sample --out x --recipes best --splits ,', 'predict RUN FILE --bs 0', 'predict RUN FILE --engine cat', 'predict RUN FILE --device gpu', 'predict RUN FILE --threshold .1',
          'predict RUN FILE --threshold raw:2', 'predict RUN FILE --threshold raw:nan', 'predict RUN FILE --device cuda --engine onnx', 'export RUN --threshold .3', 'export RUN --threshold cooked:.3']


@pytest.mark.parametrize('words', OTHERS)
def test_other_words_refuse_too(words, run, tmp_path, monkeypatch, capsys, nothing_is_read):
    (tmp_path/'picture.png').write_bytes(b'')
    monkeypatch.chdir(tmp_path)
    before = everything(run)
    refused(capsys, *words.replace('RUN', str(run)).replace('FILE', 'picture.png').split())
    assert everything(run) == before and [path.name for path in tmp_path.iterdir()] == ['picture.png']


# What each argument allows, in words of this test: a value is refused exactly if it is outside
INSIDE = dict(lr=lambda x: 1e-8 <= x <= 10, bs=lambda x: 2 <= x <= 65536, size=lambda x: 8 <= x <= 4096, epochs=lambda x: x >= 0, finetune_epochs=lambda x: x >= 0, seed=lambda x: 0 <= x < 2**32,
              limit=lambda x: x >= 10, draws=lambda x: x >= 1)


class Reached(Exception): "The data would have been read."


@pytest.mark.door
@given(st.sampled_from(sorted(INSIDE)), st.one_of(st.integers(-3, 300), st.integers(-2**40, 2**40), st.floats(), st.booleans(), st.text(max_size=3)))
@cases(60)
def test_no_argument_out_of_range_reaches_the_training(name, value):
    whole = isinstance(value, int) and not isinstance(value, bool)
    fine = (whole or name == 'lr' and isinstance(value, float)) and INSIDE[name](value)
    def read(*args, **kwargs): raise Reached
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, 'locate', read)
        for function in (train, cross_validate):
            with pytest.raises(Reached if fine else ValueError): function('sample', 'never-made', **{name: value})
    assert not Path('never-made').exists()


@pytest.mark.door
@given(st.sampled_from(['lr', 'finetune_lr', 'wd', 'ps', 'bs', 'size', 'epochs', 'patience', 'parts', 'head', 'opt', 'resize', 'best']), st.one_of(st.floats(), st.integers(-9, 99), st.text(max_size=5), st.tuples(st.floats())))
@cases(60)
def test_a_record_takes_a_value_or_refuses_it_in_a_sentence(name, value):
    try: made = Recipe('x', '', 'resnet18', **{name: value})
    except ValueError as error: assert str(error).startswith('x: ') and len(str(error)) < 400
    else: assert not isinstance(value, float) or np.isfinite(value) and value >= 0


def test_three_classes_are_refused_before_the_training(sample, tmp_path, monkeypatch, capsys):
    three = Path(shutil.copytree(sample, tmp_path/'three'))
    (three/'Other').mkdir()
    for path in sorted((three/'Uninfected').glob('*.png'))[:20]: path.rename(three/'Other'/path.name)
    monkeypatch.chdir(tmp_path)
    for words in (['train', '--split', 'random'], ['crossval'], ['compare', '--recipes', 'best']):
        said = refused(capsys, words[0], three, '--out', 'x', *words[1:], '--positive', 'Parasitized')
        assert 'found 3: Other, Parasitized, Uninfected' in said
    assert not (tmp_path/'x').exists()


def test_too_small_pictures_are_refused_before_the_first_batch(sample, tmp_path, capsys):
    said = refused(capsys, 'train', sample, '--arch', 'squeezenet1_1', '--size', 10, '--pretrained', 'no', '--out', tmp_path/'x')
    assert 'squeezenet1_1 cannot take pictures of 10 pixels' in said and not (tmp_path/'x'/'run.json').exists()


# ---- where an output may go

def test_an_output_that_is_an_input_is_refused(run, sample, tmp_path, capsys, monkeypatch):
    "Files, folders, members of folders, patterns and the model; by another name, through a link, and where links are no inputs."
    monkeypatch.chdir(tmp_path)
    cells = Path(shutil.copytree(sample, 'cells'))
    one = sorted(cells.rglob('*.png'))[0]
    Path('elsewhere.csv').write_text('mine')
    Path('link.csv').symlink_to('elsewhere.csv')
    Path('nowhere.csv').symlink_to('gone.csv')
    Path('door').symlink_to(cells)
    before = everything(tmp_path) | everything(run)
    for paths,out in (([one], one), ([one], cells/'Uninfected'/'..'/one.parent.name/one.name), ([cells], cells/'answers.csv'), ([cells], Path('door')/'answers.csv'),
                      ([f'{cells}/*/*.png'], one), ([cells], cells), ([one], 'link.csv'), ([one], 'nowhere.csv'), ([one], '/dev/null'), ([one], run/'model'/'model.json')):
        refused(capsys, 'predict', run, '--engine', 'torch', '-o', out, '--', *paths)
    assert everything(tmp_path) | everything(run) == before and Path('nowhere.csv').is_symlink()


@pytest.mark.parametrize('words', ['train DATA --out OUT', 'crossval DATA --out OUT', 'compare DATA --recipes best --out OUT', 'review RUN DATA --out OUT', 'evaluate RUN --data DATA --out OUT'])
def test_a_run_among_the_pictures_is_refused(words, run, sample, tmp_path, capsys):
    (tmp_path/'door').symlink_to(sample)
    (tmp_path/'file').write_text('mine')
    for out in (sample, sample/'runs', sample/'Parasitized'/'x', tmp_path/'door'/'runs', tmp_path/'file'):
        before = everything(sample)
        asked = words.replace('RUN', str(run)).replace('DATA', str(sample)).replace('OUT', str(out)).split()
        refused(capsys, *asked)
        assert everything(sample) == before and (tmp_path/'file').read_text() == 'mine'


def test_a_place_that_cannot_be_written_is_said_first(sample, tmp_path, capsys, monkeypatch, nothing_is_read):
    monkeypatch.setattr(os, 'access', lambda path, *args, **kwargs: Path(path) != tmp_path)
    for word in ('train', 'crossval'): assert 'nothing can be written' in refused(capsys, word, sample, '--out', tmp_path/'run')
    with pytest.raises(PermissionError, match='nothing can be written'): check_output(tmp_path/'a'/'b.csv')


# ---- what is not there, and who reads no more

def piped(*words, cwd, lines=0):
    "A command into a pipe that is closed after so many lines: what was read, what was said, and its exit status."
    done = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', MAIN, *map(str, words)], cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    got = [done.stdout.readline() for _ in range(lines)]
    done.stdout.close()
    said = done.stderr.read()
    return got,said,done.wait(60)


def test_a_closed_pipe_is_no_fault(tmp_path):
    for words in (['recipes'], ['train', '--help']): assert piped(*words, cwd=tmp_path)[1:] == ('', 0)


@pytest.mark.slow
def test_a_closed_pipe_ends_a_table(run, sample, tmp_path):
    got,said,status = piped('predict', run, sample, '--engine', 'torch', '--bs', 8, cwd=tmp_path, lines=2)
    assert got[0] == 'path,pred,p,p_is,decision,reason\n' and status == 0 and 'Traceback' not in said and 'Error' not in said


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*args, **kwargs): raise KeyboardInterrupt
    for room,name in ((study, 'train'), (crossval, 'cross_validate')): monkeypatch.setattr(room, name, stopped)
    for word in ('train', 'crossval'):
        assert main([word, 'sample', '--out', tmp_path/'x']) == 130
        assert capsys.readouterr().err == 'malaria-fastai: stopped; the same command with --resume goes on\n'


def test_a_number_that_is_none_ends_in_a_sentence(tmp_path, monkeypatch, capsys):
    def diverged(*args, **kwargs): raise FloatingPointError('the loss is nan in epoch 0')
    monkeypatch.setattr(study, 'train', diverged)
    assert 'the loss is nan' in refused(capsys, 'train', 'sample', '--out', tmp_path/'x')


# ---- a run that goes on

def test_a_finished_run_and_other_pictures(sample, tmp_path, capsys):
    "More, fewer, changed, renamed pictures, another label: each is another run. The same pictures elsewhere are the same."
    words = 'train', '--recipe', 'colour_floor', '--split', 'random', '--limit', '400', '--resume'
    def again(data): return main([words[0], str(data), *words[1:], '--out', str(tmp_path/'run')])
    data = Path(shutil.copytree(sample, tmp_path/'one'/'cells'))
    assert again(data) == 0
    before = everything(tmp_path/'run')
    assert again(shutil.copytree(data, tmp_path/'two'/'cells')) == 0 and 'nothing is left to do' in capsys.readouterr().out
    kept = {path for path in pd.read_csv(tmp_path/'run'/'predictions.csv').path}
    one,other = (data/path for path in sorted(kept)[:2])
    def fewer(): one.unlink()
    def changed(): shutil.copy(other, one)
    def renamed(): one.rename(one.with_name('C1_new_name.png'))
    def label():
        to = {'Parasitized': 'Uninfected', 'Uninfected': 'Parasitized'}[one.parent.name]
        one.rename(data/to/one.name)
    for change in (fewer, renamed, label):
        shutil.rmtree(data)
        shutil.copytree(sample, data)
        change()
        assert again(data) == 2, change
        assert 'data: ' in capsys.readouterr().err
    assert everything(tmp_path/'run') == before


# ---- which p, which threshold

def test_a_threshold_means_the_same_cells_on_either_p(run, sample_root):
    "Chosen on raw p, on the calibrated p of a table, or by `choose_threshold`: the same decisions. A bare number is refused."
    preds = pd.read_csv(run/'predictions.csv').assign(p_is='raw')
    valid = preds[preds.split == 'valid']
    temperature = read_folder(run)[1]['temperature']
    files = sorted(sample_root.rglob('*.png'))[::8]
    plain = Predictor(run, 'torch')(files)
    odds = np.log(plain.p/(1-plain.p))
    raw = 1/(1+np.exp(-odds*temperature))
    assert (plain.p_is == 'calibrated').all() and abs(temperature-1) > .05
    at = float(np.sort(raw.dropna())[len(raw)//4:][:2].mean())
    by_raw = Predictor(run, 'torch', threshold=f'raw:{at!r}')(files)
    assert ((by_raw.pred == 'Parasitized') == (raw >= at))[plain.p.notna()].all()
    calibrated = float(1/(1+np.exp(-np.log(at/(1-at))/temperature)))
    assert Predictor(run, 'torch', threshold=f'calibrated:{calibrated!r}')(files).equals(by_raw)
    chosen = choose_threshold(valid, 'Parasitized', sensitivity=.9)
    assert read_threshold(chosen)['p_is'] == 'raw'
    kept = Predictor(run, 'torch', threshold=chosen)
    assert ((kept(files).pred == 'Parasitized') == (raw >= float(chosen.value)))[plain.p.notna()].all()
    assert kept.facts['unsure']['low'] <= kept.facts['threshold'] <= kept.facts['unsure']['high']
    with pytest.raises(ValueError, match='belongs to one p'): Predictor(run, 'torch', threshold=at)


def test_export_keeps_a_choice_and_says_where_it_came_from(run, tmp_path, capsys):
    new = Path(shutil.copytree(run, tmp_path/'run'))
    assert main(['export', str(new), '--threshold', 'raw:0.2']) == 0
    said = read_folder(new)[1]
    assert said['threshold_from'] == dict(p_is='raw', value=.2) and said['unsure']['low'] <= said['threshold'] <= said['unsure']['high']
    assert main(['export', str(new)]) == 0 and read_folder(new)[1]['threshold'] == said['threshold']
    card = (new/'model'/'MODEL_CARD.md').read_text('utf-8')
    assert f"{said['threshold']:.3f}" in card and 'calibrated' in card and 'raw:0.2' in card.replace('raw p', 'raw:')
    capsys.readouterr()


def test_a_table_of_answers_is_no_truth(run, sample_root, tmp_path):
    predict_files(Predictor(run, 'torch'), sample_root, tmp_path/'answers.csv', quiet=True)
    answers = pd.read_csv(tmp_path/'answers.csv')
    for table in (answers, answers.assign(label=answers.pred), answers.rename(columns=dict(pred='label')).dropna(subset='label')):
        with pytest.raises(BadPredictions): evaluate(table.dropna(subset='p'), 'Parasitized', draws=10)
    assert main(['evaluate', str(tmp_path/'answers.csv')]) == 2


# ---- of which pictures

def test_only_known_pictures_are_counted_against_a_known_set(sample):
    from malaria_fastai.cells import read_cells
    cells = read_cells(sample, progress=False)
    assert own_record(sample, cells) is None and own_record('cell_images.zip', cells) is None # drawn, though its classes have the names
    assert len(cells) == 720
    assert own_record('sample', cells).name == 'sample'
    xrays = cells.assign(label=cells.label.map(dict(Parasitized='PNEUMONIA', Uninfected='NORMAL')))
    assert own_record('mine', xrays) is None and own_record('data/chest_xray.zip', xrays).name == 'cxr'
    assert not study.has_no_up(xrays.label) and study.has_no_up(cells.label)


def test_a_table_on_a_screen_and_in_a_pipe(run, sample_root, capsys, monkeypatch):
    files = [str(path) for path in sorted(sample_root.rglob('*.png'))[::180]]
    assert main(['predict', str(run), '--engine', 'torch', *files]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == 'path,pred,p,p_is,decision,reason' and len(rows) == len(files) + 1
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    assert main(['predict', str(run), '--engine', 'torch', *files]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(rows) and shown[0].split() == ['decision', 'p', 'path', 'reason'] and all(path in line for path,line in zip(files, shown[1:]))


# ---- where it computes

def test_a_gpu_is_used_where_there_is_one(run, tmp_path, monkeypatch):
    "Torch there unless told otherwise; the other engines stay on the processor."
    from malaria_fastai import predict as P
    asked = []
    monkeypatch.setattr(P, '_has_gpu', lambda: True)
    monkeypatch.setattr(P, '_picture_net', lambda file, device: asked.append(device) or SimpleNamespace(logits=lambda pixels: np.zeros((len(pixels), 2))))
    assert Predictor(run).engine == 'torch' and Predictor(run, device='cuda:1').engine == 'torch' and asked == ['cuda', 'cuda:1']
    assert Predictor(run, 'torch', device='cpu').device == 'cpu' and asked[-1] == 'cpu'
    with pytest.raises(ValueError, match='only the engine torch'): Predictor(run, 'onnx', device='cuda')
    monkeypatch.setattr(P, '_has_gpu', lambda: False)
    with pytest.raises(ValueError, match='only where there'): Predictor(run, device='cuda')


@needs_onnx
def test_a_wrapped_network_is_refused_before_the_exporter(tmp_path):
    import torch
    from malaria_fastai.cells import Resizing
    from malaria_fastai.backbone import PictureNet
    from malaria_fastai.extra.onnx import write_onnx
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    for wrapped in (torch.nn.DataParallel(net), torch.compile(net), torch.nn.Sequential(torch.nn.DataParallel(net[:1]), *net[1:])):
        with pytest.raises(ValueError): write_onnx(PictureNet(wrapped).eval(), Resizing.of((8, 8)), tmp_path/'model.onnx')
    assert not list(tmp_path.iterdir())


# ---- a closer look

def test_only_what_has_no_up_is_turned(tmp_path, monkeypatch):
    "Eight views of cells, none of X-rays and of a set that nobody knows."
    turned = []
    monkeypatch.setattr(study, 'eight_views', lambda *args: turned.append(args) or {})
    for labels,n in ((['Parasitized', 'Uninfected'], 1), (['NORMAL', 'PNEUMONIA'], 0), (['cat', 'dog'], 0)):
        turned.clear()
        (tmp_path/'metrics.json').write_text(json.dumps(dict(test=dict(threshold=.5))))
        study._look_again(tmp_path, None, tmp_path, pd.DataFrame(dict(label=labels, split='test')), labels[0], 10, None)
        assert len(turned) == n and ('tta' in json.loads((tmp_path/'metrics.json').read_text())) == bool(n)


def test_what_is_not_there_ends_in_a_remedy(run, tmp_path, monkeypatch, capsys):
    "A run that is missing, a training without epochs, a picture without a name: each sentence begins with its subject."
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, 'export', 'missing')
    assert 'missing' in said and ('Check the path' in said or 'name another' in said), said
    for words in (['train', 'sample', '--epochs', '0', '--finetune-epochs', '0', '--out', 'x'], ['predict', run, '']):
        said = refused(capsys, *words).removeprefix('malaria-fastai: ')
        assert said[0] not in ': [' and len(said) > 20, said
