"""The page that tries the network, in headless Chromium: it answers as `Predictor` does, says when it cannot, and nothing leaves it.

A comparison is a function that returns complaints. Faults are planted in the page's program, and each must be found."""
import base64,io
from importlib.util import find_spec
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr
import try_page
from malaria_fastai.cells import open_picture,read_cells
from malaria_fastai.export import model_card
from malaria_fastai.predict import Predictor,_prepared,_resizing,appearance,read_folder
from malaria_fastai.split import split_by
from test_predict import cut
from test_site import browser,overflow,reader,serve,unreadable # fixtures and checks

MODEL = try_page.PAGE/'model'
pytestmark = pytest.mark.skipif(not find_spec('onnxruntime'), reason="the extra [onnx] is not installed")

# ---- the model that is committed

def test_the_model_is_small_and_its_card_says_what_it_is():
    folder,said = read_folder(MODEL)
    assert sum(o.stat().st_size for o in folder.iterdir()) < 3e6 and list(said['files'])==['model.int8.onnx']
    card = (folder/'MODEL_CARD.md').read_text(encoding='utf-8')
    assert card==model_card(folder)
    for o in ('Not for diagnosis','By patient (fold:0)','95 % interval','unsure','not a cell'): assert o in card, o

def test_each_map_averages_to_its_logit():
    predict,(_,said) = Predictor(MODEL),read_folder(MODEL)
    import onnxruntime
    rng,session = np.random.default_rng(0),onnxruntime.InferenceSession(str(MODEL/'model.int8.onnx'), providers=['CPUExecutionProvider'])
    logits,maps = session.run(None, {'pictures': rng.integers(0, 256, (4,*said['resize']['size'],3)).astype(np.uint8)})
    bias = logits-maps.mean((2,3))
    assert predict.engine=='int8' and maps.shape[2:]==(8,8) and abs(bias-bias[:1]).max()<1e-4

def test_without_npm_the_page_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert not try_page.build(tmp_path/'try')
    text = (tmp_path/'try/index.html').read_text(encoding='utf-8')
    assert 'npm is not installed' in text and 'npm is not installed' in capsys.readouterr().err
    assert '<script' not in text and 'id="tool" hidden' in text and 'Not for diagnosis' in text

# ---- pictures

def png(im, **kw):
    f = io.BytesIO()
    im.save(f, kw.pop('format', 'PNG'), **kw)
    return f.getvalue()

def kinds_of_file(im, rng):
    "One picture as files of many kinds."
    a,turned = np.asarray(im),Image.Exif()
    yield from (png(o) for o in (im.quantize(64), im.convert('L'), im.convert('LA'), im.resize((300,280)), im.resize((40,52)), im.rotate(90, expand=True)))
    yield png(Image.fromarray(np.dstack([a, rng.integers(0, 256, a.shape[:2])]).astype(np.uint8)))
    yield png(Image.fromarray((a[...,1].astype(np.uint16)*257)))
    yield png(im, transparency=(0,0,0))
    for o in (3, 6):
        turned[0x112] = o
        yield png(im, exif=turned)
    yield from (png(im, format=f, **kw) for f,kw in (('JPEG',dict(quality=95)),('JPEG',dict(quality=80, exif=turned)),('BMP',{})))

def others(cells, rng):
    "Pictures that are no cells: noise, blank, photographs, pieces of them in the outline of a cell, and files that are none."
    from sklearn.datasets import load_sample_images
    photos,disc = [Image.fromarray(o) for o in load_sample_images().images],np.hypot(*np.mgrid[-1:1:90j,-1:1:90j]) < .95
    for _ in range(12):
        h,w = (int(o) for o in rng.integers(30, 200, 2))
        yield png(Image.fromarray(rng.integers(0, 256, (h,w,3)).astype(np.uint8)))
        yield png(Image.new('RGB', (w,h), tuple(int(o) for o in rng.integers(0, 256, 3))))
        yield png(cut(photos[h % 2], disc, rng))
        yield png(cut(Image.fromarray(rng.integers(0, 256, (h,w,3)).astype(np.uint8)), disc, rng))
    for o in photos: yield from (png(o), png(o, format='JPEG'))
    good = png(cells[0])
    yield from (b'', b'<html>', b'GIF89a', good[:len(good)//2], good[:200]+b'x'+good[201:], png(cells[0].resize((1,1))), png(Image.new('RGB', (50,50))))

@pytest.fixture(scope='module')
def drawn(sample_root, tmp_path_factory):
    "200 pictures: drawn cells, some of them as files of many kinds, and what is no cell."
    rng,files = np.random.default_rng(0),sorted(sample_root.rglob('*.png'))
    cells = [open_picture(o) for o in files[::6]]
    data = [*(o for k in (5, 50, 90) for o in kinds_of_file(cells[k], rng)), *others(cells, rng)]
    data += [o.read_bytes() for o in files[3::6][:200-len(data)]]
    return written(data, tmp_path_factory.mktemp('drawn'))

def written(data, folder):
    "Files whose names say nothing of their kind."
    for i,o in enumerate(data): (folder/f'{i:03}.png').write_bytes(o)
    return sorted(folder.iterdir())

# ---- the page

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A folder with the page alone."
    to = tmp_path_factory.mktemp('site')
    if not try_page.build(to/'try', offline=True): pytest.skip('onnxruntime-web is not in the cache of npm: python tools/try_page.py --fetch')
    return to

@pytest.fixture
def planted(site):
    "A function that changes the page's program; undone after the test."
    file = site/'try/try.js'
    was = file.read_text(encoding='utf-8')
    def change(*pairs):
        text = was
        for old,new in pairs:
            assert text.count(old)==1, old
            text = text.replace(old, new)
        file.write_text(text, encoding='utf-8')
    yield change
    file.write_text(was, encoding='utf-8')

def opened(page, address):
    page.goto(f'{address}try/index.html')
    page.wait_for_selector('#tool:not([hidden])')
    return page

def answers(page, files, give=lambda page, files: page.set_input_files('#file', files), wait=120_000):
    "What the page says of files given through its file input, or as `give` does it, in their order."
    rounds = page.evaluate("+(document.body.dataset.rounds ?? 0)")
    give(page, files)
    page.wait_for_function("n => document.body.dataset.rounds > n", arg=rounds, timeout=wait)
    return [dict(o, p=float(o['p'])) for o in page.eval_on_selector_all('#rows tr', 'os => os.map(o => ({...o.dataset}))')]

def differences(rows, table, said):
    "Pictures that the page and `Predictor` do not answer alike; decisions may differ where p is within .01 of a threshold."
    if len(rows)!=len(table): return [f'{len(rows)} answers to {len(table)} pictures']
    limits,found = [said['threshold'],said['unsure']['low'],said['unsure']['high']],[]
    for here,there in zip(rows, table.to_dict('records')):
        close = any(abs(there['p']-o)<=.01 for o in limits)
        if here['decision']!=there['decision'] and not close: found.append(f"{here} but {there}")
        elif np.isnan(here['p'])!=np.isnan(there['p']) or abs(here['p']-there['p'])>.01: found.append(f"p: {here} but {there}")
        elif not there['reason'].startswith('cannot') and here['reason']!=there['reason'] and not close: found.append(f"reason: {here} but {there}")
    return found

@pytest.mark.browser
def test_200_pictures_are_answered_as_by_the_library(site, serve, reader, drawn):
    page,predict = opened(reader(), serve(site)),Predictor(MODEL)
    table = predict(drawn)
    assert len(drawn)==200 and table.p.notna().sum()>=60 and set(table.decision)=={'Parasitized','Uninfected','unsure','not a cell'}
    found = differences(answers(page, drawn), table, predict.facts)
    assert not found and not page.heard, '\n'.join(found[:5]+page.heard)

@pytest.mark.browser
@pytest.mark.real
def test_200_real_cells_are_answered_as_by_the_library(site, serve, reader, nih_root):
    "Cells of test patients."
    cells = split_by(read_cells(nih_root, progress=False), 'fold:0', seed=42)
    files = [nih_root/o for o in cells.path[cells.split=='test'].iloc[::13][:200]]
    page,predict = opened(reader(), serve(site)),Predictor(MODEL)
    table = predict(files)
    found = differences(answers(page, files), table, predict.facts)
    assert len(files)==200 and not found, '\n'.join(found[:5])

GIVEN = """([all, kind]) => {
    const files = new DataTransfer(), how = {bubbles: true, cancelable: true}
    for (const [name, s] of all) files.items.add(new File([Uint8Array.from(atob(s), c => c.charCodeAt(0))], name, {type: 'image/png'}))
    const send = kind => { const e = kind === 'paste' ? new ClipboardEvent(kind, {...how, clipboardData: files}) : new DragEvent(kind, {...how, dataTransfer: files})
        document.getElementById('drop').dispatchEvent(e); return e.defaultPrevented }
    if (kind === 'paste') { send(kind); return [] }
    const marked = () => document.getElementById('drop').classList.contains('over') // while something is held over the page
    return [send('dragover') && marked(), send('dragleave') && !marked(), send('dragover') && marked(), send('drop') && !marked()] }"""

def wrongly_given(page, files, how, wait=60_000):
    "What goes wrong when files are dropped on the page, or pasted: it must answer as to files that are chosen, and a browser must not open them."
    kept,predict = [],Predictor(MODEL)
    def give(page, files): kept.extend(page.evaluate(GIVEN, [[(o.name, base64.b64encode(o.read_bytes()).decode()) for o in files], how]))
    from playwright.sync_api import TimeoutError
    try: found = differences(answers(page, files, give, wait), predict(files), predict.facts)
    except TimeoutError: found = ['no answer']
    return found + [f'{o}: not taken from the browser, or marked wrongly' for o,good in zip(('held over', 'moved away', 'held again', 'dropped'), kept) if not good]

@pytest.mark.browser
@pytest.mark.parametrize('how', ['drop', 'paste'])
def test_pictures_can_be_dropped_and_pasted(how, site, serve, reader, drawn):
    page = opened(reader(), serve(site))
    assert not wrongly_given(page, drawn[40:46], how) and not page.heard
    assert page.locator('#rows button').all_inner_texts()==[o.name for o in drawn[40:46]]

UNTAKEN = {'dropping does nothing': ('drop', 'no answer', "'dragleave', 'drop']", "'dragleave']"), 'pasting does nothing': ('paste', 'no answer', "addEventListener('paste'", "addEventListener('copy'"),
    'one of many': ('drop', '1 answers to 2', '[...e.dataTransfer.files]', '[e.dataTransfer.files[0]]'), 'the browser opens it': ('drop', 'dropped: not taken', 'e.preventDefault()\n', '')}

@pytest.mark.browser
@pytest.mark.parametrize('fault', UNTAKEN)
def test_a_gesture_that_fails_is_found(fault, site, serve, reader, planted, drawn):
    how,said,*change = UNTAKEN[fault]
    planted(change)
    found = wrongly_given(opened(reader(), serve(site)), drawn[40:42], how, wait=3_000 if said=='no answer' else 60_000)
    assert any(o.startswith(said) for o in found), found

CANVAS = '''prepared(im) {
    const [h, w] = this.said.resize.size, canvas = Object.assign(document.createElement('canvas'), {width: w, height: h}), pen = canvas.getContext('2d')
    pen.drawImage(painted(im.w, im.h, i => [im.rgb[3*i], im.rgb[3*i + 1], im.rgb[3*i + 2], 255]), 0, 0, w, h)
    const {data} = pen.getImageData(0, 0, w, h)
    return Uint8Array.from({length: 3*w*h}, (_, i) => data[4*Math.floor(i/3) + i % 3])
  }'''
UNTESTED = 'await one.test(', 'void (' # without the test picture, which finds most faults before the first answer
FAULTS = {'resized by the canvas': [('prepared(im) { const [h, w] = this.said.resize.size; return resize(im, w, h).rgb }', CANVAS)],
    'red and blue change places': [('out[to + k] = onBlack', 'out[to + 2 - k] = onBlack')],
    'the temperature is forgotten': [('/said.temperature', '')],
    'never unsure': [('unsure = low < p && p < high', 'unsure = false')],
    'anything is a cell': [("const why = said.content ?", "const why = false ?")],
    'not turned upright': [("if (!(how > 1 && how < 9)) return im", 'return im')],
    'the other class': [("const {said} = this, at = said.classes.indexOf(said.positive)", "const {said} = this, at = 1 - said.classes.indexOf(said.positive)")]}

@pytest.mark.browser
@pytest.mark.parametrize('fault', FAULTS)
def test_a_planted_fault_is_found(fault, site, serve, reader, planted, drawn):
    planted(UNTESTED, *FAULTS[fault])
    some,predict = drawn[:42]+drawn[-30:],Predictor(MODEL)
    assert differences(answers(opened(reader(), serve(site)), some), predict(some), predict.facts)

@pytest.mark.browser
@pytest.mark.parametrize('fault', ['resized by the canvas','red and blue change places'])
def test_a_browser_that_computes_something_else_does_not_answer(fault, site, serve, reader, planted, drawn):
    planted(*FAULTS[fault])
    page = opened(reader(), serve(site))
    assert not answers(page, drawn[:1]) and 'not what they must be' in page.inner_text('#status')

@pytest.mark.browser
def test_the_numbers_of_the_content_check_are_those_of_the_library(site, serve, reader, drawn):
    page,(_,said) = opened(reader(), serve(site)),read_folder(MODEL)
    files = [o for o in drawn[:113:2] if o.read_bytes().startswith(b'\x89PNG')]
    code = """async ([all, limits]) => { const m = await import('./try.js'), bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0))
        return Promise.all(all.map(o => m.openPicture(bytes(o), limits).then(im => m.appearance(im, limits), e => 'unreadable'))) }"""
    sd,seen = dict(zip(said['content']['names'], said['content']['sd'])),0
    for file,here in zip(files, page.evaluate(code, [[base64.b64encode(o.read_bytes()).decode() for o in files], said['limits']])):
        if here=='unreadable': continue
        there = appearance(open_picture(file))
        off = {k: (here[k], v) for k,v in (there or {}).items() if abs(here[k]-v)>.01*sd.get(k, .01)}
        assert (here is None)==(there is None) and not off, off
        seen += 1
    assert seen>40

@pytest.mark.browser
def test_nothing_leaves_the_page(site, serve, reader, drawn):
    page,sent = reader(),[]
    page.on('request', lambda o: sent.append((o.method, o.url)))
    opened(page, address := serve(site))
    assert answers(page, drawn[:1])
    before = len(sent)
    assert {m for m,_ in sent}=={'GET'} and all(u.startswith((address,'data:','blob:')) for _,u in sent)
    page.context.set_offline(True)
    assert len(answers(page, drawn[1:20]))==20 and len(sent)==before
    said = page.evaluate("fetch('https://example.invalid/').then(() => 'sent', e => 'refused')")
    assert said=='refused' and any('Content Security Policy' in o for o in page.heard)

@pytest.mark.browser
@pytest.mark.parametrize('width,scheme', [(1280,'light'),(390,'light'),(1280,'dark'),(390,'dark')])
def test_the_page_can_be_used(width, scheme, site, serve, reader, drawn):
    "By keyboard and by ear, on a phone, in the dark; before a picture, with a cell, with none, and with a table."
    page = opened(reader(width, scheme), serve(site))
    found = unreadable(page)
    page.focus('.sample')
    page.keyboard.press('Enter')
    page.wait_for_selector('#result:not([hidden])', timeout=60_000)
    assert page.inner_text('#decision') and page.get_attribute('#picture', 'aria-label').startswith('The picture')
    found += unreadable(page)+overflow(page)
    answers(page, drawn[:8])
    found += unreadable(page)+overflow(page)
    page.click('#rows button >> nth=3')
    assert not found and not page.heard, '\n'.join(found+page.heard)

# ---- the map

def drawn_map(page, shape):
    "What the page draws over the picture, as a number at each place: how much of its colour, more than 0 for Parasitized, less for the other."
    look = "document.getElementById('picture').toDataURL()"
    def seen():
        im = np.asarray(Image.open(io.BytesIO(base64.b64decode(page.evaluate(look).split(',')[1]))).convert('RGB')).astype(float)
        return im[...,0]-im[...,2] # red less blue
    with_map = seen()
    page.uncheck('#over')
    plain = seen()
    page.check('#over')
    css = "o => getComputedStyle(document.documentElement).getPropertyValue(o)"
    warm,cold = (float(r)-float(b) for r,_,b in (page.evaluate(css, o).split() for o in ('--for', '--against')))
    share = np.where(with_map>plain, (with_map-plain)/(warm-plain), (with_map-plain)/(plain-cold)) # a colour of share s leaves 1 - s of the picture
    ys,xs = (((np.arange(n)+.5)*size/n).astype(int) for n,size in zip(shape, share.shape))
    return np.array([[share[y-4:y+5,x-4:x+5].mean() for x in xs] for y in ys])

def network_map(file):
    "What speaks for Parasitized at each place, by onnxruntime in Python: its map less that of the other class."
    import onnxruntime
    (folder,said),session = read_folder(MODEL),onnxruntime.InferenceSession(str(MODEL/'model.int8.onnx'), providers=['CPUExecutionProvider'])
    x = np.asarray(_prepared(open_picture(file), _resizing(said)))[None]
    maps,at = session.run(None, {'pictures': x})[1][0],said['classes'].index(said['positive'])
    return maps[at]-maps[1-at]

def off_the_map(page, files):
    "Pictures over which the page draws something else than the network says, or whose map it tells otherwise."
    found = []
    for file in files:
        answers(page, [file])
        there = network_map(file)
        here,(y,x),n = drawn_map(page, there.shape),np.unravel_index(there.argmax(), there.shape),len(there)
        alike,strong = spearmanr(here.ravel(), there.ravel())[0] if here.any() else 0,abs(there)>.2*abs(there).max()
        if alike<.97: found.append(f'{file.name}: rank correlation {alike:.2f}')
        if (np.sign(here)!=np.sign(there))[strong].any(): found.append(f'{file.name}: a colour of the other class')
        if here[y,x]<here.max()-.03: found.append(f'{file.name}: the most lies elsewhere')
        words = ', '.join([('at the top', 'in the middle', 'at the bottom')[3*(2*y+1)//(2*n)], ('left', 'centre', 'right')[3*(2*x+1)//(2*n)]])
        if not (said := page.get_attribute('#picture', 'aria-label')).endswith(words): found.append(f'{file.name}: {said}, but it lies {words}')
    return found

@pytest.fixture(scope='module')
def mapped(sample_root, tmp_path_factory):
    "Cells over which there is a map, one of them wider than high."
    cells = [open_picture(o) for o in sorted(sample_root.rglob('*.png'))[::40][:6]]
    return written([*map(png, cells), png(cells[0].resize((150,100)))], tmp_path_factory.mktemp('mapped'))

@pytest.mark.browser
def test_the_map_over_the_picture_is_that_of_the_network(site, serve, reader, mapped):
    page = opened(reader(), serve(site))
    assert not off_the_map(page, mapped) and not page.heard

OVER = 'Float32Array.from(a, (v, i) => v - b[i])'
MAPS = {'transposed': (OVER, 'Float32Array.from(a, (_, i) => { const j = i % w*w + Math.floor(i/w); return a[j] - b[j] })'), 'of the other class': (OVER, 'Float32Array.from(a, (v, i) => b[i] - v)'),
    'in part of the picture': ('200*Math.abs(map.v[i])/most]), 0, 0, canvas.width, canvas.height)', '200*Math.abs(map.v[i])/most]), 0, 0, canvas.width/2, canvas.height)'),
    'nowhere': ("!$('over').checked", 'true'), 'told otherwise': ('Math.floor(i/w), h, [', 'i % w, h, [')}

@pytest.mark.browser
@pytest.mark.parametrize('fault', MAPS)
def test_a_map_that_is_not_of_the_network_is_found(fault, site, serve, reader, planted, mapped):
    planted(MAPS[fault])
    assert off_the_map(opened(reader(), serve(site)), mapped[:2])
