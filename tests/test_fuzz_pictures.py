"Damaged pictures against the reader that predicts, for some seconds; and that what `fuzz_pictures` looks for, it finds."
import json,os,re,subprocess,sys
import numpy as np
import pytest
import fuzz_pictures as F
from malaria_fastai.cells import BadPicture
from malaria_fastai.predict import appearance,find_pictures

SECONDS = float(os.environ.get('FUZZ_SECONDS', 15))

KINDS = {F.named(i) for i in range(len(F.KINDS))}

def kinds(counts): return {k.split(' | ')[0] for k in counts}

def in_this_process(seconds, plant, top, capsys):
    "What a child counts, without the seconds that another process takes to begin."
    (top/'case').touch()
    F.child(seconds, 0, plant, top/'case', [])
    return json.loads(capsys.readouterr().out)

def test_some_damaged_pictures_end_in_a_row_or_an_error(tmp_path, capsys):
    counts,struck = in_this_process(1, '', tmp_path, capsys)
    assert not F.faults(counts) and kinds(counts)==KINDS and int((tmp_path/'case').read_bytes())==-1
    assert struck.keys()=={f'{form} {kind.__name__}' for form,kind in F.KINDS if kind not in F.ANYWHERE}

@pytest.mark.slow
def test_damaged_pictures_end_in_a_row_or_an_error(record_property):
    counts,struck = F.run(SECONDS)
    for o in F.shown(counts, struck): record_property('shown', o)
    assert not F.faults(counts) and kinds(counts)==KINDS

@pytest.mark.parametrize('n', [1, 2, 3, 59, 1000, 17_319])
def test_places_are_all_over_the_file(n):
    "Each byte once, and after fifty cases no gap of a tenth of the file."
    assert sorted(F.place(i, n) for i in range(n))==list(range(n))
    if n > 50: assert max(np.diff(sorted([0, *(F.place(i, n) for i in range(50)), n]))) < max(n/10, 3)

def test_every_bit_of_a_small_picture(tmp_path, record_property):
    "From a folder of files, as a prediction takes them: each bit of each byte, and each cut."
    data = F.drawn(12, 10)
    for i in range(len(data)):
        (tmp_path/f'cut {i:04}.png').write_bytes(data[:i])
        for bit in range(8): (tmp_path/f'{i:04} {bit}.png').write_bytes(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i+1:])
    n = 0
    for o in find_pictures(tmp_path):
        n += 1
        with pytest.raises(BadPicture): appearance(o.open())
    assert n==9*len(data)
    record_property('shown', f'every bit and every cut of a PNG of {len(data)} bytes, through the folder: {n:,} files, all refused')

# ---- the plants: the very cases that were broken are found, and nothing else

def pairs(counts): return {tuple(k.split(' | ')): v for k,v in F.faults(counts).items()}

@pytest.mark.parametrize('plant,what', [('raise', 'fault: ZeroDivisionError'), ('label', 'fault: other pixels without a word')])
def test_a_planted_error_is_found_in_its_cases_alone(plant, what, tmp_path, capsys):
    counts,_ = in_this_process(.5, plant, tmp_path, capsys)
    n = sum(counts.values())
    strict = [i for i in range(n) if F.planted(i) and (plant=='raise' or F.KINDS[i % len(F.KINDS)][0]=='PNG' and F.KINDS[i % len(F.KINDS)][1] not in F.FREE)]
    want = {(k, what): sum(F.named(i)==k for i in strict) for k in map(F.named, strict)}
    assert want and pairs(counts)==want

ENDS = """
import json,os,sys,time
how,where,skip = sys.argv[1],sys.argv[2],json.loads(sys.argv[3])
def at(i):
    with open(where, 'r+b') as f: f.write(b'%12d' % i)
for i in (5, 28):
    if i in skip: continue
    at(i)
    os.abort() if how=='abort' else time.sleep(1e6)
at(-1)
print(json.dumps([{'PNG truncate | refused': 3}, {'PNG truncate': [3, 9]}]))
"""

@pytest.mark.parametrize('how,what', [('abort', r'crash, exit -\d+'), ('hang', 'hang')])
def test_the_end_of_a_process_is_found_and_named(how, what, monkeypatch):
    "Of one that does nothing else, and begins at once: two of its cases end it."
    def started(seconds, seed, plant, where, skip):
        where.write_bytes(b'%12d' % -1)
        return subprocess.Popen([sys.executable, '-S', '-c', ENDS, how, where, json.dumps(skip)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    monkeypatch.setattr(F, 'started', started)
    if how=='hang': monkeypatch.setattr(F, 'HANG', 1)
    counts,struck = F.run(600)
    (first,second),rest = F.faults(counts),counts.pop('PNG truncate | refused')
    assert len(counts)==2 and rest==3 and struck=={'PNG truncate': [3, 9]}
    for o,i in ((first, 5),(second, 28)): assert re.fullmatch(rf'{F.named(i)} \| fault: {what} \(case {i}\)', o)

@pytest.mark.slow
@pytest.mark.parametrize('plant,what', [('abort', r'fault: crash, exit -\d+'), ('hang', 'fault: hang')])
def test_a_planted_end_of_the_process_is_found_and_named(plant, what, monkeypatch):
    monkeypatch.setattr(F, 'HANG', 5)
    faults = pairs(F.run(3, plant=plant)[0])
    planted = [i for i in range(200) if F.planted(i)]
    assert 1 <= len(faults) <= len(planted)
    for (kind,said),i in zip(faults, planted): assert kind==F.named(i) and re.fullmatch(rf'{what} \(case {i}\)', said)

@pytest.mark.slow
@pytest.mark.parametrize('plant,case', [('hang at the first', 0), ('hang at the start', -1)])
def test_a_hang_before_anything_was_tried_is_found(plant, case, monkeypatch):
    monkeypatch.setattr(F, 'HANG' if case==0 else 'START', 3)
    assert F.run(1, plant=plant)[0]=={f'{F.named(case)} | fault: hang (case {case})': 1}
