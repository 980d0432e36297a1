"""What the lesson cells of robustness and run cannot say: every corruption on many pictures, folds and overlaps that are wrong."""
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score

from malaria_fastai.cells import open_picture, read_cells
from malaria_fastai.split import SplitError, fold_rules, split_by, split_kfold
from malaria_fastai.extra import robustness as robust
from malaria_fastai.extra.robustness import _CORRUPTIONS, corrupt, robustness, sample_cells, shortcut_check
from malaria_fastai.run import boosted, colour_features

OF_FRAME = {'background', 'neighbour', 'scale'}


@pytest.fixture(scope='module')
def cells(sample_root): return read_cells(sample_root, progress=False)


@pytest.fixture(scope='module')
def pictures(sample_root, cells): return {o: np.asarray(open_picture(sample_root/o)) for o in cells.path[::90]}


def cut_out(seed, h, w):
    "A picture of noise with a round cell in a black frame."
    y,x = np.mgrid[-1:1:h*1j, -1:1:w*1j]
    return np.random.default_rng(seed).integers(1, 256, (h, w, 3), np.uint8)*(np.hypot(x, y) < .9)[..., None].astype(np.uint8)


# ---- corruptions

@pytest.mark.parametrize('kind', _CORRUPTIONS)
def test_every_kind_keeps_the_frame_and_changes_the_cell(kind, pictures):
    for name,x in pictures.items():
        y,frame = corrupt(x, kind, 5, name),x.max(-1) == 0
        assert y.shape == x.shape and y.dtype == np.uint8 and (y != x).any()
        if kind not in OF_FRAME: assert (y[frame] == 0).all()
        elif kind != 'scale': assert (y[~frame] == x[~frame]).all() and y[frame].any()


@pytest.mark.parametrize('kind', _CORRUPTIONS)
def test_strength_0_is_the_picture_and_more_strength_is_more_damage(kind, pictures):
    "The mean change over the pictures grows with every strength."
    assert all((corrupt(x, kind, 0, name) == x).all() for name,x in pictures.items())
    change = [np.mean([np.abs(corrupt(x, kind, s, name).astype(float) - x).mean() for name,x in pictures.items()]) for s in range(6)]
    assert (np.diff(change) > 0).all(), change


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(list(_CORRUPTIONS)), strength=st.integers(1, 5), seed=st.integers(0, 99), h=st.integers(8, 60), w=st.integers(8, 60))
def test_the_same_picture_is_damaged_in_the_same_way(kind, strength, seed, h, w):
    x = cut_out(seed, h, w)
    before,y = x.copy(),corrupt(x, kind, strength, f'{seed}.png')
    np.random.seed(seed), np.random.rand(3) # the global stream is of no account
    np.testing.assert_array_equal(y, corrupt(x, kind, strength, f'{seed}.png'))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize('kind', ['gaussian_noise', 'motion_blur', 'debris', 'neighbour'])
def test_another_name_is_another_draw(kind, pictures):
    x = next(iter(pictures.values()))
    assert (corrupt(x, kind, 5, 'a') != corrupt(x, kind, 5, 'b')).any()


def test_a_picture_without_a_frame_and_a_black_one_are_no_trouble():
    full,black = np.random.default_rng(0).integers(1, 256, (40, 30, 3), np.uint8),np.zeros((40, 30, 3), np.uint8)
    for kind in _CORRUPTIONS:
        for x in (full, black): assert corrupt(x, kind, 5).shape == x.shape


def test_no_black_leaks_into_a_blurred_cell():
    "A cell of one colour stays of that colour, up to its rim."
    x = (cut_out(0, 60, 60) > 0).astype(np.uint8)*np.uint8([200, 150, 160])
    for kind in ('defocus_blur', 'motion_blur', 'elastic', 'pixelate'): np.testing.assert_allclose(corrupt(x, kind, 5), x, atol=1)


@pytest.mark.parametrize('kind,strength', [('snow', 1), ('jpeg', 6), ('jpeg', -1)])
def test_unknown_corruptions_are_refused(kind, strength):
    with pytest.raises(ValueError, match='snow|strengths'): corrupt(np.zeros((9, 9, 3), np.uint8), kind, strength)


# ---- drawing cells

@pytest.mark.parametrize('n', [30, 100, 400])
def test_every_patient_and_label_keeps_its_share(cells, n):
    some = sample_cells(cells, n)
    assert len(some) == n and some.path.is_monotonic_increasing and some.path.is_unique
    want,got = (o.groupby(['patient', 'label']).size() for o in (cells, some))
    assert ((got.reindex(want.index, fill_value=0) - want*n/len(cells)).abs() <= 1).all()
    pd.testing.assert_frame_equal(some, sample_cells(cells, n))
    assert sample_cells(cells, n, seed=1).path.tolist() != some.path.tolist()


# ---- without a network

def test_colours_know_nothing_of_the_frame(sample_root, cells):
    "They are those of the pixels that are not black, as pandas counts them."
    path = cells.path[3]
    row,x = colour_features(sample_root, cells[3:4]).loc[path],np.asarray(open_picture(sample_root/path))
    inside = pd.DataFrame(x[x.max(-1) > 0], columns=list('rgb'))
    for c in 'rgb':
        np.testing.assert_allclose([row[f'{c}_{k}'] for k in range(10, 100, 10)], inside[c].quantile(np.arange(.1, .95, .1)), rtol=1e-5)
        np.testing.assert_allclose(row[f'{c}_sd'], inside[c].std(ddof=0), rtol=1e-5)


def test_boosting_learns_from_the_training_part_alone():
    "Test labels turned round change no prediction; what is predicted is the probability of the positive class."
    rng = np.random.default_rng(0)
    y,split = rng.random(300) < .5,np.where(np.arange(300) < 200, 'train', 'test')
    x = rng.normal(y[:, None]*20., 1, (300, 3)) # ten deviations on either side: any boosting tells them apart
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(300)], label=np.where(y, 'yes', 'no'), split=split))
    turned = table.assign(label=np.where((split == 'test') ^ y, 'yes', 'no'))
    a,b = boosted(x, table, 'yes'),boosted(x, turned, 'yes')
    assert (a.p == b.p).all() and len(a) == 100 and roc_auc_score(y[200:], a.p) == 1 and ((a.p > .5) == y[200:]).all()


# ---- a network whose weights nobody trained

@pytest.fixture
def by_brightness(monkeypatch):
    "In place of a network: the share of a picture's light is its probability."
    monkeypatch.setattr(robust, 'probabilities', lambda learn, pictures, positive: np.array([x.mean()/255 for x in pictures]))


def test_robustness_is_that_of_the_damaged_pictures(by_brightness, sample_root, cells):
    "At the fixed threshold; the changes are to the first row, that of the untouched pictures."
    table = robustness(None, sample_root, cells, 'Parasitized', threshold=.4, n=30, kinds=['stain_dark', 'background'])
    assert list(zip(table.corruption, table.strength)) == [('none', 0), *((k, s) for k in ('stain_dark', 'background') for s in range(1, 6))]
    some = sample_cells(cells, 30)
    for row in table.iloc[[0, 3, 10]].itertuples():
        damaged = [np.asarray(open_picture(sample_root/o)) for o in some.path]
        if row.strength: damaged = [corrupt(x, row.corruption, row.strength, o) for x,o in zip(damaged, some.path)]
        called = np.array([x.mean()/255 for x in damaged]) >= .4
        sick = (some.label == 'Parasitized').to_numpy()
        assert (row.sensitivity, row.specificity) == pytest.approx((called[sick].mean(), 1 - called[~sick].mean()))
    for k in ('sensitivity', 'specificity'): np.testing.assert_allclose(table[f'{k}_change'], table[k] - table[k][0])


def test_shortcuts_show_the_frame_and_the_outline_alone(by_brightness, sample_root, cells):
    "Of a cell painted black this network sees nothing; of one in one colour, its share of the picture."
    test = cells[::6].reset_index(drop=True)
    found = shortcut_check(None, sample_root, test, 'Parasitized', n=None, draws=20)
    share = [np.asarray(open_picture(sample_root/o)).any(-1).mean() for o in test.path]
    assert found['blanked']['auc'] == .5 and found['outline']['auc'] == pytest.approx(roc_auc_score(test.label == 'Parasitized', share))
    assert {k: v['n'] for k,v in found.items()} == dict(blanked=120, outline=120)


def test_what_holds_for_cells_is_not_done_to_other_pictures(by_brightness, sample_root, cells, tmp_path):
    "X-rays have no stain and no frame: black is a part of them, and an outline they have not."
    others = cells[::60].assign(label=cells.label.replace(dict(Parasitized='PNEUMONIA', Uninfected='NORMAL')), split='test')
    table = robustness(None, sample_root, others, 'PNEUMONIA', n=None)
    assert set(_CORRUPTIONS) - set(table.corruption) == {'stain_pale', 'stain_dark', 'stain_blue', 'debris', 'background', 'neighbour'}
    picture = robust._test_cells(sample_root, others[:1], 1)[1][0]
    assert picture.inside.all() and (picture.damaged('gaussian_noise', 5)[picture.x.max(-1) == 0] > 0).any()
    found = robust.stress_test(tmp_path, None, sample_root, others, 'PNEUMONIA', .5, 10, n=10, kinds=['jpeg'])
    assert set(found) == {'robustness'}
    mine = cells[::12].assign(split='test')
    assert set(robustness(None, sample_root, mine, 'Parasitized', n=6).corruption) == {'none', *_CORRUPTIONS}
    assert set(robust.stress_test(tmp_path, None, sample_root, mine, 'Parasitized', .5, 10, n=0)) == {'shortcut'}


# ---- folds

@settings(max_examples=8, deadline=None)
@given(by=st.sampled_from(['patient', 'random']), folds=st.integers(2, 6), seed=st.integers(0, 9))
def test_each_cell_is_tested_once(cells, by, folds, seed):
    parts = [split_kfold(cells.sample(frac=1, random_state=seed), by, k, folds, .1, seed).sort_index() for k in range(folds)]
    assert (sum((o.split == 'test').astype(int) for o in parts) == 1).all()
    for o in parts:
        assert set(o.split) == {'train', 'valid', 'test'}
        if by == 'patient': assert o.groupby('patient').split.nunique().max() == 1
    assert split_kfold(cells, by, 0, folds, .1, seed).split.tolist() == parts[0].split.tolist() # whatever the order of the table


def test_copies_stay_together(cells):
    "A picture that is there twice is tested once."
    twice = pd.concat([cells, cells[:40].assign(path='x/' + cells.path[:40])], ignore_index=True)
    for k in range(3):
        split = split_by(twice, f'random:{k}/3').split
        assert (split[:40].to_numpy() == split[len(cells):].to_numpy()).all()


def test_five_folds_by_patient_are_the_pinned_ones_where_there_are_any(cells):
    assert fold_rules(cells.assign(patient='P1')) == [f'fold:{k}' for k in range(5)]
    assert fold_rules(cells.assign(patient='Q1'), 'patient', 5)[0] == 'patient:0/5' and fold_rules(cells, 'random', 2) == ['random:0/2', 'random:1/2']


@pytest.mark.parametrize('rule', ['random:5/5', 'random:0/1', 'patient:0/999', 'folds:1/5', 'random:1', 'random:a/5'])
def test_folds_that_cannot_be_are_refused(cells, rule):
    with pytest.raises(SplitError): split_by(cells, rule)
