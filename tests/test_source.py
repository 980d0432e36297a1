"""What a lesson cell of 01_source cannot say: downloads over a real socket that break in every way, hostile archives, all
layouts of the same data, extractions that are killed, and what the drawn sample promises."""
import csv, hashlib, io, os, re, shutil, signal, stat, subprocess, sys, tarfile, threading, time, unicodedata, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from malaria_fastai import sample,source
from malaria_fastai.cells import NoCells, default_source, locate, read_cells
from malaria_fastai.sample import draw_cell, draw_sample, is_drawn
from malaria_fastai.source import (CXR, NIH, RECORDS, SAMPLE, BadArchive, DataNotFound, DownloadFailed, Record,
                                   class_root, download, extract, facts, install_command, record_for)

def png(n):
    b = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 255, (8, 8, 3), np.uint8)).save(b, 'png')
    return b.getvalue()

TREE = {f'{label}/{i+3*k}.png': png(i + 3*k) for k,label in enumerate(('Parasitized', 'Uninfected')) for i in range(3)}

def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w', compression) as z:
        for k,v in (files.items() if isinstance(files, dict) else files): z.writestr(k, v)
    return path

def planted(folder, files):
    for k,v in files.items():
        (folder/k).parent.mkdir(parents=True, exist_ok=True)
        (folder/k).write_bytes(v)
    return folder

def tree_of(root): return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}

def under(top, files=TREE): return {f'{top}/{k}': v for k,v in files.items()}

# A shop that breaks on demand

class Shop(ThreadingHTTPServer):
    "A web server on this machine: `plan` says how each answer to an address is spoilt, the last way again and again."
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Answer)
        self.asked,self.files,self.plan = [],{},{}
    def sell(self, path, body, *plan):
        self.files[path],self.plan[path] = body,list(plan or ['whole'])
        return f'http://127.0.0.1:{self.server_port}{path}'

class Answer(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        shop,path = self.server,self.path
        shop.asked.append(path)
        if path not in shop.files: return self.send_error(404)
        plan = shop.plan[path]
        how = plan.pop(0) if len(plan) > 1 else plan[0]
        if how == '503': return self.send_error(503)
        body = shop.files[path]
        self.send_response(200)
        if how != 'cut, length unknown': self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:len(body)//2] if how.startswith('cut') else b'?'*len(body) if how == 'other' else body)
        self.close_connection = True

@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr('pooch.core.time.sleep', lambda seconds: None) # a second before each new try
    server = Shop()
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

@pytest.fixture
def archive(tmp_path): return zipped(tmp_path/'made'/'cell_images.zip', under('cell_images')).read_bytes()

@pytest.fixture
def twice(monkeypatch): monkeypatch.setattr(source, '_TRIES', 2) # a third try only costs time

def record_at(url, body, sha256=None):
    return Record('toy', 'Toy cells', ('Parasitized', 'Uninfected'), 'Parasitized', url=url, nbytes=len(body), file='toy.zip',
                  sha256=sha256 or hashlib.sha256(body).hexdigest())

def test_whole_is_fetched_once(shop, archive, tmp_path):
    url = shop.sell('/cell_images.zip', archive)
    file = download(url, tmp_path/'data')
    assert file.read_bytes() == archive
    assert download(url, tmp_path/'data') == file and shop.asked == ['/cell_images.zip']

@pytest.mark.parametrize('broken', ['503', 'cut', 'cut, length unknown', 'other'])
@pytest.mark.parametrize('known', [True, False], ids=['checksum', 'no checksum'])
def test_broken_first_then_whole(shop, archive, tmp_path, broken, known):
    url = shop.sell('/c.zip', archive, broken, 'whole')
    file = download(record_at(url, archive) if known else url, tmp_path/'data')
    assert file.read_bytes() == archive and len(shop.asked) == 2
    assert os.listdir(tmp_path/'data') == [file.name]

@pytest.mark.parametrize('broken', ['503', 'cut', 'cut, length unknown', 'other'])
def test_always_broken_keeps_nothing(shop, archive, tmp_path, broken, twice):
    url = shop.sell('/c.zip', archive, broken)
    with pytest.raises(DownloadFailed) as e: download(record_at(url, archive), tmp_path/'data')
    assert len(shop.asked) == 2 and not any((tmp_path/'data').iterdir())
    facts = url, f'{len(archive):,} bytes', hashlib.sha256(archive).hexdigest(), str(tmp_path/'data'/'toy.zip')
    for o in (*facts, '\n1. ', '\n2. ', '\n3. '): assert o in str(e.value)

def test_wrong_checksum(shop, archive, tmp_path, twice):
    record = record_at(shop.sell('/c.zip', archive), archive, sha256='1'*64)
    with pytest.raises(DownloadFailed, match='(?s)hash.*by hand'): download(record, tmp_path/'data')
    assert len(shop.asked) == 2 and not any((tmp_path/'data').iterdir())

@pytest.mark.parametrize('where', ['gone', 'closed'])
def test_nobody_has_it(shop, tmp_path, where, twice):
    url = f'http://127.0.0.1:{shop.server_port}/no.zip' if where == 'gone' else 'http://127.0.0.1:9/no.zip'
    with pytest.raises(DownloadFailed, match='by hand'): download(url, tmp_path)
    assert not any(tmp_path.iterdir())

def test_a_page_is_not_an_archive(shop, tmp_path, twice):
    url = shop.sell('/login.zip', b'<html>Sign in</html>')
    with pytest.raises(DownloadFailed, match='not a whole zip'): download(url, tmp_path)
    assert not any(tmp_path.iterdir())

def test_same_name_at_two_addresses(shop, archive, tmp_path):
    other = zipped(tmp_path/'other.zip', {'a/1.png': b'1', 'b/2.png': b'2'}).read_bytes()
    one,two = (download(shop.sell(f'/{k}/cell_images.zip?v=1', o), tmp_path/'data') for k,o in (('x', archive), ('y', other)))
    assert one.read_bytes() == archive and two.read_bytes() == other

def test_what_a_person_put_there_is_checked_and_kept(shop, archive, tmp_path):
    record = record_at(shop.sell('/c.zip', archive), archive)
    (tmp_path/'toy.zip').write_bytes(b'mine')
    with pytest.raises(DownloadFailed, match='Delete or rename'): download(record, tmp_path)
    assert (tmp_path/'toy.zip').read_bytes() == b'mine'
    (tmp_path/'toy.zip').write_bytes(archive)
    assert download(record, tmp_path) == tmp_path/'toy.zip' and not shop.asked

def test_xrays_by_hand(tmp_path):
    with pytest.raises(DownloadFailed, match='(?s)an account is needed.*chest_xray.zip'): locate('cxr', tmp_path)
    files = {f'chest_xray/{part}/{label}/{part}{label}{i}.jpeg': png(i)
             for part in ('train', 'test', 'val') for label in CXR.labels for i in range(2)}
    zipped(tmp_path/'chest_xray.zip', files | under('chest_xray', files) | {'chest_xray/__MACOSX/._train': b'x'})
    root = locate('cxr', tmp_path)
    assert sorted(o.name for o in root.iterdir()) == ['test', 'train', 'val']
    assert tree_of(root) == {k.split('/', 1)[1]: v for k,v in files.items()}

# Archives

def entry(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info

def encrypted(path):
    "The flag of an encrypted entry, set by hand: zipfile does not write any."
    raw = bytearray(zipped(path, TREE).read_bytes())
    raw[raw.index(b'PK\1\2') + 8] |= 1
    path.write_bytes(raw)
    return path

HOSTILE = {
    'climbs': ('../x.png', 'leaves'), 'climbs deep': ('a/b/../../../x.png', 'leaves'),
    'climbs in Windows': ('a\\..\\..\\x.png', 'leaves'),
    'absolute': ('/x.png', 'absolute'), 'drive': ('C:\\x.png', 'absolute'), 'share': ('\\\\host\\x.png', 'absolute'),
    'stream': ('a/1.png:x.png', 'colon'),
    'climbs as Thumbs.db': ('../Thumbs.db', 'leaves'), 'control character': ('a/\n.png', 'proper name'),
    'symbolic link': (entry('a/link.png', stat.S_IFLNK | 0o777), 'link'),
    'device': (entry('a/null.png', stat.S_IFCHR | 0o666), 'link or a device'),
    'duplicate': ('Parasitized/0.png', 'want the place'), 'capitals': ('parasitized/0.PNG', 'want the place'),
    'accents': ('é.png', 'want the place'), 'two slashes': ('Parasitized//0.png', 'want the place'), 'a dot': ('Parasitized/./0.png', 'want the place'),
    'a dot at the end': ('Parasitized/0.png/.', 'want the place'), 'file and folder': ('Parasitized/0.png/1.png', 'want the place')}

@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_archives_write_nothing(tmp_path, kind):
    name,why = HOSTILE[kind]
    path = zipped(tmp_path/'in'/'bad.zip', [*TREE.items(), ('e\u0301.png', b'x'), (name, b'x')])
    with pytest.raises(BadArchive, match=why) as e: extract(path, tmp_path/'out')
    assert 'bad.zip' in str(e.value) and os.listdir(tmp_path) == ['in'] and os.listdir(tmp_path/'in') == ['bad.zip']

def test_the_good_part_of_the_hostile_archives_is_good(tmp_path):
    assert extract(zipped(tmp_path/'good.zip', [*TREE.items(), ('e\u0301.png', b'x')]), tmp_path).n_files == len(TREE) + 1

@pytest.mark.parametrize('files,why', [
    ({'a/1.png': bytes(5_000_000)}, 'bomb: it unfolds'),
    ({f'a/{i}.png': bytes(900_000) for i in range(20)}, 'unfold to 18 MB')], ids=['one', 'many'])
def test_bombs(tmp_path, files, why):
    with pytest.raises(BadArchive, match=why): extract(zipped(tmp_path/'bomb.zip', TREE | files), tmp_path/'out')
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('name,limit', [('_MAX_ENTRIES', len(TREE) - 1), ('_MAX_UNPACKED', 100)])
def test_too_much(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(source, name, limit)
    with pytest.raises(BadArchive): extract(zipped(tmp_path/'big.zip', TREE), tmp_path/'out')

LONG = {'folders': '/'.join('a'*32_000) + '/1.png', 'one word': 'a'*65_000 + '.png', 'backslashes': '\\'.join('a'*30_000), 'accents': 'a' + '\u0316\u0301'*16_000 + '.png'}

def short_only(form, text):
    "Put a name in order as `source` does, but no endless one: that is what takes minutes."
    assert len(text) <= 500, 'an endless name is put in order'
    return unicodedata.normalize(form, text)

@pytest.mark.parametrize('kind', LONG)
def test_endless_names_are_refused_at_once(tmp_path, monkeypatch, kind):
    "Twenty such names; to look at every folder above one took a minute, to order the accents of one, seconds."
    path = zipped(tmp_path/'in'/'long.zip', [*TREE.items(), *((f'{i}{LONG[kind]}', b'x') for i in range(20))])
    with monkeypatch.context() as patch:
        patch.setattr(source, 'normalize', short_only)
        with pytest.raises(BadArchive, match='shorter names') as e: extract(path, tmp_path/'out')
    assert 'long.zip' in str(e.value) and len(str(e.value)) < 300 and os.listdir(tmp_path) == ['in']

@pytest.mark.parametrize('name,good', [('a/'*20 + '1.png', True), ('a/'*21 + '1.png', False), ('a'*246 + '/' + 'b'*249 + '.png', True), ('a'*250 + '/' + 'b'*249 + '.png', False)])
def test_names_of_a_sensible_length_are_extracted(tmp_path, name, good):
    path = zipped(tmp_path/'c.zip', {name: b'x'})
    if good: assert extract(path, tmp_path/'out').n_files == 1
    else:
        with pytest.raises(BadArchive, match='500 characters or 20 folders'): extract(path, tmp_path/'out')

def test_encrypted(tmp_path):
    with pytest.raises(BadArchive, match='encrypted'): extract(encrypted(tmp_path/'secret.zip'), tmp_path/'out')

@pytest.mark.parametrize('spoil', ['cut', 'flipped', 'empty', 'no zip', 'no pictures'])
def test_bad_archives(tmp_path, spoil):
    path = zipped(tmp_path/'in'/'bad.zip', {'a/notes.txt': b'x'} if spoil == 'no pictures' else TREE, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    if spoil == 'cut': raw = raw[:len(raw)//2]
    if spoil == 'flipped': raw[100] ^= 255
    if spoil == 'empty': raw = b''
    if spoil == 'no zip': raw = b'x'*1000
    path.write_bytes(raw)
    with pytest.raises(BadArchive, match='bad.zip'): extract(path, tmp_path/'out')
    assert not (tmp_path/'out').exists() or not any((tmp_path/'out').iterdir())

PIECES = st.sampled_from(['a', 'A', 'b', '..', '.', '', 'c:', '1.png', '1.PNG', '2.png', 'Thumbs.db', '__MACOSX', ' '])
NAMES = st.tuples(st.lists(PIECES, min_size=1, max_size=4), st.sampled_from('/\\')).map(lambda o: o[1].join(o[0])).filter(bool)

@pytest.mark.filterwarnings('ignore:Duplicate name')
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=5))
def test_any_names_stay_inside_or_are_refused(tmp_path_factory, names):
    top = tmp_path_factory.mktemp('any')
    path = zipped(top/'in'/'x.zip', [(o, str(i)) for i,o in enumerate(names)])
    try: done = extract(path, top/'in'/'out')
    except BadArchive: done = None
    inside = [p for p in top.rglob('*') if p.is_file() and p != path]
    assert len(inside) == (done.n_files if done else 0)
    assert all(done.root in p.parents for p in inside)
    if done: assert done.n_files + sum(done.left_out.values()) == sum(not o.replace('\\', '/').endswith('/') for o in names)

def test_what_is_left_out_is_counted(tmp_path):
    junk = {'cell_images/Parasitized/Thumbs.db': b'x', 'cell_images/Uninfected/Thumbs.db': b'x', '.DS_Store': b'x',
            '__MACOSX/cell_images/._0.png': b'x', 'cell_images/._1.png': b'x', 'cell_images/readme.txt': b'x',
            'cell_images/LICENSE': b'x'}
    done = extract(zipped(tmp_path/'c.zip', under('cell_images') | junk | under('cell_images/cell_images')), tmp_path)
    assert done.left_out == {'Thumbs.db': 2, '.DS_Store': 1, '__MACOSX': 1, 'hidden file': 1, '.txt': 1, 'no extension': 1,
                             'copy in a nested folder': len(TREE)}
    assert done.n_files == len(TREE) and tree_of(done.root/'cell_images') == TREE

def test_another_picture_in_a_nested_folder_is_kept(tmp_path):
    done = extract(zipped(tmp_path/'c.zip', under('top') | {'top/top/Parasitized/0.png': b'other'}), tmp_path)
    assert done.n_files == len(TREE) + 1 and not done.left_out

def test_twice_is_once(tmp_path):
    path = zipped(tmp_path/'c.zip', TREE)
    first = extract(path, tmp_path/'out')
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in first.root.rglob('*')}
    assert extract(path, tmp_path/'out') == first
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in first.root.rglob('*')} == before

def test_gaps_are_filled_and_the_rest_stays(tmp_path):
    path = zipped(tmp_path/'c.zip', TREE)
    root = extract(path, tmp_path/'out').root
    (root/'Parasitized'/'0.png').unlink()
    (root/'Uninfected'/'4.png').write_bytes(b'short')
    planted(root, {'models/mine.pth': b'mine'})
    extract(path, tmp_path/'out')
    assert tree_of(root) == TREE | {'models/mine.pth': b'mine'}

def test_another_archive_of_the_same_name(tmp_path):
    one = extract(zipped(tmp_path/'x'/'c.zip', TREE), tmp_path/'out')
    two = extract(zipped(tmp_path/'y'/'c.zip', TREE | {'Parasitized/0.png': b'other'}), tmp_path/'out')
    assert one.root != two.root and tree_of(one.root) == TREE and tree_of(two.root)['Parasitized/0.png'] == b'other'

def test_killed_half_way(tmp_path):
    many = {f'c/{label}/{i}.png': bytes(200) + str(i).encode() for label in 'ab' for i in range(4000)}
    path,out = zipped(tmp_path/'many.zip', many, zipfile.ZIP_STORED),tmp_path/'out'
    code = f'from malaria_fastai.source import extract; extract({str(path)!r}, {str(out)!r})'
    child = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    until = time.time() + 60
    while time.time() < until and child.poll() is None and sum(1 for _ in out.rglob('*.png')) < 200: time.sleep(.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    left = os.listdir(out)
    assert len(left) == 1 and left[0].endswith('.part') # nothing that looks whole
    with pytest.raises(DataNotFound): class_root(out)
    os.utime(out/left[0], (0, 0))
    done = extract(path, out)
    assert tree_of(done.root) == many and os.listdir(out) == [done.root.name]

def test_two_at_the_same_time(tmp_path):
    path,found = zipped(tmp_path/'c.zip', {f'{label}/{i}.png': b'x' for label in 'ab' for i in range(300)}),[]
    threads = [threading.Thread(target=lambda: found.append(extract(path, tmp_path/'out'))) for _ in range(4)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(found) == 4 and len(set(o.root for o in found)) == 1
    assert os.listdir(tmp_path/'out') == [found[0].root.name] and len(tree_of(found[0].root)) == 600

def tarred(path, how):
    "The plain tree as a tar."
    planted(path.parent/'tree', TREE)
    with tarfile.open(path, how) as packed: packed.add(path.parent/'tree', 'cell_images')
    return path

PACKED = {
    'tar': (lambda top: tarred(top/'c.tar', 'w'), 'a tar archive; a zip is expected. Unpack it'),
    'tar.gz': (lambda top: tarred(top/'c.tgz', 'w:gz'), 'a tar archive; a zip is expected'),
    'tar.xz as zip': (lambda top: tarred(top/'c.zip', 'w:xz'), 'a tar archive; a zip is expected'),
    'a zip of zips': (lambda top: zipped(top/'c.zip', {'Parasitized.zip': b'x', 'Uninfected.zip': b'y', 'readme.txt': b'z'}),
                      'no pictures .*, but 2 .zip, 1 .txt. Unpack it until there is one folder of pictures per class'),
    'an empty zip': (lambda top: zipped(top/'c.zip', {}), 'no pictures .*, but nothing'),
    'flat': (lambda top: zipped(top/'c.zip', {'1.png': png(1), '2.png': png(2)}), 'lie in no class folders. Put each class into a folder.*from_csv'),
    'flat in a folder': (lambda top: zipped(top/'c.zip', {'cells/1.png': png(1), 'cells/2.png': png(2)}), None)}

@pytest.mark.parametrize('kind', PACKED)
def test_archives_say_what_was_found_and_what_is_expected(tmp_path, kind):
    make,says = PACKED[kind]
    with pytest.raises((BadArchive, DataNotFound, NoCells), match=says) as e: read_cells(locate(make(tmp_path), tmp_path/'data'), progress=False)
    if kind == 'flat in a folder': assert "only the class 'cells'" in str(e.value)

# One table, whatever the layout

LAYOUTS = {
    'plain zip': under('cell_images'), 'no top folder': TREE,
    'Thumbs.db': under('cell_images', TREE | {'Parasitized/Thumbs.db': b'x'}),
    'Kaggle': under('cell_images') | under('cell_images/cell_images'), 'Kaggle without top': TREE | under('cell_images'),
    'Mac': under('cell_images') | {'__MACOSX/cell_images/Parasitized/._0.png': b'x'}, 'wrapped': under('a/b/cell_images'),
    'Windows': {k.replace('/', '\\'): v for k,v in under('cell_images').items()}, '2019': under('data/train')}

def same_table(root):
    "Whether `root` reads as the table of the plain tree."
    from malaria_fastai.cells import read_cells
    cells = read_cells(root, progress=False)
    found = dict(zip(cells.label + '/' + cells.path.str.split('/').str[-1], cells.sha256))
    return found == {k: hashlib.sha256(v).hexdigest() for k,v in TREE.items()} and list(cells.path) == sorted(TREE)

@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_zip_gives_the_same_table(tmp_path, layout):
    assert same_table(locate(zipped(tmp_path/'cell_images.zip', LAYOUTS[layout]), tmp_path/'data'))

@pytest.mark.parametrize('layout,given', [
    ('plain zip', ''), ('plain zip', 'cell_images'), ('2019', 'data'), ('2019', 'data/train'), ('2019', ''),
    ('Kaggle', ''), ('Kaggle', 'cell_images'), ('wrapped', ''), ('Thumbs.db', '')])
def test_every_folder_gives_the_same_table(tmp_path, layout, given):
    planted(tmp_path, LAYOUTS[layout] | {'data/models/stage-1.pth': b'x'})
    assert same_table(locate(tmp_path/given, tmp_path/'unused'))

def test_address_to_table(shop, archive, tmp_path, capsys):
    url = shop.sell('/cell_images.zip', archive)
    assert same_table(locate(url, tmp_path)) and same_table(locate(url, tmp_path)) and len(shop.asked) == 1
    assert f'{len(TREE)} pictures' in capsys.readouterr().out

@pytest.mark.parametrize('given,says', [
    ('nhi', 'did you mean nih'), ('smaple', 'did you mean sample'), ('no/such/folder', 'http.s. address'), ('', 'empty name'),
    ('cell_imges.zip', 'did you mean .*cell_images.zip')])
def test_unknown_words(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'cell_images.zip').write_bytes(b'')
    with pytest.raises(DataNotFound, match=says): locate(given)
    assert os.listdir(tmp_path) == ['cell_images.zip']

@pytest.mark.parametrize('files,given,says', [
    ({}, '', 'no folder of pictures'),
    (TREE, 'Parasitized', 'Give the folder above'), (under('x') | under('y'), '', 'several data sets'),
    (under('1/2/3/4/5/6'), '', 'no folder of pictures')], ids=['empty', 'one class', 'two sets', 'too deep'])
def test_folders_that_are_no_data_set(tmp_path, files, given, says):
    with pytest.raises(DataNotFound, match=says): locate(planted(tmp_path, files)/given)

def test_a_picture_is_no_archive(tmp_path):
    with pytest.raises(BadArchive, match='1.png'): locate(planted(tmp_path, {'1.png': png(1)})/'1.png', tmp_path/'data')

# Records, facts, defaults

def test_records():
    assert list(RECORDS) == ['nih', 'cxr', 'sample'] and len({hash(o) for o in RECORDS.values()}) == 3
    for o in RECORDS.values(): assert o.positive in o.labels and set(o.counts) == set(o.labels) and o.licence and o.credit
    assert record_for(('Uninfected', 'Parasitized')) is NIH and record_for(['PNEUMONIA', 'NORMAL']) is CXR
    assert record_for(['Parasitized']) is None
    assert '27,558' in repr(NIH) and 'not stated' in repr(NIH) and 'no photographs' in repr(SAMPLE)

def test_default_source(monkeypatch):
    monkeypatch.delenv('MALARIA_DATA', raising=False)
    assert default_source() == 'sample'
    monkeypatch.setitem(sys.modules, 'google.colab', object())
    assert default_source() == 'nih'
    monkeypatch.setenv('MALARIA_DATA', 'some/folder')
    assert default_source() == 'some/folder'

def test_light_import():
    heavy = 'torch', 'fastai', 'pandas', 'matplotlib', 'sklearn'
    code = f"import sys, malaria_fastai.source; print([o for o in {heavy} if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

# The drawn sample

def rows(sample): return list(csv.DictReader(open(sample/'truth.csv')))

def slide_of(name): return re.fullmatch(r'(.+)_cell_\d+\.png', name).group(1).split('_IMG_')[0]

def patient_of(name): return (re.search(r'P\d+', slide_of(name)) or re.search(r'C\d+', slide_of(name))).group(0)

@pytest.fixture(scope='module')
def names(sample_root): return {label: sorted(p.name for p in (sample_root/label).glob('*.png')) for label in SAMPLE.labels}

@pytest.mark.slow
def test_same_seed_same_pictures(sample_root, tmp_path):
    drawn = {name: data for name,data in tree_of(sample_root).items() if not name.startswith('.cache')} # other tests have a cache there
    assert tree_of(draw_sample(tmp_path/'again')) == drawn
    other = draw_sample(tmp_path/'again', seed=1)
    assert {p.name for p in other.rglob('*.png')} == {p.name for p in sample_root.rglob('*.png')}
    assert not {hashlib.sha256(p.read_bytes()).digest() for p in other.rglob('*.png')} & \
               {hashlib.sha256(p.read_bytes()).digest() for p in sample_root.rglob('*.png')}

def test_a_cell_depends_on_nothing_but_its_numbers(sample_root):
    "Cell 3 of slide 5, drawn alone, is the cell of the sample."
    slide = sample._SLIDES[5][0]
    im,where = draw_cell(np.random.default_rng([42, 5, 3]), True, sample._stain(np.random.default_rng([42, 5])))
    file = next((sample_root/'Parasitized').glob(f'{slide}_*_cell_103.png'))
    assert np.array_equal(np.asarray(im), np.asarray(Image.open(file)))
    row = next(r for r in rows(sample_root) if r['path'].endswith(file.name))
    assert [round(float(o), 1) for o in where] == [float(row[k]) for k in ('x', 'y', 'radius')]

@pytest.fixture
def copy(sample_root, tmp_path): return Path(shutil.copytree(sample_root, tmp_path/'drawn-sample'))

def test_drawn_once_and_mended(copy, tmp_path):
    planted(copy, {'models/mine.pth': b'mine'})
    before,mark = tree_of(copy),(copy/'truth.csv').stat().st_ino
    assert locate('sample', tmp_path) == locate('Sample', tmp_path) == copy and (copy/'truth.csv').stat().st_ino == mark
    next((copy/'Parasitized').glob('*.png')).unlink()
    assert tree_of(locate('sample', tmp_path)) == before and os.listdir(tmp_path) == ['drawn-sample']

def test_not_among_other_files(tmp_path):
    planted(tmp_path, {'thesis.txt': b'mine'})
    with pytest.raises(DataNotFound, match='other files'): draw_sample(tmp_path)
    assert tree_of(tmp_path) == {'thesis.txt': b'mine'}

def test_naming_traps(names):
    every = [n for o in names.values() for n in o]
    slides,patients = {slide_of(n) for n in every},{patient_of(n) for n in every}
    infected = {patient_of(n) for n in names['Parasitized']}
    assert len(patients) == SAMPLE.patients == 24 and len(slides) == 25
    assert sum('P908' in o for o in slides) == 2                                        # one patient, two microscopes
    assert any(re.match(r'C\d+[A-Z]P\d', o) for o in slides)                            # C37BP2: a letter between the numbers
    assert any(re.search(r'P\d+N', o) for o in slides) and 'C912NThinF' in slides       # N does not mean negative
    assert infected == {o for o in patients if o[0] == 'P'} <= {patient_of(n) for n in names['Uninfected']}
    for o in ('thinF', 'ThinF', '_thinF', 'thin_original', 'thinF_original', 'Original_Motic', 'OriginalOlympusCX21', 'ReThinF',
              'N_ThinF'):
        assert any(slide.endswith(o) for slide in slides), o
    assert any(re.search(r'_\d{6}a_cell', n) for n in every)
    controls = patients - infected
    assert any(a != b and b.startswith(a) for a in controls for b in controls)          # C1 is a prefix of C12
    assert any(a != b and b.startswith(a) for a in infected for b in infected)
    photos = {k: {n.rsplit('_cell_', 1)[0] for n in v} for k,v in names.items()}
    assert photos['Parasitized'] & photos['Uninfected']                                 # photographs with both classes
    assert not set(names['Parasitized']) & set(names['Uninfected'])

def test_names_are_not_in_the_real_set(names):
    import gzip
    real = [o.split(',')[0] for o in gzip.open(facts('manifest.csv.gz'), 'rt').read().splitlines()[1:]]
    assert len(real) == 27_558 and not {patient_of(o) for o in real} & {patient_of(n) for o in names.values() for n in o}

def test_pictures_look_like_those_of_the_real_set(sample_root):
    pictures = [np.asarray(Image.open(p)) for p in sample_root.rglob('*.png')]
    assert len(pictures) == 720 and all(o.dtype == np.uint8 and o.shape[2] == 3 for o in pictures)
    sides = np.array([o.shape[:2] for o in pictures])
    assert 80 < np.median(sides) < 110 and 50 <= sides.min() and sides.max() <= 160
    black = np.array([(o == 0).all(2).mean() for o in pictures])
    assert .15 < np.median(black) < .35 # the real cells: .27
    assert np.mean([not o[[0, 0, -1, -1], [0, -1, 0, -1]].any() for o in pictures]) > .97
    assert (sample_root/'Parasitized'/'Thumbs.db').exists() and (sample_root/'Uninfected'/'Thumbs.db').exists()

def test_truth_is_where_the_purple_is(sample_root):
    table = rows(sample_root)
    assert [r['path'] for r in table] == sorted(p.relative_to(sample_root).as_posix() for p in sample_root.rglob('*.png'))
    assert all((r['x'] == '') == (r['label'] == 'Uninfected') for r in table)
    darker = []
    for r in (o for o in table if o['x']):
        a = np.asarray(Image.open(sample_root/r['path'])).astype(float)
        yy,xx = np.mgrid[:a.shape[0], :a.shape[1]]
        near,cell = np.hypot(xx - float(r['x']), yy - float(r['y'])) < float(r['radius']),a.any(2)
        darker.append(np.percentile(a[near & cell, 1], 10) < np.percentile(a[cell & ~near, 1], 10))
    assert np.mean(darker) > .9

def test_room_is_asked_for_first(tmp_path, monkeypatch):
    "Nothing is written where the pictures would not fit."
    monkeypatch.setattr(source.shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match='make room or name another folder'): extract(zipped(tmp_path/'x.zip', TREE), tmp_path/'out')
    assert not [path for path in (tmp_path/'out').rglob('*') if path.is_file()]

def accuracy_of_colour(sample_root, seed=0):
    "Of gradient boosting on 30 numbers of colour per cell, patients kept apart."
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from threadpoolctl import threadpool_limits
    paths = sorted(sample_root.rglob('*.png'))
    pixels = (a[a.any(1)] for a in (np.asarray(Image.open(p)).reshape(-1, 3).astype(float) for p in paths))
    x = np.array([np.r_[np.percentile(a, [1, 5, 10, 25, 50, 75, 90, 95, 99], axis=0).ravel(), a.std(0)] for a in pixels])
    y,patients = np.array([p.parent.name == 'Parasitized' for p in paths]),[patient_of(p.name) for p in paths]
    floor = HistGradientBoostingClassifier(random_state=seed)
    with threadpool_limits(1): # threads cost more than they give on so little
        pred = cross_val_predict(floor, x, y, groups=patients, cv=StratifiedGroupKFold(5, shuffle=True, random_state=seed))
    return (pred == y).mean()

def test_colour_alone_stays_under_nine_tenths(sample_root):
    "tests/margins.py: how far from failing."
    assert .65 < accuracy_of_colour(sample_root) < .9

@pytest.mark.real
def test_real_archive(nih_root, tmp_path):
    start = time.time()
    done = extract(os.environ['MALARIA_NIH_ZIP'], tmp_path)
    assert time.time() - start < 30
    assert done.left_out == {'Thumbs.db': 2} and done.n_files == 12_670
    assert {o.name: len(os.listdir(o)) for o in class_root(done.root).iterdir()} == {'Parasitized': 6_429, 'Uninfected': 6_241}

# ---- extras

def test_errors_and_pages_name_the_same_line():
    here = Path(__file__).parent.parent
    assert install_command('x').replace('[x]', '') in (here/'README.md').read_text(encoding='utf-8')
    for extra,page in (('audit', '04'), ('onnx', '08'), ('distributed', '09')):
        text = next((here/'nbs/tutorials').glob(f'{page}*.ipynb')).read_text(encoding='utf-8').replace('\\"', '"')
        wanted,address = install_command(extra).removeprefix('pip install ').split('git+')
        assert wanted+'git+{address}' in text and f"address = '{address[:-1]}'" in text, page
