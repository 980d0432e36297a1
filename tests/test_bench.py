"The bench works: a few drawn cells go through its rows. How fast it is, is for its table."
import json, os, subprocess, sys
from pathlib import Path

import pytest

import gpu
from bench import main

BENCH = Path(__file__).resolve().parent.parent/'bench'/'bench.py'
ROWS = 'delivery', 'memory', 'ready', 'first_epoch', 'training', 'interpretation'

@pytest.mark.slow
def test_bench_on_a_few_cells(tmp_path, sample_root):
    how = '--source', sample_root, '--size', '32', '--small', '32', '--limit', '72', '--repeats', '1', '--rows', ','.join(ROWS), '--out', tmp_path
    env = {**os.environ, 'TQDM_DISABLE': '1', 'PYTHONWARNINGS': 'ignore'}
    run = subprocess.run([sys.executable, BENCH, *map(str, how)], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=560)
    assert not run.returncode, run.stderr[-3000:]
    rows,machine,page = json.loads((tmp_path/'results.json').read_text()),json.loads((tmp_path/'machine.json').read_text()),(tmp_path/'README.md').read_text()
    assert [r['command'] for r in rows] == [f'python bench/bench.py --rows {o}' for o in ROWS]
    for r in rows:
        assert [*r] == 'row ours stock unit ratio bar met command'.split()
        assert r['ours'] > 0 and r['stock'] > 0 and abs(r['ratio'] - r['ours']/r['stock']) < .01*r['ratio'] and isinstance(r['met'], bool)
        assert f"| {r['row']} |" in page
    assert machine['cores'] == os.cpu_count() and machine['cells'] == 720 and 'fastai' in machine['versions']
    assert 'ImageDataLoaders.from_folder' in page and all(f'## Not met: {o}' in page and machine['rows'][o]['profile'] for o,r in zip(ROWS, rows) if not r['met'])

def test_the_bench_notices_a_cell_that_comes_twice(sample_root):
    from bench import one_epoch, our_data
    from malaria_fastai.cells import read_cells
    data = our_data(sample_root, read_cells(sample_root, progress=False), 16, 32, cache=False)
    assert one_epoch(data.valid) == len(data.valid_ds) and one_epoch(data.train) == len(data.train)*32
    class Twice(type(data.train)):
        def get_idxs(self): return [0, *super().get_idxs()[:-1]][:self.n]
    twice = data.train.new(cls=Twice)
    with pytest.raises(AssertionError, match='delivered'): one_epoch(twice)

def test_every_row_has_its_line():
    "Also the long one, which no test measures in full: an hour is not lost to its last line."
    from bench import ROWS, table
    facts = dict(bs=1, size=2, small=3, few=4, target=.95, minutes=60., valid=5)
    rows = [dict(row=text.format(**facts), ours=1., stock=2., unit=unit, ratio=.5, bar=bar, met=True, command=f'python bench/bench.py --rows {k}') for k,(text,unit,bar,_) in ROWS.items()]
    known = {k: dict(date='2026-01-02 03:04', load=[.5], commit='abc') for k in ROWS} | dict(wall=dict(date='2026-01-03 03:04', load=[.7], commit='def', bound='≤ '))
    page = table(rows, dict(cells=1, source='', cores=1, cpu='', threads=1, versions={}, rows=known))
    for k,r,(*_,more) in zip(ROWS, rows, ROWS.values()):
        assert f"| {r['row']} | 1.0 | 2.0 | {r['unit']} | {'≤ '*(k == 'wall')}0.5 | {'≥' if more else '≤'} {r['bar']} | yes |" in page
    assert 'imports: 2026-01-02, commit abc, load 0.5 to 0.5; wall: 2026-01-03, commit def, load 0.7 to 0.7.' in page

@pytest.mark.slow
@pytest.mark.parametrize('target,minutes,met', [(.01, 20., True), (1.01, .05, False)]) # any network reaches the first, none the second
def test_the_long_row(target, minutes, met, tmp_path, sample_root):
    "Who never gets there has not met the bar; and rows measured earlier keep what is known of them."
    (tmp_path/'results.json').write_text('[{"row": "x", "ours": 1, "stock": 1, "unit": "s", "ratio": 1, "bar": 1.1, "met": true, "command": "python bench/bench.py --rows imports"}]')
    (tmp_path/'machine.json').write_text('{"rows": {"imports": {"date": "2026-01-02 03:04", "load": null, "commit": "abc", "profile": "some profile"}}}')
    main(['--long', '--source', str(sample_root), '--size', '32', '--minutes', str(minutes), '--target', str(target), '--out', str(tmp_path)])
    row,about,page = json.loads((tmp_path/'results.json').read_text())[-1],json.loads((tmp_path/'machine.json').read_text()),(tmp_path/'README.md').read_text()
    assert row['command'].endswith('wall') and [*about['rows']] == ['imports', 'wall'] and 'some profile' in page
    assert ('ours reached it' in row['row']) == met and ('ours did not reach it' in row['row']) != met
    assert about['rows']['wall'].get('bound') == (None if 'stock reached it' in row['row'] else '≤ ')
    if not met: assert not row['met']

@pytest.mark.slow
def test_imports_have_a_profile_of_their_own():
    from bench import profile
    assert 'ms' in profile(None, 'imports', 3).splitlines()[-1]

@pytest.mark.slow
def test_the_gpu_program_on_a_few_cells(sample_root, tmp_path):
    "Every check of bench/gpu.py, on the CPU: what it would measure is not asserted, but that it is measured, and written down."
    out,csv = tmp_path/'gpu.json',tmp_path/'gpu.csv'
    assert gpu.main([str(sample_root), '--out', str(out), '--table', str(csv), '--small'])==0
    result = json.loads(out.read_text())
    assert result['failed']=={} and result['left_out']==[]
    assert {row['check'] for row in result['rows']}=={check.__name__ for check in gpu.CHECKS}
    exact = [row for row in result['rows'] if row['unit']=='' and isinstance(row['value'], bool) and row['check']!='environment']
    assert exact and all(row['value'] for row in exact)
    assert csv.read_text().splitlines()[0].split(',')==[*gpu.COLUMNS] and len(csv.read_text().splitlines())==len(result['rows'])+1

def test_the_gpu_program_goes_on_after_a_fault(tmp_path):
    def fails(task): raise RuntimeError('planted')
    def works(task): yield 'setting', 1, 'unit'
    result = gpu.measure(None, [fails, works], tmp_path/'gpu.json', 600)
    assert result['failed']=={'fails': 'RuntimeError: planted'} and [row['check'] for row in result['rows']]==['works']
    assert gpu.measure(None, [works], tmp_path/'gpu.json', -1)['left_out']==['works'] and json.loads((tmp_path/'gpu.json').read_text())['left_out']==['works']
