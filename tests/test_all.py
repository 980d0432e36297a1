"The one star import, as a program sees it."
from importlib import import_module
import pytest
from malaria_fastai import all as everything

@pytest.mark.parametrize('module', 'backbone cells data interpret learner resume run source split'.split())
def test_these_modules_are_there_whole(module):
    names = import_module(f'malaria_fastai.{module}').__all__
    assert [name for name in names if name not in everything.__all__]==[]

def test_the_words_of_2019_are_there():
    words = 'ImageDataBunch get_transforms cnn_learner ClassificationInterpretation SaveModelCallback models Path plt np accuracy error_rate'.split()
    assert [word for word in words if not hasattr(everything, word)]==[]
