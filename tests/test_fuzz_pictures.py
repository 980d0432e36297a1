"Damaged pictures against the reader that predicts, for some seconds; and that what `fuzz_pictures` looks for, it finds."
import json,os,re,time
import numpy as np
import pytest
import fuzz_pictures as F
from malaria_fastai.cells import BadPicture
from malaria_fastai.deploy import _test_picture,appearance,find_pictures

SECONDS = float(os.environ.get('FUZZ_SECONDS', 15))

def test_damaged_pictures_end_in_a_row_or_an_error(record_property):
    counts,struck = F.run(SECONDS)
    for o in F.shown(counts, struck): record_property('shown', o)
    assert not F.faults(counts)
    assert {k.split(' | ')[0] for k in counts}=={F.named(i) for i in range(len(F.KINDS))} and sum(counts.values()) > 500

@pytest.mark.parametrize('n', [1, 2, 3, 59, 1000, 17_319])
def test_places_are_all_over_the_file(n):
    "Each byte once, and after fifty cases no gap of a tenth of the file."
    assert sorted(F.place(i, n) for i in range(n))==list(range(n))
    if n > 50: assert max(np.diff(sorted([0, *(F.place(i, n) for i in range(50)), n]))) < max(n/10, 3)

def test_every_bit_of_a_small_picture(tmp_path, record_property):
    "From a folder of files, as a prediction takes them: each bit of each byte, and each cut."
    data,start = _test_picture(12, 10),time.perf_counter()
    for i in range(len(data)):
        (tmp_path/f'cut {i:04}.png').write_bytes(data[:i])
        for bit in range(8): (tmp_path/f'{i:04} {bit}.png').write_bytes(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i+1:])
    n = 0
    for o in find_pictures(tmp_path):
        n += 1
        with pytest.raises(BadPicture): appearance(o.open())
    assert n==9*len(data) and time.perf_counter()-start < 60
    record_property('shown', f'every bit and every cut of a PNG of {len(data)} bytes, through the folder: {n:,} files, all refused')

# ---- the plants: the very cases that were broken are found, and nothing else

def pairs(counts): return {tuple(k.split(' | ')): v for k,v in F.faults(counts).items()}

@pytest.mark.parametrize('plant,what', [('raise', 'fault: ZeroDivisionError'), ('label', 'fault: other pixels without a word')])
def test_a_planted_error_is_found_in_its_cases_alone(plant, what, tmp_path, capsys):
    (tmp_path/'case').touch()
    F.child(2, 0, plant, tmp_path/'case', [])
    counts,_ = json.loads(capsys.readouterr().out)
    n = sum(counts.values())
    strict = [i for i in range(n) if F.planted(i) and (plant=='raise' or F.KINDS[i % len(F.KINDS)][0]=='PNG' and F.KINDS[i % len(F.KINDS)][1] not in F.FREE)]
    want = {(k, what): sum(F.named(i)==k for i in strict) for k in map(F.named, strict)}
    assert want and pairs(counts)==want

@pytest.mark.parametrize('plant,what', [('abort', r'fault: crash, exit -\d+'), ('hang', 'fault: hang')])
def test_a_planted_end_of_the_process_is_found_and_named(plant, what, monkeypatch):
    monkeypatch.setattr(F, 'HANG', 3)
    faults = pairs(F.run(3, plant=plant)[0])
    planted = [i for i in range(200) if F.planted(i)]
    assert 1 <= len(faults) <= len(planted)
    for (kind,said),i in zip(faults, planted): assert kind==F.named(i) and re.fullmatch(rf'{what} \(case {i}\)', said)

@pytest.mark.parametrize('plant,case', [('hang at the first', 0), ('hang at the start', -1)])
def test_a_hang_before_anything_was_tried_is_found(plant, case, monkeypatch):
    monkeypatch.setattr(F, 'HANG' if case==0 else 'START', 3)
    start = time.time()
    assert F.run(1, plant=plant)[0]=={f'{F.named(case)} | fault: hang (case {case})': 1} and time.time()-start < 120
