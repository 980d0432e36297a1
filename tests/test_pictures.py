"One function opens every picture: whatever it comes as, the answer is the same to the bit, or it is refused."
import io, struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
from properties import cases

from malaria_fastai.cells import MAX_PIXELS, BadPicture, open_picture

RNG = np.random.default_rng(0)
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 255, 13), np.linspace(255, 0, 9)), -1)
RGB = np.dstack([SMOOTH, RNG.integers(0, 256, (9, 13))]).astype(np.uint8)

def pixels(what, **options): return np.asarray(open_picture(what, **options))

def answer(what):
    "The pixels, or 'refused'."
    try: return pixels(what).tolist()
    except BadPicture: return 'refused'

# ---- any picture that Pillow can write

MODES = ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'I;16', 'I;16B', 'F']
FORMATS = {'PNG': {}, 'JPEG': dict(quality=90), 'TIFF': {}, 'TIFF, LZW': dict(compression='tiff_lzw'), 'TIFF, JPEG': dict(compression='jpeg'), 'BMP': {},
           'JPEG, progressive': dict(progressive=True), 'MPO': dict(save_all=True, append_images=[Image.new('RGB', (4, 4))]), 'GIF': {}, 'WEBP': dict(lossless=True),
           'PPM': {}, 'TGA': {}, 'ICO': {}, 'JPEG2000': {}, 'PCX': {}, 'SGI': {}, 'PNG, pages': dict(save_all=True, append_images=[Image.new('RGB', (13, 9))]),
           'TIFF, pages': dict(save_all=True, append_images=[Image.new('RGB', (4, 4))])}

def drawn(mode, seed, top):
    "A picture of this mode; `top` is its largest value, where the mode has more than 8 bits."
    rng = np.random.default_rng(seed)
    if mode == 'F': return Image.fromarray((rng.integers(0, 256, (9, 13))/255*top).astype(np.float32))
    if mode == 'I': return Image.fromarray(rng.integers(0, int(top*65535) + 1, (9, 13)).astype(np.int32))
    if mode == 'I;16': return Image.fromarray(rng.integers(0, int(min(top, 1)*65535) + 1, (9, 13)).astype(np.uint16))
    if mode == 'I;16B': return Image.frombytes('I;16B', (13, 9), rng.integers(0, int(min(top, 1)*65535) + 1, (9, 13)).astype('>u2').tobytes())
    bands = len(Image.new(mode, (1, 1)).getbands()) if mode not in ('1', 'P', 'PA') else 4
    if mode in ('1', 'P', 'PA'): return Image.fromarray(rng.integers(0, 256, (9, 13, bands)).astype(np.uint8)).convert('RGB').convert('P' if mode == 'PA' else mode).convert(mode)
    return Image.frombytes(mode, (13, 9), rng.integers(0, 256, (9, 13, bands)).astype(np.uint8).tobytes())

@st.composite
def files(draw):
    "The bytes of a picture as Pillow writes it, with or without a turn, a transparent colour, a profile; None where Pillow does not write such a one."
    mode,name = draw(st.sampled_from(MODES)),draw(st.sampled_from([*FORMATS]))
    im,options = drawn(mode, draw(st.integers(0, 99)), draw(st.sampled_from([0, .01, .06, .5, 1, 2]))),dict(FORMATS[name])
    if turn := draw(st.sampled_from([0, 0, 1, 3, 6, 8, 9])):
        options['exif'] = Image.Exif()
        options['exif'][274] = turn
    if draw(st.booleans()) and mode in ('1', 'L', 'P', 'I;16', 'RGB'):
        at = im.getpixel((3, 3))
        options['transparency'] = at
    out = io.BytesIO()
    try: im.save(out, name.split(',')[0], **options)
    except (OSError, ValueError, KeyError, TypeError, SystemError, RuntimeError): return None
    return out.getvalue()

IN_ARRAYS = ['1', 'L', 'LA', 'RGB', 'RGBA', 'I', 'I;16', 'I;16B', 'F']

@pytest.mark.door
@cases(150)
@given(data=files())
def test_any_picture_is_the_same_whatever_it_comes_as(tmp_path, data):
    if data is None: return
    file = tmp_path/'picture'
    file.write_bytes(data)
    want = answer(file)
    try:
        lazy,loaded = Image.open(file),Image.open(file)
        loaded.load()
    except (OSError, ValueError, SyntaxError): # what Pillow writes, and does not read
        assert want == 'refused'
        return
    with open(file, 'rb') as opened: forms = [answer(form) for form in (str(file), data, bytearray(data), io.BytesIO(data), opened, lazy, loaded, loaded.copy())]
    other = loaded.format not in ('PNG', 'JPEG', 'MPO', 'TIFF', 'BMP') or getattr(loaded, 'is_animated', False)
    if other or loaded.readonly: forms.pop() # a copy knows no file, and what Pillow mapped into memory it may have turned wrongly
    assert [form == want for form in forms] == [True]*len(forms)
    if want == 'refused': return
    assert answer(open_picture(file)) == want
    same = Image.open(file)
    if same.mode not in IN_ARRAYS or 'transparency' in same.info or same.getexif().get(274, 1) in range(2, 9): return # an array cannot say so
    array = np.array(same)
    assert answer(array) == want
    if array.dtype == np.uint8:
        assert answer(torch.from_numpy(array)) == want
        if array.ndim == 3: assert answer(torch.from_numpy(array).permute(2, 0, 1)) == want
        assert answer(array.astype(np.float32)/255) == want

@pytest.mark.door
@cases(60)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1, 3, 4])), seed=st.integers(0, 99))
def test_any_array_is_the_same_as_a_tensor(shape, seed):
    h,w,channels = shape
    array = np.random.default_rng(seed).integers(0, 256, (h, w, channels) if channels else (h, w)).astype(np.uint8)
    want,tensor = pixels(array),torch.from_numpy(array)
    assert want.shape == (h, w, 3) and answer(array[:, ::-1][:, ::-1]) == want.tolist()
    first = tensor.permute(2, 0, 1) if channels else tensor
    for form in (first, first/255, first.double()/255, tensor):
        got = answer(form)
        assert got == want.tolist() or got == 'refused' and channels and {form.shape[0], form.shape[2]} <= {1, 2, 3, 4}
    if not channels or w > 4 and h > 4: assert answer(first) == answer(first/255) == answer(tensor) == want.tolist()

# ---- members, by name

@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'PA'])
def test_transparency_of_pictures_in_memory_lies_on_black(mode):
    im = Image.fromarray(RGB).convert('RGBA')
    im.putalpha(Image.fromarray((RGB[..., 0] > 99).astype(np.uint8)*255))
    im = im.convert(mode) if mode != 'P' else im.quantize()
    got = pixels(im)
    assert not got[RGB[..., 0] <= 99].any() and got[RGB[..., 0] > 99].any()

def test_transparent_grey_of_16_bits_is_black(tmp_path):
    Image.fromarray(np.array([[257, 25700, 65535]], np.uint16)).save(tmp_path/'a.png', transparency=65535)
    for form in (tmp_path/'a.png', Image.open(tmp_path/'a.png')): assert pixels(form)[0, :, 0].tolist() == [1, 100, 0]

BITS = {'8': RGB[..., 0], '16': RGB[..., 0].astype(np.uint16)*257, '32': RGB[..., 0].astype(np.int32)*257, 'float': RGB[..., 0].astype(np.float32)/255}

@pytest.mark.parametrize('bits', BITS)
def test_tiff_of_any_depth_is_the_same_as_file_picture_array_and_tensor(tmp_path, bits):
    Image.fromarray(BITS[bits]).save(tmp_path/'a.tif')
    for form in (tmp_path/'a.tif', Image.open(tmp_path/'a.tif'), BITS[bits], torch.from_numpy(BITS[bits]), (tmp_path/'a.tif').read_bytes()):
        assert (pixels(form) == RGB[..., :1]).all()

def tiff12(grey):
    "A TIFF of 12 bits, two values in three bytes, since Pillow writes none."
    a,b = grey.ravel()[::2].astype(int),grey.ravel()[1::2].astype(int)
    body = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    tags = {256: grey.shape[1], 257: grey.shape[0], 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: grey.shape[0], 279: len(body)}
    entries = b''.join(struct.pack('<HHII', tag, 4 if tag in (273, 279) else 3, 1, value) for tag,value in tags.items())
    return struct.pack('<2sHI', b'II', 42, 8 + len(body)) + body + struct.pack('<H', len(tags)) + entries + bytes(4)

def test_grey_of_12_bits_is_refused_in_every_form():
    grey = RNG.integers(0, 4096, (8, 10)).astype(np.uint16)
    data = tiff12(grey)
    assert (np.array(Image.open(io.BytesIO(data))) == grey).all()
    for form in (data, Image.open(io.BytesIO(data)), grey, grey.astype(np.int64), torch.from_numpy(grey.astype(np.int32))):
        with pytest.raises(BadPicture, match='12 bits or fewer: nobody knows what is white. Save it with 8 bits'): open_picture(form)

@pytest.mark.parametrize('bits', ['8', '16']) # Pillow reads no other such TIFF
def test_a_tiff_in_which_zero_is_white(tmp_path, bits):
    data = bytearray((Image.fromarray(BITS[bits]).save(tmp_path/'a.tif'), (tmp_path/'a.tif').read_bytes())[1])
    at = data.index(struct.pack('<HH', 262, 3))
    assert data[at+8] == 1
    data[at+8] = 0
    if bits == '8': assert (pixels(data) == 255 - RGB[..., :1]).all()
    else:
        for form in (data, Image.open(io.BytesIO(data))):
            with pytest.raises(BadPicture, match='in which 0 is white'): open_picture(form)

REFUSED = {
    'float beyond 1': (RGB.astype(float), 'no known range'), 'normalised': ((torch.from_numpy(RGB)/255 - .5)/.25, 'no known range'),
    'between bytes': (RGB/255 + .0004, 'no known range'), 'not a number': (np.full((4, 5), np.nan), 'no known range'),
    'half': (torch.from_numpy(RGB).half()/255, 'no known range'), '16 bits in colour': (RGB.astype(np.uint16)*257, 'colour cannot be brought to 8 bits'),
    'bytes as whole numbers': (RGB[..., 0].astype(int), '12 bits or fewer'), 'below zero': (RGB[..., 0].astype(int)*257 - 300, 'beyond 16 bits'),
    'two readings': (torch.zeros(3, 5, 3), r'tensor \(3, 5, 3\) may come first or last'), 'a batch': (torch.zeros(1, 3, 8, 8), r'\(1, 3, 8, 8\) is not one picture'),
    'a batch of arrays': (RGB[None], 'is not one picture'), 'channels first': (RGB.transpose(2, 0, 1), 'is not one picture'), 'five channels': (np.zeros((8, 8, 5)), 'not one picture'),
    'nothing': (np.zeros((0, 4, 3), np.uint8), 'is not one picture'), 'a number': (np.uint8(3), 'is not one picture'), 'words': (np.array([['a']]), 'cannot be brought'),
    'complex': (np.ones((3, 3), complex), 'cannot be brought'), 'too large': (np.zeros((4000, 4000), bool), f'more than {MAX_PIXELS:,}'), 'a list': ([[1, 2]], "bytes-like object is required, not 'list'"),
    'None': (None, "bytes-like object is required, not 'NoneType'"), 'an open text': (io.StringIO('x'), 'does not decode'), 'no bytes': (b'', 'empty'), 'some bytes': (b'GIF89a..', 'a GIF'),
    'no pixels': (Image.new('RGB', (0, 4)), '0 x 4 pixels')}

@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_no_picture_is_refused_with_the_reason(kind):
    what,says = REFUSED[kind]
    with pytest.raises(BadPicture, match=says) as e: open_picture(what)
    assert e.value.remedy and '\n' not in str(e.value)

@pytest.mark.parametrize('fmt', ['GIF', 'WEBP', 'PPM'])
def test_an_open_picture_of_another_format_is_refused_as_its_file_is(tmp_path, fmt):
    Image.fromarray(RGB).save(tmp_path/'a', fmt)
    for form in (tmp_path/'a', Image.open(tmp_path/'a')):
        with pytest.raises(BadPicture, match='expected PNG, JPEG, TIFF or BMP'): open_picture(form)

@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', 'I;16'])
@pytest.mark.parametrize('loaded', [False, True])
def test_a_turned_tiff_that_pillow_maps_into_memory(tmp_path, mode, loaded):
    "Pillow itself shows it unturned, or in pieces."
    exif = Image.Exif()
    exif[274] = 6
    drawn(mode, 1, 1).save(tmp_path/'a.tif', exif=exif)
    im = Image.open(tmp_path/'a.tif')
    if loaded: im.load()
    assert answer(im) == answer(tmp_path/'a.tif') != 'refused'

def test_a_picture_that_was_changed_is_what_it_is_now(tmp_path):
    Image.fromarray(RGB).convert('RGBA').save(tmp_path/'a.tif')
    im = Image.open(tmp_path/'a.tif')
    im.paste((1, 2, 3, 255), (0, 0, 13, 9))
    assert (pixels(im) == [1, 2, 3]).all()

def test_a_picture_that_is_given_stays_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).convert('P').save(tmp_path/'a.png', exif=exif)
    im = Image.open(tmp_path/'a.png')
    before = im.copy()
    assert open_picture(im).size == (9, 13) and im.size == before.size and im.mode == 'P' and im.getexif()[274] == 6
    array = RGB.copy()
    open_picture(array)
    assert (array == RGB).all()

def test_threads_read_one_open_picture(tmp_path):
    Image.fromarray(np.kron(RGB, np.ones((20, 20, 1), np.uint8))).save(tmp_path/'a.png')
    want = answer(tmp_path/'a.png')
    for _ in range(2):
        im = Image.open(tmp_path/'a.png')
        with ThreadPoolExecutor(8) as pool: assert all(got == want for got in pool.map(answer, [im]*8))

def test_subclasses_of_fastai(tmp_path):
    from fastai.vision.core import PILImage, TensorImage
    Image.fromarray(RGB).save(tmp_path/'a.png')
    chw = torch.from_numpy(RGB).permute(2, 0, 1)
    for form in (PILImage.create(tmp_path/'a.png'), TensorImage(chw), (chw/255).requires_grad_()): assert (pixels(form) == RGB).all()
