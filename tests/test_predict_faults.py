"""`malaria-fastai predict`, and what goes wrong around it: what is said, and that nothing is lost.

Six good cells lie beside each fault. They must get the very answers that they get without it; where no table can be written, the old one
must stay as it was. What came of each is compared with `results/predict_faults.csv`, the table in the documentation, written anew by

    UPDATE_RESULTS=1 python -m pytest tests/test_predict_faults.py"""
import csv,errno,os,re,shutil,struct,subprocess,sys,zipfile,zlib
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from malaria_fastai.cli import main
from malaria_fastai.export import pack
from malaria_fastai.predict import _MAX_BYTES,Found,Predictor
from test_cells import chained_tiff,scans_jpeg
from test_export import rewritten,small_run

TABLE = Path(__file__).parent.parent/'results'/'predict_faults.csv'

@pytest.fixture(scope='module')
def cells(sample_root): return [o.read_bytes() for o in sorted(sample_root.rglob('*.png'))[::120]]

@pytest.fixture(scope='module')
def run(sample_root, made_once, tmp_path_factory):
    "A small run. What tells the classes apart lies in the widest gap between the six cells, and none is unsure: rounding decides nothing."
    out = Path(shutil.copytree(made_once('small_run', partial(small_run, sample_root)), tmp_path_factory.mktemp('faults')/'run'))
    folder = rewritten(pack(out), temperature=1, threshold=.5, unsure=dict(low=.5, high=.5))
    p = np.sort([0, *Predictor(folder, 'torch')(sorted(sample_root.rglob('*.png'))[::120]).p, 1])
    at = np.diff(p).argmax()
    middle = float(p[at]+p[at+1])/2
    rewritten(folder, threshold=middle, unsure=dict(low=middle, high=middle))
    return out

class Desk:
    "A folder of six cells, and the command at work on it."
    def __init__(self, top, run, cells, capsys):
        self.top,self.run,self.capsys,self.cells = top,run,capsys,top/'cells'
        self.good,self.out = cells[0],top/'out.csv'
        self.cells.mkdir(parents=True)
        for i,o in enumerate(cells): (self.cells/f'c{i}.png').write_bytes(o)

    def predict(self, *paths, out=None):
        "Exit status, the rows by path, and what was said: on the screen if it stopped, else by the rows."
        self.capsys.readouterr()
        status = main(['predict', self.run, '--engine', 'torch', '-o', out or self.out, '--', *(paths or [self.cells])])
        said = self.short(self.capsys.readouterr().err.splitlines()[-1]) if status else ''
        rows = {} if status else {self.short(o['path']): o for o in csv.DictReader(open(out or self.out, newline='', encoding='utf-8'))}
        return status,rows,said

    def short(self, text):
        "Without this test's own folder, and without chance."
        text = re.sub(r'\.[0-9a-f]{8}\.tmp', '.….tmp', text)
        return text.replace(f'{self.cells}/', '').replace(str(self.cells), 'cells').replace(f'{self.top}/', '').replace(str(self.top), 'the folder')

@pytest.fixture
def desk(tmp_path, run, cells, capsys): return Desk(tmp_path/'desk', run, cells, capsys)

@pytest.fixture(scope='module')
def usual(run, cells, tmp_path_factory):
    "The answers without a fault: name -> the row."
    class Nothing:
        def readouterr(self): return type('said', (), dict(err=''))
    status,rows,_ = Desk(tmp_path_factory.mktemp('usual')/'desk', run, cells, Nothing()).predict()
    assert status==0 and len(rows)==6
    return rows

def write_row(row):
    "Add a row to the table, or replace it; the order is that of this file."
    df = pd.read_csv(TABLE, dtype=str) if TABLE.exists() else pd.DataFrame(columns=[*row])
    rows = {**{o['fault']: o for o in df.to_dict('records')}, row['fault']: row}
    pd.DataFrame([rows[o] for o in ORDER if o in rows]).to_csv(TABLE, index=False, lineterminator='\n')

def check_row(fault, said, lost):
    if os.environ.get('UPDATE_RESULTS'): write_row(dict(fault=fault, said=said, lost=lost))
    df = pd.read_csv(TABLE, dtype=str)
    assert df[df.fault==fault].values.tolist()==[[fault, said, lost]], 'UPDATE_RESULTS=1 writes the table anew'

def same(rows, usual): return sum(k in rows and is_same(rows[k], o) for k,o in usual.items())

def is_same(one, two):
    "The same answer; p may be rounded otherwise in a batch of another size."
    rest = [k for k in two if k not in ('path','p')]
    return [one[k] for k in rest]==[two[k] for k in rest] and bool(one['p']) and abs(float(one['p'])-float(two['p'])) <= 1e-4

# ---- faults among the pictures

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def bomb():
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 30000, 30000, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(10**6))) + chunk(b'IEND', b'')

def put(name, data): return lambda desk: (desk.cells/name).write_bytes(data if isinstance(data, bytes) else data(desk.good))
def good(name): return put(name, lambda data: data)

def packed(desk, entries, kind=zipfile.ZIP_DEFLATED, spoil=None):
    with zipfile.ZipFile(desk.top/'more.zip', 'w', kind) as z:
        for k,v in entries.items(): z.writestr(k, v)
    if spoil: spoil(desk.top/'more.zip')

def zipped(entries, **kw): return lambda desk: packed(desk, entries(desk.good), **kw)
def cut(file): os.truncate(file, file.stat().st_size//2)
def flip(file):
    b = bytearray(file.read_bytes())
    b[300] ^= 1
    file.write_bytes(b)

PICTURES = { # what is put beside the six cells
    'an empty file': put('x.png', b''), 'a picture cut in half': put('x.png', lambda o: o[:len(o)//2]),
    'a bit of a picture flipped': put('x.png', lambda o: o[:900] + bytes([o[900] ^ 4]) + o[901:]), 'a web page called .jpg': put('x.jpg', b'<html>'),
    'a picture of a few KB that unfolds to 30,000 by 30,000 pixels': put('x.png', bomb()), 'a TIFF of 100,000 chained pages': put('x.tif', chained_tiff(100_000)),
    'a JPEG of 100,000 scans': put('x.jpg', scans_jpeg(100_000)), 'a file of 32 MB and more': put('x.bmp', b'BM' + bytes(_MAX_BYTES)),
    'a pipe that nobody writes to': lambda desk: os.mkfifo(desk.cells/'x.png'), 'a link to nothing': lambda desk: (desk.cells/'x.png').symlink_to('gone'),
    'a link to itself': lambda desk: (desk.cells/'x.png').symlink_to(desk.cells/'x.png'), 'a folder called .png': lambda desk: (desk.cells/'x.png').mkdir()}

NAMES = { # of a good picture; given by itself, from within its folder
    'a name with a line break': good('a\nb.png'), 'a name that begins with a dash': good('-rf.png'), 'a name that is a formula': good('=cmd|x.png'),
    'a name with a comma and a quote': good('a,"b".png'), 'a name that is no UTF-8': good(os.fsdecode(b'\xff\xfe.png')), 'a name with an escape sequence': good('a\x1b[31m.png')}

ZIPS = { # predicted beside the six cells
    'a zip cut in half': zipped(lambda o: {f'{i}.png': o for i in range(3)}, spoil=cut), 'no zip, but called so': lambda desk: (desk.top/'more.zip').write_bytes(b'hello'),
    'a damaged picture in a zip': zipped(lambda o: {'1.png': o, '2.png': o}, kind=zipfile.ZIP_STORED, spoil=flip),
    'a zip with a name that leaves its folder': zipped(lambda o: {'1.png': o, '../../evil.png': o}), 'a zip with an absolute name': zipped(lambda o: {'1.png': o, '/evil.png': o}),
    'a zip of 200 KB that unfolds to 200 MB': zipped(lambda o: {'1.png': bytes(200_000_000)}), 'a zip with a name of 32,000 folders': zipped(lambda o: {'a/'*32_000 + '1.png': o}),
    'an empty zip': zipped(lambda o: {})}

def answers(rows, usual):
    "What became of the rows that the fault brought: (said, lost)."
    more = {k: o for k,o in rows.items() if k not in usual}
    said = {f"{k}: {o['reason']}" if o['reason'] else f'{k}: answered' for k,o in more.items()}
    return '; '.join(sorted(said)) or 'nothing: it is no picture',f'nothing: {same(rows, usual)} of {len(usual)} cells are answered as before'

def told(rows, usual, desk):
    said,lost = answers(rows, usual)
    return desk.short(said),lost

@pytest.mark.parametrize('fault', PICTURES)
def test_fault_among_the_pictures(fault, desk, usual):
    PICTURES[fault](desk)
    status,rows,_ = desk.predict()
    assert status==0 and same(rows, usual)==6
    check_row(fault, *told(rows, usual, desk))

@pytest.mark.parametrize('fault', NAMES)
def test_fault_in_a_name(fault, desk, usual, monkeypatch):
    NAMES[fault](desk)
    monkeypatch.chdir(desk.cells)
    status,rows,_ = desk.predict(*sorted(os.listdir()))
    assert status==0 and same(rows, usual)==6 and len(rows)==7
    check_row(fault, *told(rows, usual, desk))

@pytest.mark.parametrize('fault', ZIPS)
def test_fault_in_a_zip(fault, desk, usual):
    ZIPS[fault](desk)
    before = sorted(desk.top.rglob('*'))
    status,rows,_ = desk.predict(desk.cells, desk.top/'more.zip')
    assert status==0 and same(rows, usual)==6
    assert sorted(desk.top.rglob('*'))==sorted([*before, desk.out]) and not list(desk.top.parent.rglob('evil.png'))
    check_row(fault, *told(rows, usual, desk))

# ---- faults of the disk that is read

def test_fault_file_vanishes(desk, usual, monkeypatch):
    "Listed with its folder, gone before it is opened."
    (desk.cells/'x.png').write_bytes(desk.good)
    was = Found.open
    def late(self):
        if self.name.endswith('x.png'): (desk.cells/'x.png').unlink()
        return was(self)
    monkeypatch.setattr(Found, 'open', late)
    status,rows,_ = desk.predict()
    assert status==0 and same(rows, usual)==6
    check_row('a file vanishes meanwhile', *told(rows, usual, desk))

def closed(folder, monkeypatch):
    "A folder that may not be listed. Root may list any, so the system's answer is given by hand."
    folder.mkdir()
    shutil.copy(next(folder.parent.glob('c0.png')), folder/'c9.png')
    was = os.scandir
    def scandir(path='.'):
        if Path(os.fsdecode(path))==folder: raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))
        return was(path)
    monkeypatch.setattr(os, 'scandir', scandir)

def test_fault_folder_closed(desk, usual, monkeypatch):
    closed(desk.cells/'closed', monkeypatch)
    status,rows,_ = desk.predict()
    assert status==0 and same(rows, usual)==6
    check_row('a folder that may not be read', *told(rows, usual, desk))

def test_fault_empty_folder(desk, usual):
    (desk.top/'empty').mkdir()
    status,rows,_ = desk.predict(desk.cells, desk.top/'empty')
    assert status==0 and same(rows, usual)==6
    check_row('an empty folder', *told(rows, usual, desk))

NOTHING = {'a path that does not exist': 'gone.png', 'a pattern that fits nothing': '*.tiff'}

@pytest.mark.parametrize('fault', NOTHING)
def test_fault_nothing_there(fault, desk, monkeypatch):
    opened,was = [],Found.open
    monkeypatch.setattr(Found, 'open', lambda self: opened.append(self) or was(self))
    status,_,said = desk.predict(desk.cells, desk.top/NOTHING[fault])
    assert status==2 and not desk.out.exists()
    check_row(fault, said, f'nothing: {len(opened)} pictures were read before it was said')

def test_fault_nothing_readable(desk):
    "Alone, what gives no picture is no answer: no table, and the exit status says so."
    (desk.top/'empty').mkdir()
    for name,data in (('cut.png',desk.good[:500]),('cells.tar',b'ustar'),('bad.zip',b'hello')): (desk.top/name).write_bytes(data)
    for name in ('empty','cut.png','cells.tar','bad.zip'):
        status,_,said = desk.predict(desk.top/name)
        assert status==2 and name in said and not desk.out.exists()

# ---- faults of the disk that is written, and of the program

class Disk:
    "A small file system of its own, in memory, where this user may mount one."
    def __init__(self, folder): self.folder = folder
    def mount(self, *options):
        if shutil.which('mount') is None or subprocess.run(['mount', *options, str(self.folder)], capture_output=True).returncode:
            pytest.skip('this user may not mount a file system')

@pytest.fixture
def disk(desk):
    d = Disk(desk.top/'disk')
    d.folder.mkdir()
    d.mount('-t', 'tmpfs', '-o', 'size=1m', 'tmpfs')
    (d.folder/'out.csv').write_text('the old table')
    yield d
    subprocess.run(['umount', '-l', str(d.folder)], capture_output=True)

OLD = 'nothing: the table of before is as it was'

def stopped(desk, out, status=2):
    "What is said when no table can be written; nothing half written is left, nor the old one changed."
    before = {o: o.is_file() and o.read_bytes() for o in desk.top.rglob('*')}
    got,_,said = desk.predict(out=out)
    assert got==status and before=={o: o.is_file() and o.read_bytes() for o in desk.top.rglob('*')}
    return said

def test_fault_read_only(desk, disk):
    disk.mount('-o', 'remount,ro')
    check_row('the folder of the table is read-only', stopped(desk, disk.folder/'out.csv'), OLD)

def test_fault_disk_full(desk, disk):
    with open(disk.folder/'other', 'wb', buffering=0) as f:
        try:
            while f.write(bytes(4096)): pass
        except OSError: pass
    check_row('the disk is full', stopped(desk, disk.folder/'out.csv'), OLD)

def test_fault_out_is_a_folder(desk, monkeypatch):
    opened,was = [],Found.open
    monkeypatch.setattr(Found, 'open', lambda self: opened.append(self) or was(self))
    check_row('-o names a folder', stopped(desk, desk.cells), f'nothing: {len(opened)} pictures were read before it was said')

def test_fault_out_below_a_file(desk):
    (desk.top/'file').write_text('x')
    check_row('-o names a file below a file', stopped(desk, desk.top/'file'/'out.csv'), 'nothing: nothing was written')

def test_fault_stopped(desk, monkeypatch):
    "Ctrl-C while the fourth picture is opened."
    desk.out.write_text('the old table')
    was = Found.open
    def interrupted(self):
        if self.name.endswith('c3.png'): raise KeyboardInterrupt
        return was(self)
    monkeypatch.setattr(Found, 'open', interrupted)
    check_row('Ctrl-C in the middle', stopped(desk, desk.out, status=130), OLD)

SLOW = """
import sys,time
from malaria_fastai.predict import Found
was = Found.open
def slow(self):
    if self.name.endswith('c3.png'):
        print('here', flush=True)
        time.sleep(600)
    return was(self)
Found.open = slow
from malaria_fastai.cli import main
main(sys.argv[1:])
"""

@pytest.mark.slow
def test_fault_killed(desk, usual):
    desk.out.write_text('the old table')
    words = ['predict', str(desk.run), '--engine', 'torch', '--bs', '1', '-o', str(desk.out), str(desk.cells)]
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', SLOW, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert p.stdout.readline()=='here\n'
    p.kill()
    p.wait()
    assert desk.out.read_text()=='the old table'
    part, = desk.top.glob('.out.csv.*.tmp')
    status,rows,_ = desk.predict()
    assert status==0 and same(rows, usual)==6 and part.exists()
    check_row('killed in the middle (SIGKILL), then run again', 'nothing', f'{OLD}; the second run writes the new one, and a hidden half file of the first stays beside it')

ORDER = [*PICTURES, *NAMES, *ZIPS, 'a file vanishes meanwhile', 'a folder that may not be read', 'an empty folder', *NOTHING, 'the folder of the table is read-only', 'the disk is full',
         '-o names a folder', '-o names a file below a file', 'Ctrl-C in the middle', 'killed in the middle (SIGKILL), then run again']

def test_the_table_has_every_fault_and_no_other(): assert pd.read_csv(TABLE, dtype=str).fault.tolist()==ORDER
