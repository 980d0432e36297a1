"The one star import, as a program sees it."
import ast
from pathlib import Path
import pytest
from malaria_fastai import all as everything

ROOT = Path(__file__).resolve().parent.parent

def modules_of_the_star_import():
    "Each module that all.py imports from, and the names it takes."
    tree = ast.parse((ROOT/'malaria_fastai/all.py').read_text(encoding='utf-8'))
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    return {node.module: [alias.name for alias in node.names] for node in found}

def test_every_room_for_notebooks_is_there():
    rooms = 'backbone cells data evaluate export interpret learner predict recipes report resume run sample source split transforms'
    assert sorted(modules_of_the_star_import())==rooms.split()

@pytest.mark.parametrize('module', modules_of_the_star_import())
def test_names_come_from_the_module_that_offers_them(module):
    home = __import__(f'malaria_fastai.{module}', fromlist=['x'])
    for name in modules_of_the_star_import()[module]:
        assert name in home.__all__ and name in everything.__all__
        assert getattr(home, name) is getattr(everything, name)

def test_the_words_of_2019_are_there():
    words = 'ImageDataBunch get_transforms cnn_learner ClassificationInterpretation SaveModelCallback models Path plt np accuracy error_rate'.split()
    assert [word for word in words if not hasattr(everything, word)]==[]
