"The one star import, as a program sees it."
import ast,operator,pickle
from copy import copy,deepcopy
from pathlib import Path
import pytest
from malaria_fastai import all as everything
from malaria_fastai.v1 import StandIn,v1_hint,v1_words

ROOT = Path(__file__).resolve().parent.parent
STAR = [o for o in (ROOT/'tools/v1_star_names.txt').read_text(encoding='utf-8').splitlines() if o and o[0]!='#']
STAND_INS = [o for o in everything.__all__ if isinstance(getattr(everything, o), StandIn)]

def modules_of_the_star_import():
    "Each module that all.py imports from, and the names it takes."
    tree = ast.parse((ROOT/'malaria_fastai/all.py').read_text(encoding='utf-8'))
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    return {node.module: [alias.name for alias in node.names] for node in found}

def test_every_room_for_notebooks_is_there():
    rooms = 'backbone cells data datablock evaluate export interpret learner predict recipes report resume run sample source split transforms v1'
    assert sorted(modules_of_the_star_import())==rooms.split()

INTERNAL = dict(v1=['StandIn', 'v1_words'], data=['get_files'], datablock=['Image'], transforms=['V1_TFMS']) # not for users of the module

@pytest.mark.parametrize('module', modules_of_the_star_import())
def test_names_come_from_the_module_that_offers_them(module):
    home = __import__(f'malaria_fastai.{module}', fromlist=['x'])
    for name in modules_of_the_star_import()[module]:
        assert (name in home.__all__)!=(name in INTERNAL.get(module, ())) and name in everything.__all__
        assert getattr(home, name) is getattr(everything, name)

def test_the_words_of_2019_are_there():
    words = 'ImageDataBunch get_transforms cnn_learner ClassificationInterpretation SaveModelCallback models Path plt np accuracy error_rate'.split()
    assert [word for word in words if not hasattr(everything, word)]==[]

# ---- the names of fastai 1

def test_no_name_of_the_old_star_import_is_missing(record_property):
    names = {}
    exec('from malaria_fastai.all import *', names)
    assert len(STAR)==len({*STAR}) and [o for o in STAR if o not in names]==[]
    record_property('shown', f'{len(STAR)} names of the old star import: {len({*STAR}-{*STAND_INS})} work, {len({*STAR} & {*STAND_INS})} hint, 0 are missing')

def test_every_name_is_what_the_table_says():
    kinds = {word: kind for (word,of),(kind,_) in v1_words().items() if not of}
    assert [o for o in STAR if o not in kinds]==[]
    assert [o for o in STAND_INS if kinds[o]=='support']==[]
    assert [o for o in kinds if kinds[o]!='support' and o not in STAND_INS]==[]

def test_a_hint_is_one_line_that_says_what_to_do():
    for (word,of),(kind,now) in v1_words().items():
        said = v1_hint(word, of)
        assert '\n' not in said and word in said and 'fastai v1' in said and said.endswith(now) and len(now)>8, (word, of)
        assert 'not supported' not in said and (kind=='support' or len(now.split())>=2 or '`' in now), said

USES = dict(called=lambda o: o(), called_with=lambda o: o(1, x=2), attribute=lambda o: o.x, subclassed=lambda o: type.__call__(type, 'X', o.__mro_entries__(()), {}),
    indexed=lambda o: o[0], iterated=lambda o: [*o], counted=lambda o: len(o), asked=lambda o: bool(o), compared=lambda o: o==1, ordered=lambda o: o<1,
    added=lambda o: 1+o, divided=lambda o: o/2, contains=lambda o: 1 in o, entered=lambda o: o.__enter__(), changed=lambda o: setattr(o, 'x', 1),
    isinstance=lambda o: isinstance(1, o), issubclass=lambda o: issubclass(int, o), number=float, whole=operator.index)

@pytest.mark.parametrize('use', USES)
def test_a_stand_in_says_so_when_it_is_used(use):
    assert len(STAND_INS)>200
    for word in STAND_INS:
        with pytest.raises((NotImplementedError, AttributeError)) as e: USES[use](getattr(everything, word))
        assert str(e.value)==v1_hint(word)!='', word

@pytest.mark.parametrize('code', ['class Mine(LearnerCallback): pass', 'class Mine(ItemBase, list): pass', 'untar_data(URLs.PETS)',
    'for x in Config: pass', 'defaults.device = "cpu"', 'x = URLs.MNIST', 'if defaults: pass', 'isinstance(1, Category)', 'core.x', 'vision.data.x'])
def test_in_a_program_too(code):
    with pytest.raises((NotImplementedError, AttributeError), match='is a word of fastai v1: '): exec(f'from malaria_fastai.all import *\n{code}', {})

def test_a_name_that_is_only_passed_over_does_no_harm():
    exec('''from malaria_fastai.all import *
from typing import Optional
def f(x:Tensor, y:FloatOrTensor=None, z:Optional[PathOrStr]=None, cb:LearnerCallback=None)->Rank0Tensor: return x
names = {untar_data: 1}
kept = [defaults, DataBunch]
assert f(1)==1 and 'fastai v1' in repr(kept[0]) and not hasattr(defaults, '_repr_html_') and callable(untar_data)''', {})
    for o in (copy, deepcopy, lambda x: pickle.loads(pickle.dumps(x))): assert repr(o(StandIn('doc')))==v1_hint('doc')

def test_no_hint_says_that_the_word_is_there():
    "A row that says `support` is met as an attribute, or by the star import, never as a hint."
    from malaria_fastai.v1 import Picture
    from malaria_fastai.interpret import ClassificationInterpretation
    from malaria_fastai.data import ImageDataBunch
    homes = dict(DataBunch=ImageDataBunch, Learner=everything.Learner, Image=Picture, ClassificationInterpretation=ClassificationInterpretation, Recorder=everything.Recorder)
    made = 'c classes items loss_func train_ds valid_ds data metrics model model_dir opt opt_func path recorder wd x y num_workers device losses lrs metrics_names min_grad_lr val_losses moms'.split() # by an object of it
    assert [(word, of) for (word,of),(kind,_) in v1_words().items() if kind=='support' and of in homes and word not in made and not hasattr(homes[of], word)]==[]

def test_standard_names_are_the_real_ones():
    import math,os,random,re,torch
    from collections import defaultdict
    from functools import partial
    want = dict(math=math, os=os, random=random, re=re, defaultdict=defaultdict, partial=partial, F=torch.nn.functional, Tensor=torch.Tensor, optim=torch.optim, Path=Path, torch=torch)
    assert {o: getattr(everything, o) for o in want}==want

def test_no_standard_name_hides_one_of_ours():
    ours = {name for module,names in modules_of_the_star_import().items() for name in names}
    for name in ours:
        home = next(module for module,names in modules_of_the_star_import().items() if name in names)
        assert getattr(everything, name) is getattr(__import__(f'malaria_fastai.{home}', fromlist=['x']), name)
    public = {name for home in modules_of_the_star_import() for name in __import__(f'malaria_fastai.{home}', fromlist=['x']).__all__}
    stray = {name for name in public & {*everything.__all__} if name not in ours and name not in ('Learner',)}
    assert stray==set() # a name of Python that one of our modules also has would be another thing under one name

def test_the_page_of_2019_has_every_word():
    import json
    page = json.loads((ROOT/'nbs/since_2019.ipynb').read_text(encoding='utf-8'))
    shown = ''.join(line for cell in page['cells'] for o in cell.get('outputs', []) for line in o['data'].get('text/markdown', []))
    assert [row for row in v1_words() if f'<code class="v1">{row[0]}</code>' not in shown]==[] and all(now.replace('|', '\\|') in shown for _,now in v1_words().values())
