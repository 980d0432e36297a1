"What a notebook cannot say about splits: drawn tables, many seeds, and the real patients."
import numpy as np, pandas as pd, pytest
from hypothesis import assume, given, settings, strategies as st

from malaria_fastai.cells import manifest, read_cells
from malaria_fastai.source import facts
from malaria_fastai.split import (Leak, NoPatients, SplitError, check_split, leakage, split_by, split_fold, split_folder,
                                  split_patient, split_random, split_summary)

def table(people, photos=3, seed=0):
    "Cells of people: {patient: (parasitized, uninfected)}; P8-like patients have two slides."
    rng,rows = np.random.RandomState(seed),[]
    for who,(pos,neg) in people.items():
        for label,n in (('Parasitized',pos),('Uninfected',neg)):
            for _ in range(n): rows.append((who, label, f"{who}s{rng.randint(2)}", f"{who}_{rng.randint(photos)}"))
    df = pd.DataFrame(rows, columns=['patient','label','slide','photo'])
    df = df.astype({o:'string' for o in ('patient','slide','photo')})
    df['path'] = [f'{label}/{photo}_{i:05d}.png' for i,(label,photo) in enumerate(zip(df.label, df.photo))]
    df['sha256'] = [f'{i:064x}' for i in range(len(df))]
    return df.sort_values('path', ignore_index=True)

@st.composite
def people(draw, infected=(0,12), controls=(0,8)):
    "Infected patients with cells of one or both kinds, and healthy controls."
    both = st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(sum)
    some = {f'P{i}':draw(both) for i in range(draw(st.integers(*infected)))}
    return some | {f'C{100+i}':(0, draw(st.integers(1, 40))) for i in range(draw(st.integers(*controls)))}

seeds = st.integers(0, 2**32-1)
shares = st.sampled_from([(.2,.2),(.2,0.),(.15,.15),(.1,.3),(0.,.25),(.4,.4)])

def no_one_on_two_sides(cells):
    for o in ('patient','photo','sha256'): assert cells.groupby(o).split.nunique().max() == 1

# --- random ---------------------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(n=st.integers(5, 300), share=shares, seed=seeds)
def test_random_is_the_rule_of_v1(n, share, seed):
    cells = table({'P1':(n//2, n-n//2)})
    assume(all(int(o*n) for o in share if o))
    got = split_random(cells, *share, seed=seed).split
    order = np.random.RandomState(seed).permutation(n)
    cut = int(share[0]*n)
    assert set(np.flatnonzero(got=='valid')) == set(order[:cut])
    assert set(np.flatnonzero(got=='test')) == set(order[cut:cut+int(share[1]*n)])

def test_random_keeps_copies_together():
    cells = table({'P1':(50,50)})
    cells['sha256'] = cells.sha256.str[-1]
    got = split_random(cells, .2, .2)
    assert got.groupby('sha256').split.nunique().max() == 1

def test_random_needs_no_patient_and_no_hash():
    cells = table({'P1':(20,20)})
    cells['patient'] = pd.array([pd.NA]*40, dtype='string')
    res = check_split(split_random(cells, .2, .2), by_patient=False)
    assert res['patients_shared'] == 0 and res['test'] == dict(patient=None, photo=res['test']['photo'], picture=0.)
    assert set(split_random(cells[['path','label']]).split) == {'train','valid'}

def test_random_on_too_few_cells():
    with pytest.raises(SplitError, match='too few for the shares valid=0.2'): split_random(table({'P1':(1,1)}))

# --- by patient -----------------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(who=people(), share=shares, seed=seeds)
def test_patient_split_is_right_or_refused(who, share, seed):
    assume(who)
    cells = table(who)
    try: got = split_patient(cells, *share, seed=seed)
    except SplitError as e:
        assert 'too few' in str(e)
        return
    no_one_on_two_sides(got)
    assert set(got.split) == {'train'} | ({'valid'} if share[0] else set()) | ({'test'} if share[1] else set())
    assert set(got.label[got.split=='train']) == set(cells.label)
    assert got.drop(columns='split').equals(cells)

@settings(max_examples=30, deadline=None)
@given(pos=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=3, max_size=12),
       neg=st.lists(st.integers(1, 40), min_size=3, max_size=8), share=shares, seed=seeds)
def test_enough_patients_are_never_refused_and_every_part_has_controls(pos, neg, share, seed):
    cells = table({f'P{i}':o for i,o in enumerate(pos)} | {f'C{i}':(0,o) for i,o in enumerate(neg)})
    got = split_patient(cells, *share, seed=seed)
    no_one_on_two_sides(got)
    for part,df in got.groupby('split'):
        assert set(df.label) == set(cells.label), part
        assert df.patient.str.startswith('C').any(), part

@settings(max_examples=20, deadline=None)
@given(who=people((4,12), (3,8)), seed=seeds, order=seeds)
def test_the_order_of_rows_and_the_index_do_not_matter(who, seed, order):
    cells = table(who)
    try: want = split_patient(cells, seed=seed)
    except SplitError: return
    def by_path(o): return o.set_index('path').split.sort_index()
    mixed = cells.sample(frac=1, random_state=order)
    mixed.index = np.arange(len(mixed))*3+7
    got = split_patient(mixed, seed=seed)
    assert got.path.tolist() == mixed.path.tolist()
    assert by_path(got).equals(by_path(want))
    assert by_path(split_random(mixed, .4, .3, seed)).equals(by_path(split_random(cells, .4, .3, seed)))

def test_one_patient_per_class_is_refused():
    with pytest.raises(SplitError, match='too few'): split_patient(table({'P1':(9,0), 'C2':(0,9)}))
    with pytest.raises(SplitError, match='1 with Parasitized, 1 with Uninfected.*too few'):
        split_patient(table({'P1':(9,0), 'C2':(0,9)}), .5, 0)

def test_chains_of_photo_and_bytes_stay_together():
    cells = table({f'P{i}':(10,10) for i in range(12)})
    cells.loc[cells.patient.isin(['P1','P2']), 'photo'] = 'shared'
    cells.loc[[cells.index[cells.patient=='P2'][0], cells.index[cells.patient=='P3'][0]], 'sha256'] = 'same'
    for seed in range(20):
        got = split_patient(cells, seed=seed)
        no_one_on_two_sides(got)
        assert got[got.patient.isin(['P1','P2','P3'])].split.nunique() == 1

def test_unknown_patients_are_an_error_not_a_guess():
    cells = table({'P1':(5,5), 'P2':(5,5), 'P3':(5,5)})
    cells.loc[:3,'patient'] = pd.NA
    for rule in (split_patient, lambda o: split_fold(o, 0)):
        with pytest.raises(NoPatients, match='4 of 30 cells is unknown'): rule(cells)
    with pytest.raises(NoPatients, match='4 of 30'): check_split(split_random(cells, .2))
    with pytest.raises(NoPatients, match='30 of 30'): split_by(cells.assign(patient=pd.NA), 'patient')

@pytest.mark.parametrize('valid,test', [(-.1,.2), (1,0), (.5,.5), (.9,.2), (float('nan'),.2), ('a',.2), (None,.2)])
def test_bad_shares(valid, test):
    cells = table({f'P{i}':(5,5) for i in range(9)})
    for rule in ('random','patient'):
        with pytest.raises(SplitError, match='shares'): split_by(cells, rule, valid, test)

def test_bad_tables():
    cells = table({f'P{i}':(5,5) for i in range(9)})
    with pytest.raises(SplitError, match='no column patient'): split_patient(cells.drop(columns='patient'))
    with pytest.raises(SplitError, match='no rows'): split_patient(cells[:0])
    with pytest.raises(SplitError, match='more than once'): split_random(pd.concat([cells, cells]))

KINDS = {'whole numbers': int, 'numbers': float, 'categories': 'category', 'objects': object}

@pytest.mark.parametrize('kind', KINDS)
def test_labels_and_patients_of_any_type_are_split_alike(kind):
    cells = table({f'P{i}':(5,5) for i in range(12)})
    other = cells.assign(patient=cells.patient.str[1:].astype(int).astype(KINDS[kind]), label=(cells.label=='Parasitized').astype(int).astype(KINDS[kind]))
    for rule in ('random', 'patient', 'random:0/3', 'patient:1/3'):
        got = split_by(other, rule)
        assert set(got.split) == {'train','valid','test'} and got.label.equals(other.label) and got.patient.equals(other.patient)
        if rule.startswith('patient'): no_one_on_two_sides(got)
    with pytest.raises(Leak, match='12 of 12 patients'): check_split(split_random(other, .3))
    with pytest.raises(SplitError, match='no fold is pinned for 12 patients'): split_fold(other, 0)

@pytest.mark.parametrize('rule', ['random','patient','folder','random:0/3','patient:0/3'])
@pytest.mark.parametrize('gap', [None, np.nan, pd.NA])
def test_a_missing_label_is_refused_by_every_rule(rule, gap):
    cells = in_folders(train=40, test=20).assign(patient=[f'P{i%9}' for i in range(60)])
    labels = cells.label.astype(object)
    labels[3] = gap
    with pytest.raises(SplitError, match='1 of 60 cells have no label, for example .*Leave them out'): split_by(cells.assign(label=labels), rule)

def test_a_class_that_stands_only_outside_train_is_named():
    cells = in_folders(train=40, valid=10, test=10)
    cells['label'] = cells.label.mask(cells.folder_split == 'valid', 'Other')
    with pytest.raises(SplitError, match='no cell of Other is in train: a model cannot learn it'): split_by(cells, 'folder')

def all_cells():
    known = manifest()
    return known.assign(path=known.label+'/'+known.filename)

@pytest.mark.parametrize('ninety', [False, True])
def test_shares_are_honoured_on_the_nih_patients(ninety):
    "All parts within 1.5 points of their share of cells, and of the share of positives, for every seed."
    cells = all_cells()
    if ninety: cells = cells[cells.patient.isin(sorted(cells.patient.unique())[::2])]
    base,big = (cells.label=='Parasitized').mean(),set()
    for seed in range(8):
        got = split_patient(cells, seed=seed)
        no_one_on_two_sides(got)
        by = split_summary(got)
        assert (by.share-pd.Series(dict(train=.6, valid=.2, test=.2))).abs().max() < .015
        assert (by.Parasitized/by.n-base).abs().max() < .03
        assert (by.controls/by.patients-by.controls.sum()/by.patients.sum()).abs().max() < .05
        big.add(got.split[got.patient==cells.patient.value_counts().index[0]].iloc[0])
    assert len(big) > 1, 'the patient with most cells must not always be in the same part'

def test_p8_is_one_patient():
    cells = all_cells()
    assert cells[cells.patient=='P8'].slide.nunique() == 2
    some = cells[cells.patient.isin([f'P{i}' for i in range(20)])]
    for seed in range(10): assert split_patient(some, seed=seed).query('patient=="P8"').split.nunique() == 1

# --- folders and folds ----------------------------------------------------------------------------------------------------------

def in_folders(**parts):
    cells = table({'P1':(30,30)})
    names = np.array(sum(([k]*v for k,v in parts.items()), []))
    return cells.assign(folder_split=pd.array(names[np.random.RandomState(0).permutation(60)], dtype='string'))

def test_three_folders_are_kept():
    cells = in_folders(train=40, valid=10, test=10)
    assert (split_folder(cells).split == cells.folder_split).all()

def test_valid_is_drawn_from_train():
    cells = in_folders(train=50, test=10)
    got = split_folder(cells, .2)
    assert got.split.value_counts().to_dict() == dict(train=40, valid=10, test=10)
    assert ((got.split=='test') == (cells.folder_split=='test')).all()

def test_a_tiny_valid_folder_is_warned_of():
    with pytest.warns(UserWarning, match='1 cells beside 59 in train'): split_folder(in_folders(train=59, valid=1))

def test_folders_that_cannot_be_used():
    with pytest.raises(SplitError, match='no train folder'): split_folder(in_folders(valid=30, test=30))
    cells = in_folders(train=60)
    cells.loc[3,'folder_split'] = pd.NA
    with pytest.raises(SplitError, match="1 of 60 cells lie outside.*'patient' or 'random'"): split_by(cells, 'folder')

def test_folds_are_the_pinned_ones():
    folds = pd.read_csv(facts('folds.csv'))
    cells = all_cells().merge(folds, on='patient', validate='many_to_one')
    assert len(folds) == 200 and folds.patient.is_unique and len(cells) == 27_558
    assert cells.groupby('fold').size().tolist() == [5471, 5563, 5527, 5475, 5522]
    assert folds.groupby('fold').size().tolist() == [40]*5
    assert folds[folds.patient.str.startswith('C')].groupby('fold').size().tolist() == [10, 10, 11, 11, 8]
    for k in range(5):
        got = split_by(cells, f'fold:{k}')
        assert ((got.split=='test') == (cells.fold==k)).all()
        assert abs((got.split=='valid').mean()-.2) < .01
        no_one_on_two_sides(got)

def test_fold_errors():
    cells = all_cells()
    for o in (-1, 5, '0', None, True):
        with pytest.raises(SplitError, match='folds are 0'): split_fold(cells, o)
    one = cells[cells.patient=='P1']
    for k in range(5):
        with pytest.raises(SplitError, match=f'fold {k}: nothing'): split_fold(one, k)
    with pytest.raises(SplitError, match='P999'): split_fold(cells.assign(patient=cells.patient.mask(cells.index==5, 'P999')), 0)
    with pytest.raises(SplitError, match='shares'): split_fold(cells, 0, valid=.9)

# --- checks ---------------------------------------------------------------------------------------------------------------------

def test_leaks_are_named():
    cells = split_patient(table({f'P{i}':(5,5) for i in range(9)}))
    check_split(cells)
    one = cells.index[cells.patient=='P3'][0]
    other = 'train' if cells.split[one]!='train' else 'test'
    moved = cells.assign(split=cells.split.mask(cells.index==one, other))
    with pytest.raises(Leak, match='1 of 9 patients.*P3'): check_split(moved)
    far = cells.index[cells.split!=cells.split[one]][0]
    together = cells.assign(photo=cells.photo.mask(cells.index.isin([one,far]), 'shared'))
    with pytest.raises(Leak, match='photos.*shared'): check_split(together)
    same = cells.assign(sha256=cells.sha256.mask(cells.index.isin([one,far]), 'same'))
    for o in (True, False):
        with pytest.raises(Leak, match='pictures.*same'): check_split(same, by_patient=o)

def test_parts_are_checked():
    cells = split_random(table({'P1':(20,20)}), .2)
    with pytest.raises(SplitError, match='holds dev'): check_split(cells.assign(split='dev'), by_patient=False)
    unknown = cells.assign(split=cells.split.mask(cells.index==0))
    with pytest.raises(SplitError, match='holds.*nan|None'): check_split(unknown, by_patient=False)
    with pytest.raises(SplitError, match='no cell of Parasitized'):
        check_split(cells.assign(split=cells.split.mask(cells.label=='Parasitized', 'valid')), by_patient=False)
    with pytest.raises(SplitError, match='no column split'): check_split(cells.drop(columns='split'))

@settings(max_examples=30, deadline=None)
@given(who=people((2,8), (1,4)), seed=seeds)
def test_leakage_counts_what_a_loop_counts(who, seed):
    cells = table(who)
    assume(len(cells) >= 10)
    got = split_random(cells, .3, .3, seed)
    train = set(got.patient[got.split=='train'])
    want = np.mean([o in train for o in got.patient[got.split=='test']])
    res = leakage(got)
    assert res['test']['patient'] == pytest.approx(want)
    assert res['patients_shared'] == sum(len(set(o.split))>1 for _,o in got.groupby('patient'))
    assert res['pictures_shared'] == res['test']['picture'] == 0

@pytest.mark.parametrize('rule,near', [('pateint','patient'), ('fold:7','fold:'), ('Random','random'), ('folders','folder')])
def test_unknown_rule(rule, near):
    with pytest.raises(SplitError, match=f"did you mean {near}"): split_by(table({'P1':(5,5)}), rule)

def test_summary_without_patients():
    cells = table({'P1':(20,20)}).assign(patient=pd.array([pd.NA]*40, dtype='string'))
    by = split_summary(split_random(cells, .2))
    assert by[['patients','controls']].isna().all(axis=None) and by.n.sum() == 40 and list(by.index) == ['train','valid']

def test_real_patients(nih_root):
    cells = read_cells(nih_root, progress=False)
    got = split_by(cells, 'patient')
    no_one_on_two_sides(got)
    assert (split_summary(got).share-pd.Series(dict(train=.6, valid=.2, test=.2))).abs().max() < .015
    assert leakage(split_by(cells, 'random'))['test']['patient'] == 1
