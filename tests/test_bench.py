"The bench works: a few drawn cells go through its rows. How fast it is, is for its table."
import json, os, subprocess, sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent/'bench'/'bench.py'
ROWS = 'delivery', 'memory', 'ready', 'first_epoch', 'training', 'interpretation'

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
    assert 'ImageDataLoaders.from_folder' in page and all(f'## Not met: {o}' in page for o,r in zip(ROWS, rows) if not r['met'])

def test_the_bench_notices_a_cell_that_comes_twice(sample_root):
    import pytest
    from bench import one_epoch, our_data
    from malaria_fastai.cells import read_cells
    data = our_data(sample_root, read_cells(sample_root, progress=False), 16, 32, cache=False)
    assert one_epoch(data.valid) == len(data.valid_ds) and one_epoch(data.train) == len(data.train)*32
    class Twice(type(data.train)):
        def get_idxs(self): return [0, *super().get_idxs()[:-1]][:self.n]
    twice = data.train.new(cls=Twice)
    with pytest.raises(AssertionError, match='delivered'): one_epoch(twice)

def test_every_row_has_its_line():
    "Also the long one, which no test measures: an hour is not lost to its last line."
    from bench import ROWS, table
    facts = dict(bs=1, size=2, small=3, few=4, target=.95, minutes=60., valid=5)
    rows = [dict(row=text.format(**facts), ours=1., stock=2., unit=unit, ratio=.5, bar=bar, met=True, command=f'python bench/bench.py --rows {k}') for k,(text,unit,bar,_) in ROWS.items()]
    page = table(rows, dict(date='', cells=1, source='', cores=1, cpu='', threads=1, load=None, versions={}), {})
    for r,(*_,more) in zip(rows, ROWS.values()): assert f"| {r['row']} | 1.0 | 2.0 | {r['unit']} | 0.5 | {'≥' if more else '≤'} {r['bar']} | yes |" in page
