"What a notebook cannot say about cells: every kind of picture, damage at any byte, odd folders, and the real archive."
import io, struct, subprocess, sys, time, warnings, zlib

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile

from malaria_fastai import cells as C
from malaria_fastai.source import DataNotFound, class_root
from malaria_fastai.cells import (BadPicture, ChangedCells, NoCells, describe, identity, manifest, open_picture,
                                  read_cells, verify)

# --- pictures -------------------------------------------------------------------------------------------------------------------

RNG = np.random.RandomState(0)
RGB = RNG.randint(0, 256, (7, 9, 3)).astype(np.uint8)
GREY = RGB[...,0]

def saved(im, fmt, **kwargs):
    "The bytes of a picture in a format."
    if isinstance(im, np.ndarray): im = Image.fromarray(im)
    out = io.BytesIO()
    im.save(out, fmt, **kwargs)
    return out.getvalue()

def opened(data, **kwargs): return np.asarray(open_picture(io.BytesIO(data), **kwargs))

def grey3(a): return np.repeat(a[...,None], 3, axis=-1)

def raw_png(a, colour):
    "A 16-bit PNG written by hand, since Pillow writes no 16-bit colour. `colour`: 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."
    def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    h,w = a.shape[:2]
    lines = b''.join(b'\0'+row.astype('>u2').tobytes() for row in a)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, colour, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b''))

@pytest.mark.parametrize('fmt', ['PNG','TIFF','BMP'])
@pytest.mark.parametrize('mode', ['RGB','L','1','P'])
def test_plain_modes_are_what_pillow_says(fmt, mode):
    im = Image.fromarray(RGB).convert(mode)
    assert (opened(saved(im, fmt)) == np.asarray(im.convert('RGB'))).all()

def test_palette_keeps_its_colours():
    im = Image.fromarray(np.array([[0,1,2]], np.uint8)).convert('P')
    im.putpalette([255,0,0, 0,255,0, 0,0,255])
    assert opened(saved(im, 'PNG')).tolist() == [[[255,0,0],[0,255,0],[0,0,255]]]

def test_transparent_palette_entry_is_black():
    im = Image.fromarray(np.array([[0,1]], np.uint8)).convert('P')
    im.putpalette([255,0,0, 0,255,0])
    assert opened(saved(im, 'PNG', transparency=0)).tolist() == [[[0,0,0],[0,255,0]]]

def test_alpha_lies_on_black():
    rgba = np.array([[[200,100,50,255], [200,100,50,0], [200,100,50,128]]], np.uint8)
    got = opened(saved(rgba, 'PNG'))[0]
    assert got[0].tolist() == [200,100,50] and got[1].tolist() == [0,0,0]
    assert np.abs(got[2].astype(int)-[100,50,25]).max() <= 1
    la = opened(saved(Image.fromarray(rgba).convert('LA'), 'PNG'))[0]
    assert la[1].tolist() == [0,0,0] and la[0].min() > 90

def test_transparent_colour_of_rgb_and_grey_is_black():
    a = np.array([[[9,9,9],[200,0,0]]], np.uint8)
    assert opened(saved(a, 'PNG', transparency=(200,0,0))).tolist() == [[[9,9,9],[0,0,0]]]
    assert opened(saved(np.array([[7,80]], np.uint8), 'PNG', transparency=80)).tolist() == [[[7,7,7],[0,0,0]]]

@pytest.mark.parametrize('fmt', ['PNG','TIFF'])
def test_16_bit_grey_is_scaled_not_clipped(fmt):
    assert (opened(saved(GREY.astype(np.uint16)*257, fmt)) == grey3(GREY)).all()

def test_16_bit_big_endian_tiff():
    im = Image.frombytes('I;16B', (9, 7), (GREY.astype('>u2')*257).astype('>u2').tobytes())
    assert (opened(saved(im, 'TIFF')) == grey3(GREY)).all()

@pytest.mark.parametrize('channels,colour', [(1,0),(3,2),(2,4),(4,6)])
def test_16_bit_png_of_any_colour(channels, colour):
    a = np.stack([GREY]*channels, axis=-1)
    if channels in (2,4): a[...,-1] = 255
    assert (opened(raw_png(a.astype(np.uint16)*257, colour)) == grey3(GREY)).all()

def test_32_bit_integers_within_16_bits_are_scaled_and_beyond_refused():
    assert (opened(saved(GREY.astype(np.int32)*257, 'TIFF')) == grey3(GREY)).all()
    with pytest.raises(BadPicture, match='beyond 16 bits'): opened(saved(GREY.astype(np.int32)*1000, 'TIFF'))

def test_floating_point_is_refused():
    with pytest.raises(BadPicture, match='no known range'): opened(saved(GREY.astype(np.float32), 'TIFF'))

def test_cmyk():
    flat = np.full((16,16,3), (200,30,90), np.uint8)
    for fmt in ('JPEG','TIFF'):
        assert np.abs(opened(saved(Image.fromarray(flat).convert('CMYK'), fmt)).astype(int)-flat).max() <= 4

@pytest.mark.parametrize('fmt', ['PNG','JPEG','TIFF'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_exif_rotation_is_applied_once(fmt, turn):
    "A white corner ends where the orientation says, and reading the result again changes nothing."
    a = np.zeros((16,24,3), np.uint8)
    a[:8,:8] = 255
    exif = Image.Exif()
    exif[274] = turn
    got = opened(saved(a, fmt, exif=exif))
    mirrored = a.transpose(1,0,2)
    want = [a, a[:,::-1], a[::-1,::-1], a[::-1], mirrored, np.rot90(a, -1), mirrored[::-1,::-1], np.rot90(a)][turn-1]
    assert got.shape == want.shape and np.abs(got.astype(int)-want).mean() < 4
    assert (opened(saved(got, 'PNG')) == got).all()

def test_result_is_a_plain_picture(tmp_path):
    (tmp_path/'a.png').write_bytes(saved(RGB, 'PNG'))
    im = open_picture(tmp_path/'a.png')
    assert im.mode == 'RGB' and (np.asarray(im) == RGB).all()
    assert (np.asarray(open_picture(str(tmp_path/'a.png'))) == RGB).all()

def test_content_counts_not_the_extension(tmp_path):
    (tmp_path/'a.png').write_bytes(saved(RGB, 'BMP'))
    assert (np.asarray(open_picture(tmp_path/'a.png')) == RGB).all()

def test_phone_picture_with_a_preview_is_its_main_picture():
    data = saved(np.full_like(RGB, 77), 'MPO', save_all=True, append_images=[Image.fromarray(RGB)])
    assert np.abs(opened(data).astype(int)-77).max() < 3

BAD = {
    'empty': (b'', 'empty'),
    'zeros': (bytes(500), 'no picture'),
    'text': (b'label,score\n1,2\n', 'no picture'),
    'page': (b'\n<!doctype html><html>not found</html>', 'web page'),
    'pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n', 'Git LFS'),
    'zip': (b'PK\x03\x04'+bytes(50), 'zip'),
    'gif': (saved(GREY, 'GIF'), 'GIF'),
    'webp': (saved(RGB, 'WEBP'), 'WebP'),
    'animated': (saved(RGB, 'PNG', save_all=True, append_images=[Image.fromarray(RGB[::-1])]), 'more than one picture'),
    'pages': (saved(RGB, 'TIFF', save_all=True, append_images=[Image.fromarray(RGB[::-1])]), 'more than one picture'),
    'large': (saved(Image.new('1', (5000, 2500)), 'PNG'), '12,500,000|5000 x 2500'),
    'bomb': (raw_png(np.zeros((1,1), np.uint16), 0)[:16]+struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0), 'truncated'),
    'truncated png': (saved(RGB, 'PNG')[:-20], 'truncated'),
    'truncated jpeg': (saved(np.kron(RGB, np.ones((9,9,1), np.uint8)), 'JPEG')[:900], 'truncated'),
    'header only': (b'\x89PNG\r\n\x1a\n', 'truncated'),
}

@pytest.mark.parametrize('kind', BAD)
def test_bad_picture_says_file_reason_and_remedy(kind, tmp_path):
    data,reason = BAD[kind]
    file = tmp_path/'this one.png'
    file.write_bytes(data)
    with pytest.raises(BadPicture, match=reason) as e: open_picture(file)
    assert 'this one.png' in str(e.value) and e.value.remedy and '\n' not in str(e.value)

def test_a_giant_header_is_refused_before_decoding():
    ihdr = b'IHDR'+struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n\0\0\0\r'+ihdr+struct.pack('>I', zlib.crc32(ihdr))+b'\0\0\0\0IEND\xaeB`\x82'
    with pytest.raises(BadPicture, match='far too many pixels'): opened(data)

def chained_tiff(n):
    "A TIFF whose page comes `n` times more: each says where the next one is, and all show the same pixels."
    data = saved(RGB, 'TIFF')
    at, = struct.unpack_from('<I', data, 4)
    end = at + 2 + 12*struct.unpack_from('<H', data, at)[0]
    page,size = data[at:end],end - at + 4
    nexts = [len(data) + size*i for i in range(n)] + [0]
    return data[:end] + struct.pack('<I', nexts[0]) + data[end+4:] + b''.join(page + struct.pack('<I', o) for o in nexts[1:])

def scans_jpeg(n, size=(40, 30)):
    "A progressive JPEG whose last scan comes `n` times more."
    data = saved(Image.new('RGB', size, (200, 120, 140)), 'JPEG', progressive=True)
    at = data.rindex(b'\xff\xda')
    return data[:at] + data[at:-2]*n + data[-2:]

def exif_jpeg(n):
    "A JPEG with `n` EXIF blocks of one byte."
    data = saved(RGB, 'JPEG')
    return data[:2] + b'\xff\xe1\0\x09Exif\0\0x'*n + data[2:]

SLOW = {'pages': (chained_tiff(100_000), 'more than one picture'), 'scans': (scans_jpeg(100_000), 'more than 200 scans'),
        'EXIF blocks': (exif_jpeg(1_000_000), 'more than 200 EXIF blocks')}

@pytest.mark.parametrize('kind', SLOW)
def test_files_made_to_keep_a_program_busy_are_refused_at_once(kind):
    data,reason = SLOW[kind]
    start = time.perf_counter()
    with pytest.raises(BadPicture, match=reason): opened(data)
    assert time.perf_counter() - start < 10 # it takes milliseconds; decoding would take minutes or hours

def test_as_many_scans_as_are_allowed_take_seconds():
    start = time.perf_counter()
    assert opened(scans_jpeg(C._MAX_SCANS - 10, (4000, 3000))).shape == (3000, 4000, 3)
    assert time.perf_counter() - start < 60

@pytest.mark.parametrize('data', [scans_jpeg(20), exif_jpeg(3), chained_tiff(0)])
def test_a_few_scans_and_blocks_are_read(data): assert opened(data).ndim == 3

def test_no_file_and_a_folder(tmp_path):
    for o in (tmp_path/'gone.png', tmp_path):
        with pytest.raises(BadPicture, match='cannot be read'): open_picture(o)

def test_limit_can_be_raised():
    data = saved(Image.new('1', (5000, 2500)), 'PNG')
    assert opened(data, max_pixels=20_000_000).shape == (2500,5000,3)
    with pytest.raises(BadPicture, match='more than 10'): opened(saved(RGB, 'PNG'), max_pixels=10)

def test_pillow_told_to_accept_half_pictures_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    with pytest.raises(BadPicture, match='LOAD_TRUNCATED_IMAGES = False'): opened(saved(RGB, 'PNG'))

def test_errors_survive_pickling():
    import pickle
    for e in (BadPicture('a.png', 'bad', 'do'), BadPicture('a.png', 'bad')):
        assert str(pickle.loads(pickle.dumps(e))) == str(e)

WHOLE = {'PNG':saved(RGB, 'PNG'), 'BMP':saved(RGB, 'BMP'), 'TIFF':saved(RGB, 'TIFF'),
         'TIFF, packed':saved(RGB, 'TIFF', compression='tiff_lzw'), 'JPEG':saved(RGB, 'JPEG'),
         'palette':saved(Image.fromarray(RGB).convert('P'), 'PNG')}
PIXELS = {k:opened(v) for k,v in WHOLE.items()}

def whole_or_bad(data):
    "Pixels, or None for a `BadPicture`; any other exception is a failure."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: return opened(data)
        except BadPicture: return None

@pytest.mark.parametrize('kind', WHOLE)
def test_cut_at_every_byte_is_refused_or_complete(kind):
    for n in range(len(WHOLE[kind])):
        got = whole_or_bad(WHOLE[kind][:n])
        assert got is None or (got.shape == PIXELS[kind].shape and (got == PIXELS[kind]).all()), n

@pytest.mark.parametrize('kind', ['PNG','palette'])
def test_every_changed_byte_of_a_png_is_refused(kind):
    data = WHOLE[kind]
    for i in range(len(data)):
        for bit in (1, 0x80): assert whole_or_bad(data[:i]+bytes([data[i]^bit])+data[i+1:]) is None, i

@pytest.mark.parametrize('kind', WHOLE)
@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 30))
def test_any_damage_ends_in_pixels_or_bad_picture(kind, edits, cut):
    data = bytearray(WHOLE[kind])
    for i,v in edits: data[i%len(data)] = v
    got = whole_or_bad(bytes(data[:len(data)-cut]))
    assert got is None or (got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3)

@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b'', *C._SIGNED]), st.binary(max_size=300))
def test_noise_is_refused(start, data): assert whole_or_bad(start+data) is None

# --- names ----------------------------------------------------------------------------------------------------------------------

@given(st.text(max_size=60))
def test_any_name_has_all_or_nothing(name):
    got = identity(name)
    assert list(got) == ['patient','slide','photo']
    assert all(isinstance(o, str) for o in got.values()) or all(o is pd.NA for o in got.values())

def test_names_of_the_full_set():
    known = manifest()
    assert (len(known), known.patient.nunique(), known.slide.nunique(), known.photo.nunique()) == (27_558, 200, 201, 1_408)
    assert known.label.value_counts().to_dict() == dict(Parasitized=13_779, Uninfected=13_779)
    assert known.filename.is_unique and known.sha256.is_unique and int(known.bytes.sum()) == 331_987_597
    infected = known.patient.str.startswith('P')
    assert known.patient[infected].nunique() == 150 and set(known.label[~infected]) == {'Uninfected'}
    assert known[known.patient=='P8'].slide.nunique() == 2 and known.groupby('patient').slide.nunique().drop('P8').max() == 1
    assert known.groupby('label').disputed.sum().to_dict() == dict(Parasitized=647, Uninfected=750)
    assert int((known.disputed & ~infected).sum()) == 153

def test_manifest_is_a_copy():
    mine = manifest()
    mine['label'] = 'x'
    assert 'x' not in set(manifest().label)

# --- folders --------------------------------------------------------------------------------------------------------------------

def picture(file, colour=None):
    "Write a small picture, of its own colour."
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = colour or tuple(zlib.crc32(str(file).encode()).to_bytes(4, 'big')[:3])
    Image.new('RGB', (8, 6), colour).save(file)

def tree(root, *paths):
    for o in paths: picture(root/o)
    return root

def read(root, **kwargs): return read_cells(root, progress=False, **kwargs)

def test_plain_layout(tmp_path, capsys):
    cells = read(tree(tmp_path, 'b/2.png', 'b/10.PNG', 'a/x y.jpg', 'a/é.bmp'))
    assert cells.path.tolist() == sorted(['a/x y.jpg', 'a/é.bmp', 'b/10.PNG', 'b/2.png'])
    assert cells.label.tolist() == ['a','a','b','b'] and isinstance(cells.index, pd.RangeIndex)
    assert list(cells) == 'path label patient slide photo width height bytes sha256 disputed folder_split'.split()
    assert cells[['patient','slide','photo','disputed','folder_split']].isna().all(axis=None)
    assert (cells.width.tolist(), cells.height.tolist()) == ([8]*4, [6]*4) and cells.width.dtype == 'int64'
    assert capsys.readouterr().out == "4 cells in 2 classes; left out: nothing\n"

def test_parts_layout(tmp_path):
    cells = read(tree(tmp_path, 'train/a/1.png', 'train/b/2.png', 'val/a/3.png', 'TEST/b/4.png', 'extra/a/1.png'))
    assert cells.path.tolist() == ['TEST/b/4.png','train/a/1.png','train/b/2.png','val/a/3.png']
    assert cells.folder_split.tolist() == ['test','train','train','valid']
    assert cells.attrs['left_out'] == {'picture outside a class folder':1}

@pytest.mark.parametrize('train,valid,test', [
    ('Training', 'Validation', 'Testing'), ('Train', 'VAL', 'TEST'), ('train_set', 'valid-set', 'test set'), ('trainset', 'dev', 'testing_images'),
    ('Train Data', 'Val', 'test1')])
def test_parts_have_many_names(tmp_path, train, valid, test):
    cells = read(tree(tmp_path, f'{train}/a/1.png', f'{train}/b/2.png', f'{valid}/a/3.png', f'{test}/b/4.png', f'{test}/5.png'))
    assert dict(zip(cells.path, cells.folder_split)) == {
        f'{train}/a/1.png': 'train', f'{train}/b/2.png': 'train', f'{valid}/a/3.png': 'valid', f'{test}/b/4.png': 'test'}
    assert set(cells.label) == {'a', 'b'} and cells.attrs['left_out'] == {'picture outside a class folder': 1}

@pytest.mark.parametrize('paths,names', [
    (('Parasitized/1.png', 'Uninfected/2.png', 'test/3.png'), 'Parasitized, Uninfected, test'), # test pictures without labels, or a class
    (('train/a/1.png', 'train/b/2.png', 'a/3.png'), 'a, train'), (('train/1.png', 'test/2.png'), 'test, train'),
    (('train/a/1.png', 'Training/b/2.png'), 'Training, train'), (('val/a/1.png', 'valid/a/2.png', 'train/a/3.png'), 'train, val, valid')])
def test_two_readings_of_folders_are_shown(tmp_path, paths, names):
    for look in (read, class_root):
        with pytest.raises(DataNotFound, match=f'two readings of its folders {names}: as classes, or as training'): look(tree(tmp_path, *paths))

def link(root, **to):
    for name,target in to.items(): (root/name).symlink_to(target)
    return root

def test_links_inside_are_followed_once_and_others_are_named(tmp_path, capsys):
    root = tree(tmp_path/'root', 'raw/ring/1.png', 'raw/ring/deep/5.png', 'Uninfected/2.png')
    tree(tmp_path/'elsewhere', 'a/3.png')
    link(root, Parasitized='raw/ring', Again='raw/ring', Healthy=root/'Uninfected', Other=tmp_path/'elsewhere'/'a', loop='.')
    cells = read(root)
    assert dict(zip(cells.path, cells.label)) == {'Again/1.png': 'Again', 'Uninfected/2.png': 'Uninfected'} # the first of two links
    assert cells.attrs['left_out'] == {'linked folder Healthy': 1, 'linked folder Other': 1, 'linked folder Parasitized': 1, 'linked folder loop': 1,
                                       'picture outside a class folder': 3}
    assert 'linked folder Other' in capsys.readouterr().out

def test_a_linked_part_is_a_part(tmp_path):
    root = link(tree(tmp_path, 'sets/one/a/1.png', 'sets/one/b/2.png', 'test/a/3.png'), train='sets/one')
    assert read(root).folder_split.tolist() == ['test', 'train', 'train']

def test_all_classes_behind_links_that_lead_out(tmp_path):
    tree(tmp_path/'input', 'a/1.png', 'b/2.png')
    (tmp_path/'work').mkdir()
    root = link(tmp_path/'work', a=tmp_path/'input'/'a', b=tmp_path/'input'/'b')
    with pytest.raises(NoCells, match='1 linked folder a, 1 linked folder b'): read(root)
    with pytest.raises(DataNotFound, match='folders a, b are links out of it'): class_root(root)

def test_what_is_left_out_is_counted(tmp_path, capsys):
    tree(tmp_path, 'a/1.png', 'b/2.png', 'cell_images/a/1.png', 'cell_images/b/2.png', '3.png', 'a/deeper/4.png')
    for o in ('a/Thumbs.db', 'b/Thumbs.db', 'a/.DS_Store', 'a/._1.png', 'b/note.TXT', 'b/README', '__MACOSX/a/._2.png'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).write_bytes(b'x')
    cells = read(tmp_path)
    assert cells.path.tolist() == ['a/1.png','b/2.png']
    assert cells.attrs['left_out'] == {'.DS_Store':1, '.txt':1, 'Thumbs.db':2, 'hidden file':1, '__MACOSX':1, 'no extension':1,
                                       'picture outside a class folder':4}
    assert '2 Thumbs.db' in capsys.readouterr().out

@pytest.mark.parametrize('paths,text', [((), 'no picture'), (('1.png',), 'no picture'), (('a/1.png',), "only the class 'a'"),
                                        (('x/a/1.png', 'x/b/1.png'), 'no picture')])
def test_no_data_set(tmp_path, paths, text):
    with pytest.raises(NoCells, match=text): read(tree(tmp_path, *paths))

def test_no_such_folder(tmp_path):
    with pytest.raises(NoCells, match='no such folder'): read(tmp_path/'gone')
    picture(tmp_path/'1.png')
    with pytest.raises(NoCells, match='no such folder'): read(tmp_path/'1.png')

def test_on_bad_is_checked_first(tmp_path):
    with pytest.raises(ValueError, match="'ignore'"): read(tmp_path/'gone', on_bad='ignore')

def with_bad(root):
    "Two good pictures per class and one of each kind of bad ones."
    tree(root, 'a/1.png', 'a/2.png', 'b/3.png', 'b/4.png')
    for k,(data,_) in BAD.items(): (root/'b'/f'bad {k}.png').write_bytes(data)
    return root

def test_strict_names_the_bad_ones(tmp_path):
    with pytest.raises(BadPicture) as e: read(with_bad(tmp_path))
    text = str(e.value)
    assert text.startswith(f"{len(BAD)} bad pictures:") and text.count('b/bad ') == 10 and "on_bad='skip'" in text
    assert 'b/bad animated.png: animated' in text

def test_skip_counts_and_names_them(tmp_path, capsys):
    cells = read(with_bad(tmp_path), on_bad='skip')
    assert len(cells) == 4 and cells.index.tolist() == [0,1,2,3]
    bad = pd.DataFrame(cells.attrs['bad'])
    assert list(bad) == ['path','reason'] and len(bad) == len(BAD)
    out = capsys.readouterr().out
    assert f"{len(BAD)} bad" in out and 'bad: b/bad animated.png' in out

def test_all_of_a_class_bad(tmp_path):
    tree(tmp_path, 'a/1.png', 'b/2.png')
    (tmp_path/'b/2.png').write_bytes(b'')
    with pytest.raises(NoCells, match=r"only the class 'a' \(left out: 1 bad\)"): read(tmp_path, on_bad='skip')

def test_same_bytes_under_two_labels_are_bad_under_one_are_kept(tmp_path):
    tree(tmp_path, 'a/1.png', 'b/2.png')
    for o in ('a/p.png', 'b/q.png'): picture(tmp_path/o, (1,2,3))
    for o in ('a/r.png', 'a/s.png'): picture(tmp_path/o, (4,5,6))
    with pytest.raises(BadPicture, match='in a and in b') as e: read(tmp_path)
    assert 'a/p.png' in str(e.value) and 'b/q.png' in str(e.value) and '2 bad pictures' in str(e.value)
    assert read(tmp_path, on_bad='skip').path.tolist() == ['a/1.png','a/r.png','a/s.png','b/2.png']

def test_same_name_in_two_classes_warns(tmp_path):
    with pytest.warns(UserWarning, match='1 file names.*1.png'): read(tree(tmp_path, 'a/1.png', 'b/1.png'))

def test_table_survives_concat_and_csv(tmp_path):
    cells = read(with_bad(tmp_path), on_bad='skip')
    assert len(pd.concat([cells[:2], cells[2:]])) == 4
    cells.to_csv(tmp_path/'cells.csv', index=False)
    assert C.data_hash(pd.read_csv(tmp_path/'cells.csv')) == C.data_hash(cells)

def test_disputed_by_name_or_by_content():
    known = manifest()
    df = known[::500].assign(path=lambda o: o.label+'/'+o.filename)
    assert (C._disputed(df) == df.disputed).all()
    assert (C._disputed(df.assign(path='x/'+df.sha256+'.png')) == df.disputed).all()
    assert C._disputed(df.assign(path='x/y.png', sha256='0')).isna().all()

# --- against the manifest -------------------------------------------------------------------------------------------------------

def as_cells(known): return known.assign(path=known.label+'/'+known.filename)

def test_the_full_set_is_complete():
    res = verify(as_cells(manifest()))
    assert not res.missing + res.extra + res.changed and res.same == 27_558 and str(res) == "27,558 of 27,558 original cells (complete), 0 changed, 0 extra"

def test_changed_bytes_label_extra_and_missing():
    df = as_cells(manifest())[:50]
    df.loc[0,'sha256'],df.loc[1,'label'],df.loc[2,'path'] = 'f'*64,'Uninfected','Parasitized/new.png'
    with pytest.raises(ChangedCells, match='2 changed'): verify(df)
    res = verify(df, strict=False)
    assert (res.same, res.extra, len(res.missing), len(res.changed)) == (47, ['Parasitized/new.png'], 27_558-49, 2)

def test_another_set_is_not_an_error(tmp_path):
    res = verify(read(tree(tmp_path, 'a/1.png', 'b/2.png')))
    assert len(res.extra) == 2 and not res.same and 'not the NIH cells' in str(res)

# --- numbers and figure ---------------------------------------------------------------------------------------------------------

def test_describe(tmp_path):
    df = describe(read(tree(tmp_path, 'a/1.png', 'a/2.jpg', 'b/3.png', 'c/4.png')))
    assert df.n.to_dict() == dict(a=2, b=1, c=1, total=4)
    assert df.extensions['total'] == '3 png, 1 jpg' and df.width_p50['total'] == 8 and df.height_max['total'] == 6
    assert df[['patients','photos','disputed']].isna().all(axis=None)

def test_plot_sizes(tmp_path):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    cells = read(tree(tmp_path, *(f'{o}/{o}.png' for o in 'abcdefghij')))
    axes = C.plot_sizes(cells, sizes=(64,), title='ten classes')
    assert len(axes.lines) == 10 + 1 and axes.get_xlabel().endswith('pixels')
    axes.figure.canvas.draw()
    plt.close('all')

@pytest.mark.parametrize('module', ['cells','split'])
def test_import_is_light(module):
    heavy = 'torch','fastai','matplotlib.pyplot','nbdev'
    code = f"import sys, malaria_fastai.{module}; print([o for o in {heavy} if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

# --- the real archive -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def nih(nih_root):
    "The cells table of the real archive."
    return read(nih_root)

def test_real_cells(nih):
    res = verify(nih)
    assert res.same == len(nih) and not res.changed and not res.extra
    assert nih.patient.notna().all() and nih.disputed.notna().all()
    if 'P8' in set(nih.patient): assert nih[nih.patient=='P8'].slide.nunique() == 2
    known = manifest().set_index('filename').loc[nih.path.str.rsplit('/', n=1).str[-1]]
    for o in ('width','height','bytes','patient','photo'): assert (known[o].to_numpy() == nih[o].to_numpy()).all()

def test_real_part_of_ninety_patients(nih):
    if len(nih) != 12_670: pytest.skip(f'the archive has {len(nih):,} cells, not the part with 12,670')
    assert nih.label.value_counts().to_dict() == dict(Parasitized=6_429, Uninfected=6_241)
    assert nih.patient.nunique() == 90 and nih.slide.nunique() == 91
    assert str(verify(nih)) == "12,670 of 27,558 original cells (a part: 14,888 missing), 0 changed, 0 extra"
