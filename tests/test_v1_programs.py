"""Programs in the manner of 2018 to 2020, run to their end: each in a copy of `v1_programs` that `malaria-fastai port` has changed.

They are our own, written after a count of the words that public programs of that time use, and hold the numbers that fastai 1's
rules give. Three build batches only and run in `make test`; the others train and are slow."""
import re,shutil
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck,given,settings
from hypothesis import strategies as st
from malaria_fastai.extra.port import port

PROGRAMS = sorted((Path(__file__).parent/'v1_programs').glob('*.py'))

def fill(root, sample):
    "The folders of the programs: classes; parts with classes; pictures beside a table."
    for label,name in enumerate(('Parasitized', 'Uninfected')):
        files = sorted(sample.glob(f'{name}/*.png'))[:240:5]
        for i,file in enumerate(files):
            if i >= 40: places = [f'parts/test/{label}{i}.png', f'kaggle/test/t{label}{i}.png'] if i < 46 else []
            else: places = [f'cells/{name}/{file.name}', f"parts/{'train' if i < 30 else 'valid'}/{name}/{file.name}", f'kaggle/train/{label}{i:03}x.png']
            for place in places:
                (root/place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, root/place)
    names = [f'{label}{i:03}x' for i in range(40) for label in (1, 0)]
    table = pd.DataFrame(dict(id=names, diagnosis=[int(o[0]) for o in names], is_valid=[i%5==0 for i in range(80)]))
    table.to_csv(root/'kaggle/train.csv', index=False)
    test = sorted(o.stem for o in (root/'kaggle/test').glob('*.png'))
    pd.DataFrame(dict(id=np.random.RandomState(0).permutation(test), diagnosis=0)).to_csv(root/'kaggle/sample_submission.csv', index=False)

@pytest.fixture(scope='module')
def folders(sample_root, tmp_path_factory):
    root = tmp_path_factory.mktemp('programs')
    fill(root/'data', sample_root)
    return root

@pytest.mark.parametrize('program', [pytest.param(o, marks=[] if 'quick' in o.stem else [pytest.mark.slow], id=o.stem) for o in PROGRAMS])
def test_it_runs_to_its_end(program, folders, tmp_path, monkeypatch, capsys):
    shutil.copytree(folders/'data', tmp_path/'data')
    shutil.copyfile(program, tmp_path/program.name)
    monkeypatch.chdir(tmp_path)
    new = port(tmp_path/program.name)
    source = new.read_text(encoding='utf-8')
    assert 'from fastai' not in source and source.count('from malaria_fastai.all import *')==1
    assert 'is a word of fastai v1' not in source # port says of none of them that it would stop
    exec(compile(source, program.name, 'exec'), dict(__name__='__main__'))
    assert 'has no meaning here' not in capsys.readouterr().out

def test_there_are_twenty_with_six_to_twenty_words_each():
    from malaria_fastai.v1 import v1_words
    words = {word for word,of in v1_words()}
    counts = {o.stem: len({*re.findall(r'\w+', o.read_text(encoding='utf-8'))} & words) for o in PROGRAMS}
    assert len(counts)>=20 and min(counts.values())>=6, counts

def test_there_is_a_training_in_most_of_them():
    assert sum('.fit' in o.read_text(encoding='utf-8') for o in PROGRAMS)>=18

# ---- port reads what Python 3 does not

STAR = 'from malaria_fastai.all import *'
LINES = ['%matplotlib inline', '!ls data', '%%time', 'print "old"', 'exec "x = 1"', 'x = 0777L', 'learn.fit(1)', 'path = untar_data(URLs.PETS)', "text = '''a", "learn.split(f)", "b'''", 'y = f(1, \\', '   learn.split(f))',
         'data.batch_stats()', '# untar_data', "s = 'untar_data'", '    interp.plot_multi_top_losses()', 'if True:', "s = 'unfinished", 'é = "ß"', '']

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.sampled_from(LINES), min_size=1, max_size=12))
def test_port_adds_comments_and_changes_nothing_else(lines, tmp_path, capsys):
    file = tmp_path/'old.py'
    (tmp_path/'old_ported.py').unlink(missing_ok=True)
    file.write_text('\n'.join(lines), encoding='utf-8')
    new = port(file).read_text(encoding='utf-8').split('\n')
    assert new[0]==STAR and [o for o in new[1:] if 'is a word of fastai v1' not in o]==lines
    for above,line in zip(new, new[1:]): # a line that goes on is followed by its rest, not by a comment
        assert not (above.endswith('\\') and 'fastai v1' in line)

def test_port_never_overwrites_and_leaves_the_old_program(tmp_path, capsys):
    file = tmp_path/'old.py'
    file.write_text('import fastai\nfrom fastai.vision import *\ndef mixup(x): return x\nmixup(1)\nopen_mask(f)\n')
    new = port(file)
    assert new.name=='old_ported.py' and new.read_text().split('\n')[:2]==['import fastai', STAR] and new.read_text().count('fastai v1')==1
    said = capsys.readouterr().out
    assert 'segmentation is out of scope' in said and str(tmp_path) not in said
    with pytest.raises(FileExistsError, match='nothing is overwritten'): port(file)
    with pytest.raises(FileNotFoundError): port(tmp_path/'none.py')
    assert 'fastai.vision' in file.read_text()

LINE_BY_LINE = { # what stands in a program, and what is written; a hint is a comment above
    'from fastai.vision import *; from fastai.metrics import error_rate; import os': STAR + '; import os', 'import fastai; from fastai import *': 'import fastai; pass',
    'import os; from fastai.vision import *\nfrom fastai.vision import *; x = 1': f'import os; pass\n{STAR}; x = 1', '# from fastai import *; from fastai.vision import *': None,
    'def f(normalize=True): return normalize': None, 'x = np.random.uniform(0, 1)': None, 'self.learn.fit(1)': None, 'il.label_from_df(label_cls=None)': None,
    'from fastai.vision import cnn_learner as cl': f'{STAR}; cl = cnn_learner'}
STOPS = {'SegmentationItemList.from_folder(p)': 'SegmentationItemList', 'defaults.device = 1': 'defaults', 'learn.callback_fns.append(x)': 'Learner.callback_fns', 'learn.recorder.format_stats(x)': 'Recorder.format_stats',
    'for x in learn.data.test_dl: pass': 'DataBunch.test_dl', 'URLs.PETS': 'URLs', 'il.label_from_df(label_cls=FloatList)': 'FloatList', 'x = (ImageList.from_folder(p)\n    .split_none())': 'ImageList.split_none'}

@pytest.mark.parametrize('line', [*LINE_BY_LINE, *STOPS])
def test_port_line_by_line(line, tmp_path, capsys):
    file = tmp_path/'old.py'
    file.write_text(line)
    new = port(file).read_text().removeprefix(f'{STAR}\n')
    if line in LINE_BY_LINE: assert new==(LINE_BY_LINE[line] or line)
    else: assert f'# {STOPS[line]} is a word of fastai v1: ' in new and [o for o in new.split('\n') if ' is a word of fastai v1: ' not in o]==line.split('\n')
