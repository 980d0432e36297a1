"""The site, built from a copy of what git would commit, as its readers meet it.

Without a browser: every link and anchor. In headless Chromium: what each page says to the console, what it fetches, whether
it fits a phone, search, dark mode, and accessibility by axe-core. A check is a function that returns complaints; below it
stand the faults that it must find. `MALARIA_SITE=_docs` examines a site that is built already."""
import ast,builtins,json,os,re,shutil,subprocess,sys
from functools import partial
from http.server import SimpleHTTPRequestHandler,ThreadingHTTPServer
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
import pytest
from check_site import examine,repository
from set_address import files

ROOT = Path(__file__).resolve().parent.parent
EXTRA = 'the site needs Python 3.11 and an extra: pip install -e ".[dev,docs]"'
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update '
         '--disable-sync').split()

# ---- the site, a server for it, a browser

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the built site. Do not write into it."
    if there := os.environ.get('MALARIA_SITE'): return Path(there).resolve()
    if not (find_spec('smalldocs') and find_spec('latex2mathml')): pytest.skip(EXTRA)
    tree = tmp_path_factory.mktemp('tree')
    for path in files(ROOT):
        to = tree/path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    env = {k: v for k,v in os.environ.items() if k!='IN_TEST'} | {'PYTHONPATH': str(tree), 'npm_config_offline': 'true'}
    done = subprocess.run([sys.executable, 'tools/make_docs.py'], cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode==0, done.stdout[-3000:]
    return tree/'_docs'

@pytest.fixture(scope='module')
def copy(site, tmp_path_factory):
    "A copy of the site, to plant faults in; each test undoes its own."
    return Path(shutil.copytree(site, tmp_path_factory.mktemp('copy')/'site'))

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
    def end_headers(self):
        self.send_header('Cache-Control', 'no-store')
        super().end_headers()

@pytest.fixture(scope='module')
def serve():
    "A function that serves a folder on this machine and returns its address."
    servers = []
    def start(folder):
        servers.append(ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder))))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}/'
    yield start
    for o in servers: o.shutdown()

@pytest.fixture(scope='module')
def browser():
    if not find_spec('playwright') or not find_spec('axe_playwright_python'): pytest.skip(EXTRA)
    if not CHROMIUM: pytest.skip('no Chromium on this machine (Debian: apt-get install chromium)')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        yield (o := p.chromium.launch(executable_path=CHROMIUM, args=FLAGS))
        o.close()

@pytest.fixture
def reader(browser):
    "A function that opens an address in a window of its own; the page's `heard` collects what went wrong."
    contexts = []
    def start(width=1280, scheme='light'):
        contexts.append(browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme))
        page = contexts[-1].new_page()
        page.heard = []
        page.on('console', lambda o: o.type=='error' and page.heard.append(f'console: {o.text}'))
        page.on('pageerror', lambda o: page.heard.append(f'error: {o}'))
        page.on('requestfailed', lambda o: o.failure!='net::ERR_ABORTED' and page.heard.append(f'failed: {o.url}')) # aborted: the page was left
        page.on('response', lambda o: o.status>=400 and page.heard.append(f'{o.status}: {o.url}'))
        page.on('request', lambda o: re.match('https?://(?!127.0.0.1:)', o.url) and page.heard.append(f'fetches from elsewhere: {o.url}'))
        return page
    yield start
    for o in contexts: o.close()

def pages(site): return [o.relative_to(site).as_posix() for o in sorted(site.rglob('*.html'))]

@pytest.fixture
def plant(copy):
    "A function that changes a file of the copy; undone after the test."
    kept = {}
    def change(name, old, new):
        kept.setdefault(name, text := (copy/name).read_text(encoding='utf-8'))
        assert old in text
        (copy/name).write_text(text.replace(old, new), encoding='utf-8')
    yield change
    for name,text in kept.items(): (copy/name).write_text(text, encoding='utf-8')

# ---- without a browser

def test_every_link_and_anchor_leads_somewhere(site):
    found,seen = examine(site)
    assert not found, '\n'.join(found)
    assert seen['pages']>30 and seen['anchors']>1000 and seen['links into the repository']>100

LINKS = {'a page': ('start.html', '<a href="nowhere.html">x</a>'), 'an anchor': ('start.html', '<a href="results.html#nowhere">x</a>'),
    'a file of the repository': ('start.html', '<a href="https://github.com/OWNER/malaria_fastai/blob/main/nowhere.md">x</a>'),
    'a notebook in Colab': ('start.html', '<a href="https://colab.research.google.com/github/OWNER/malaria_fastai/blob/main/nbs/tutorials/x.ipynb">x</a>'),
    'a script from elsewhere': ('start.html', '<script src="https://cdn.example.org/x.js"></script>'), 'a picture': ('start.html', '<img alt="x" src="x.png">')}

@pytest.mark.parametrize('fault', LINKS)
def test_a_dead_link_is_found(fault, copy, plant):
    page,text = LINKS[fault]
    plant(page, '</main>', f'{text}</main>')
    found,_ = examine(copy)
    assert len(found)==1 and found[0].startswith(page), found

def test_a_font_from_elsewhere_is_found(copy, plant):
    plant('styles.css', 'pre:focus', '@import url(https://fonts.example.org/x.css);\npre:focus')
    assert [o.split(':')[0] for o in examine(copy)[0]]==['styles.css']

def test_an_entry_of_the_search_index_that_leads_nowhere_is_found(copy, plant):
    plant('search.json', '"href": "start.html"', '"href": "nowhere.html"')
    assert [o.split(':')[0] for o in examine(copy)[0]]==['search.json']

def turns(site, page, way):
    "The page to which the link `way` at the end of a page leads; None where there is no such link."
    link = re.search(rf'nav-page-{way}"><a href="([^"]+)"', (site/page).read_text(encoding='utf-8'))
    return link and (site/page).parent.joinpath(link[1]).resolve().relative_to(site).as_posix()

def astray(site):
    "Pages that `next` does not reach from home, and pages from which `previous` does not lead back."
    here,before,seen = 'index.html',None,[]
    while here and here not in seen:
        if (back := turns(site, here, 'previous'))!=before: yield f'{here}: previous leads to {back}, not to {before}'
        seen.append(here)
        here,before = turns(site, here, 'next'),here
    yield from (f'{o}: next never leads here' for o in pages(site) if o not in seen and not o.startswith('try/'))

def test_next_and_previous_lead_through_every_page(site): assert not [*astray(site)]

TURNS = {'previous skips a page': ('nav-page-previous"><a href="resume_an_interrupted_run.html"', 'nav-page-previous"><a href="malaria_with_fastai.html"'),
    'no previous': ('nav-page-previous"><a href="resume_an_interrupted_run.html"', 'nav-page-previous"><a'),
    'next skips a page': ('nav-page-next"><a href="read_the_errors.html"', 'nav-page-next"><a href="compare_the_old_tutorials.html"'),
    'no next': ('nav-page-next"><a href="read_the_errors.html"', 'nav-page-next"><a')}

@pytest.mark.parametrize('fault', TURNS)
def test_a_wrong_turn_is_found(fault, copy, plant):
    plant('tutorials/split_by_patient.html', *TURNS[fault])
    assert any(o.startswith('tutorials/split_by_patient.html: previous' if 'previous' in fault else 'tutorials/read_the_errors.html: next') for o in astray(copy))

LESSONS = sorted((ROOT/'nbs/tutorials').glob('[0-9]*.ipynb'))
def page_of(lesson): return f'tutorials/{lesson.stem[3:]}.html'

def no_button(site):
    "Lessons that do not begin with the button that opens their own notebook in Colab."
    for o in LESSONS:
        opening = (site/page_of(o)).read_text(encoding='utf-8').split('<main')[1].split('<h2')[0]
        address = f"{repository(ROOT).replace('github.com', 'colab.research.google.com/github')}/blob/main/nbs/tutorials/{o.name}"
        if re.findall(r'<a href="([^"]*colab[^"]*)"[^>]*>\s*Open In Colab\s*</a>', opening)!=[address]: yield page_of(o)

def test_every_lesson_has_its_button_of_colab(site): assert len(LESSONS)>8 and not [*no_button(site)]

BUTTONS = {'of another lesson': ('nbs/tutorials/03_split_by_patient.ipynb">', 'nbs/tutorials/04_read_the_errors.ipynb">'), 'no words': ('>Open In Colab</a>', '></a>'),
    'elsewhere': ('https://colab.research.google.com/github/', 'https://github.com/'), 'only words': ('<a href="https://colab', '<a title="https://colab')}

@pytest.mark.parametrize('fault', BUTTONS)
def test_a_button_that_opens_nothing_is_found(fault, copy, plant):
    plant('tutorials/split_by_patient.html', *BUTTONS[fault])
    assert [*no_button(copy)]==['tutorials/split_by_patient.html']

def test_every_module_has_a_page_and_every_function_a_link(site):
    text = (site/'reference.html').read_text(encoding='utf-8').split('<main')[1]
    for o in (ROOT/'nbs').glob('[ae][px]*/[0-9]*.ipynb'): assert f'href="{o.parent.name}/{o.stem[3:]}.html"' in text
    names = [o for p in re.findall(r'<p>([^\n]*? · [^\n]*?)</p>', text) for o in p.split(' · ')]
    assert len(names)>150 and not [o for o in names if not o.startswith(('<a href="api/', '<a href="extra/'))]

def unlinked(site, page):
    "Names of the library in the prose of a page that are not links to their place in the API; and how many names there are."
    from malaria_fastai._modidx import d
    at = {(o.removeprefix(f'{module}.'), place) for module,names in d['syms'].items() for o,(place,_) in names.items()}
    names = {o for o,_ in at}
    text = re.sub(r'(?s)<pre.*?</pre>', '', (site/page).read_text(encoding='utf-8').split('<main')[1])
    found = [(name, to.removeprefix('../')) for to,name in re.findall(r'(?:<a href="([^"]*)"[^>]*>)?<code>([^<]+?)(?:\(\))?</code>', text) if name in names]
    return [f'{page}: {name} leads to {to!r}' for name,to in found if (name, to) not in at],len(found)

NAMING = [*map(page_of, LESSONS), 'script.html', 'since_2019.html']

def test_every_name_on_a_lesson_leads_to_the_api(site):
    found,n = zip(*(unlinked(site, o) for o in NAMING))
    assert not sum(found, []) and sum(n)>20

NAMES = {'no link': ('<a href="../api/split.html#leakage"><code>leakage', '<a><code>leakage'), 'another name': ('api/split.html#leakage"><code>', 'api/split.html#split_by"><code>')}

@pytest.mark.parametrize('fault', NAMES)
def test_a_name_that_leads_elsewhere_is_found(fault, copy, plant):
    plant('tutorials/split_by_patient.html', *NAMES[fault])
    assert ['leakage' in o for o in unlinked(copy, 'tutorials/split_by_patient.html')[0]]==[True]

def test_pages_are_woven_together(site):
    "Terms lead to the glossary, once a page; functions to lessons that use them; lessons to their files; each page has what a shared link shows."
    import zipfile
    for page in pages(site):
        text = (site/page).read_text(encoding='utf-8')
        terms = re.findall(r'class="term" href="[^"]*#([^"]+)"', text)
        assert len(terms)==len({*terms}), page
        if not page.startswith('try/'): assert 'property="og:title"' in text and 'images/preview.png' in text, page
    leads = lambda page, text: text in (site/page).read_text(encoding='utf-8')
    assert leads('tutorials/split_by_patient.html', 'glossary.html#fold') and leads('index.html', '<a href="api/split.html"><rect')
    used = re.search(r'id="split_patient".*?<p class="used">(.*?)</p>', (site/'api/split.html').read_text(encoding='utf-8'), re.S)[1]
    assert '../tutorials/split_by_patient.html' in used
    with zipfile.ZipFile(site/'notebooks/all_lessons.zip') as archive:
        for lesson in LESSONS:
            assert archive.read(lesson.name)==(site/'notebooks'/lesson.name).read_bytes()==lesson.read_bytes()
            assert leads(page_of(lesson), f'href="../notebooks/{lesson.name}" download')
    assert leads('index.html', 'malaria_fastai '+version('malaria_fastai'))
    assert leads('reference.html', 'api/interpret.html#classificationinterpretation.top_losses')
    for lesson,figures in {'split_by_patient': ['patients'], 'choose_a_threshold': ['patients', 'reliability']}.items():
        for name in figures: assert leads(f'tutorials/{lesson}.html', f'src="../results/best_{name}.svg"')

def test_a_term_is_linked_once_and_not_in_code():
    from weave_pages import link_terms
    page = '<head><main><h2>Threshold</h2><pre>threshold</pre><p>A <code>threshold</code> and <a href="x">threshold</a>, two Thresholds, a threshold.</p></main>'
    linked = link_terms(page, ['threshold', 'cell'], 'g.html')
    assert linked==page.replace('two Thresholds', 'two <a class="term" href="g.html#threshold">Thresholds</a>')

def test_a_name_may_go_on_in_the_next_line_and_a_cell_knows_its_heading():
    from finish_pages import breaks, for_a_phone, signatures
    table = '<table border="1" class="dataframe"><tr><th>share_called</th><td>a/b_1.png</td><td>0.5</td></tr></table>'
    assert breaks(table)==table.replace('share_called', 'share_<wbr>called').replace('a/b_1', 'a/<wbr>b_<wbr>1')
    number = '<table border="1" class="dataframe"><tr><td>0.943 (0.919–0.962)</td><td>a (b)</td></tr></table>'
    assert breaks(number)==number.replace('0.943 (0.919–0.962)', '0.943<br><small>(0.919–0.962)</small>')
    head,row = '<tr><th>a</th><th>b <code>c</code></th><th>d</th></tr>','<tr><td>1</td><td></td><td>3</td></tr>'
    words = f'<table class="caption-top table">{head}{row}</table>'
    assert for_a_phone(words)==words.replace(row, '<tr><td data-head="a">1</td><td data-head="b c"></td><td data-head="d">3</td></tr>')
    assert for_a_phone(f'<pre><code>{"x "*60}</code></pre>').startswith('<pre class="said">') and for_a_phone('<pre><code>a  b</code></pre>')=='<pre><code>a  b</code></pre>'
    shown = 'every:<span class="op">&lt;</span>function when at <span class="bn">0x7f1</span><span class="op">&gt;</span>'
    assert signatures(shown)=='every:when'

def test_twins_hold_the_tables(site):
    "A table that a notebook shows as HTML is a table in the twin, with its numbers, and no `<… object>`."
    twins = sorted(site.rglob('*.html.md'))
    assert len(twins)>50 and not [o.name for o in twins if ' object>' in o.read_text(encoding='utf-8')]
    assert (site/'results.html.md').read_text(encoding='utf-8').count('|---|')>15

def test_html_is_said_in_words():
    from markdown_twins import Words
    shown = ('<style>td {}</style><p>Two <b>rows</b></p><table><tr><th></th><th>a|b</th></tr><tr><th>name</th><th></th></tr>'
             '<tr><th>x</th><td>1<br><small>0–2</small></td></tr></table><img alt="a figure" src="x.svg">')
    assert Words(shown).parts==['Two rows', '| name | a\\|b |\n|---|---|\n| x | 1 (0–2) |', '*Figure: a figure*']

def test_the_keyboard_gets_past_the_menus(site):
    "The first stop leads to the text, and a section of the sidebar is one stop."
    for page in pages(site):
        if page.startswith('try/'): continue
        text = (site/page).read_text(encoding='utf-8')
        first = re.search(r'<body[^>]*>.*?<a\b[^>]*href="([^"]*)"', text, re.S)[1]
        assert first=='#quarto-document-content' and 'id="quarto-document-content" tabindex="-1"' in text, page
        assert not re.search(r'sidebar-item-toggle[^>]*tabindex="0"', text), page

def test_no_entry_says_nothing(site):
    for page in pages(site):
        text = re.sub('<[^>]+>', '', (site/page).read_text(encoding='utf-8'))
        assert not re.search(r'def \w+\(\s*\*args, \*\*kwargs\s*\):|function \w+ at 0x', text), page

def test_formulae_need_nothing(site):
    text = (site/'api/evaluate.html').read_text(encoding='utf-8')
    assert text.count('<math')>5 and 'katex' not in text and 'class="math' not in text

def bare(site, page):
    "Figures of a page without words, or without a size; and how many figures there are."
    figures = re.findall(r'<img\b[^>]*>', re.sub(r'base64,[^"]*', '', (site/page).read_text(encoding='utf-8')))
    return [f'{page}: no {what}: {o}' for o in figures for what in ('alt', 'width', 'height') if not re.search(rf'\s{what}="[^"]', o)],len(figures)

def test_every_figure_has_words_and_a_size(site):
    found,n = zip(*(bare(site, o) for o in pages(site)))
    assert not sum(found, []) and sum(n)>40

FIGURES = {'alt': '<img alt="" width="9" height="9" src="x.png">', 'width': '<img alt="x" src="x.png" height="9">', 'height': '<img alt="x" src="x.png" width="9">'}

@pytest.mark.parametrize('fault', FIGURES)
def test_a_bare_figure_is_found(fault, copy, plant):
    plant('limits.html', '</main>', f'{FIGURES[fault]}</main>')
    assert [o.split(':')[1] for o in bare(copy, 'limits.html')[0]]==[f' no {fault}']

def test_results_are_read_and_not_typed():
    cells = json.loads((ROOT/'nbs/results.ipynb').read_text(encoding='utf-8'))['cells']
    prose = ' '.join(''.join(c['source']) for c in cells if c['cell_type']=='markdown').replace('95 %', '')
    assert not re.findall(r'\d[.,]\d|\d ?%|\d{3,}', re.sub(r'\]\([^)]*\)|20(19|2\d)', '', prose))
    assert not any(c.get('outputs') for c in cells) # made when the site is built

def not_in_start(site):
    "Lessons that have no row on the start page, or none with two numbers of minutes."
    rows = re.findall(r'(?s)<tr\b.*?</tr>', (site/'start.html').read_text(encoding='utf-8').split('<main')[1])
    for o in LESSONS:
        mine = [re.sub('<[^>]+>', '', re.findall(r'(?s)<td.*?</td>', r)[-1]).strip() for r in rows if f'href="{page_of(o)}"' in r]
        if len(mine)!=1 or not re.fullmatch(r'(?:under )?[\d½]+ / (?:under )?[\d½]+', mine[0]): yield f'{page_of(o)}: {mine}'

def test_start_knows_every_lesson(site): assert not [*not_in_start(site)]

GAPS = {'no minutes on a CPU': (r'(href="tutorials/split_by_patient.html".*?>)[^<>]+( / )', r'\1–\2'), 'none on a T4': (r'(href="tutorials/split_by_patient.html".*?>[^<>]+ / )[^<>]+', r'\1–'),
    'no row': (r'href="tutorials/split_by_patient.html"', '')}

@pytest.mark.parametrize('fault', GAPS)
def test_a_gap_in_start_is_found(fault, copy, plant):
    main = (copy/'start.html').read_text(encoding='utf-8').split('<main')[1]
    plant('start.html', main, re.sub(*GAPS[fault], main, flags=re.S))
    assert any(o.startswith('tutorials/split_by_patient.html') for o in not_in_start(copy))

# ---- in a browser

def overflow(page):
    "What reaches beyond the window, unless it lies in a box that scrolls."
    return page.evaluate("""() => {
        const scrolls = o => o && (/auto|scroll/.test(getComputedStyle(o).overflowX) || scrolls(o.parentElement))
        const wide = [...document.querySelectorAll('main *')].filter(o => o.getBoundingClientRect().right > innerWidth + 1 && !scrolls(o))
        const found = wide.slice(0, 3).map(o => 'too wide: ' + o.outerHTML.slice(0, 150))
        return document.documentElement.scrollWidth > innerWidth ? [...found, 'the page scrolls sideways'] : found }""")

def cut(page):
    "Code that does not fit its column, were it not wrapped: the longest line of each notebook cell."
    return page.evaluate("""() => [...document.querySelectorAll('main div.sourceCode > pre')]
        .filter(o => { for (const one of [o, ...o.children]) one.style.whiteSpace = 'pre'; return o.scrollWidth > o.clientWidth + 1 })
        .map(o => 'cut: ' + o.innerText.split('\\n').sort((a, b) => b.length - a.length)[0])""")

def hidden(page):
    "What a reader must scroll sideways for, beside code: sentences that were printed, tables of words."
    return page.evaluate("""() => [...document.querySelectorAll('main pre.said, main .sd-table:has([data-head])')].filter(o => o.scrollWidth > o.clientWidth + 1)
        .map(o => 'hidden: ' + o.innerText.slice(0, 100))""")

SAME = ['pre', '.cell-output table', 'header', '#quarto-sidebar'] # whose colours are the same on every page

def unreadable(page, contrast='own'):
    "What axe-core finds serious or critical. Reading colours is slow: those that all pages share are read with `contrast='all'` only."
    import axe_playwright_python
    page.evaluate((Path(axe_playwright_python.__file__).parent/'axe.min.js').read_text(encoding='utf-8'))
    colours = dict(resultTypes=['violations'], runOnly=['color-contrast'])
    runs = [(dict(include=['body']) if contrast=='all' else dict(exclude=SAME), colours)]
    if contrast=='own': runs.append((dict(include=['body']), dict(resultTypes=['violations'], rules={'color-contrast': dict(enabled=False)})))
    found = [v for run in runs for v in page.evaluate('([where, how]) => axe.run(where, how)', [*run])['violations']]
    return [f"{v['id']}: {n['html'][:150]} {n['failureSummary'][:200]}" for v in found if v['impact'] in ('serious', 'critical') for n in v['nodes']]

@pytest.mark.browser
@pytest.mark.parametrize('folder', ['tutorials', 'api', 'extra', 'other'])
def test_every_page_is_quiet_readable_and_fits_a_phone(folder, site, serve, reader):
    address,page,found = serve(site),reader(),[]
    for name in (o for o in pages(site) if (o.split('/')[0] if o[:3] in ('tut', 'api', 'ext') else 'other')==folder):
        page.set_viewport_size(dict(width=1280, height=900))
        page.goto(address+name, wait_until='load')
        wrong = unreadable(page)
        if name.startswith(('tutorials/', 'howto/')) or name in ('trouble.html', 'index.html', 'start.html', 'script.html'): wrong += cut(page)
        page.set_viewport_size(dict(width=390, height=844))
        wrong += overflow(page)+hidden(page)
        page.wait_for_load_state('networkidle')
        found += [f'{name}: {o}' for o in page.heard+wrong]
        page.heard.clear()
    assert not found, '\n'.join(found)

@pytest.mark.browser
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_can_be_read(site, serve, reader, scheme):
    address,page,found = serve(site),reader(scheme=scheme),[]
    for name in ('index.html', 'start.html', 'results.html', 'tutorials/split_by_patient.html', 'api/split.html'):
        page.goto(address+name, wait_until='networkidle')
        found += [f'{name}: {o}' for o in unreadable(page, contrast='all')]
    assert not found, '\n'.join(found)

BODY = {'an error': '<script>throw Error("planted")</script>', 'a word to the console': '<script>console.error("planted")</script>',
    'a missing picture': '<img alt="x" src="x.png">', 'a picture from elsewhere': '<img alt="x" src="https://x.invalid/x.png">',
    'a long line of code': f'<div class="sourceCode"><pre>planted {"x"*120}</pre></div>',
    'a sentence that does not wrap': f'<pre class="said" style="white-space:pre; overflow:auto">planted {"x "*80}</pre>', 'something wide': '<p style="width:900px">x</p>', 'a picture without words': '<img src="favicon.svg" width="9">',
    'a pale word': '<p style="color:#bbb; background:#fff">pale</p>', 'a link without words': '<a href="index.html"></a>'}

@pytest.mark.browser
@pytest.mark.parametrize('fault', BODY)
def test_a_planted_fault_is_found(fault, copy, plant, serve, reader):
    plant('limits.html', '</main>', f'{BODY[fault]}</main>')
    page = reader(390)
    page.goto(serve(copy)+'limits.html', wait_until='networkidle')
    found = page.heard+overflow(page)+hidden(page)+cut(page)+unreadable(page)
    assert found and any(re.search(r'planted|x\.png|900px|favicon|pale|index.html', o) for o in found), found

def search(page, word):
    "Type `word` into the search box; returns the addresses that it finds."
    page.fill('#quarto-search input', word)
    page.wait_for_selector('#quarto-search .search-result, #quarto-search .search-none', timeout=10_000)
    return page.eval_on_selector_all('#quarto-search .search-result', 'os => os.map(o => o.getAttribute("href"))')

def found_from_a_lesson(page, address):
    "Whether search on a lesson leads from the name of a class to its place in the API."
    page.goto(address+'tutorials/split_by_patient.html')
    return '../api/data.html#imagedatabunch' in search(page, 'ImageDataBunch')

@pytest.mark.browser
@pytest.mark.parametrize('where', ['served', 'on disk'])
def test_search_finds(site, serve, reader, where):
    page = reader()
    assert found_from_a_lesson(page, serve(site) if where=='served' else f'{site.as_uri()}/')
    page.click('#quarto-search .search-result[href="../api/data.html#imagedatabunch"]')
    page.wait_for_url('**/api/data.html#imagedatabunch')
    assert page.inner_text('#imagedatabunch').strip() and not page.heard

SOUGHT = {'checkpoint': r'tutorials/resume|glossary', 'Colab': r'start.html#how-to-run', 'resume': r'tutorials/resume', 'confusion matrix': r'tutorials/',
    'Ctrl-C': r'tutorials/resume|trouble', 'worst errors': r'tutorials/read_the_errors|howto/your_own_cells', 'threshold': r'tutorials/choose', 'tresholds': r'tutorials/choose',
    'X-ray': r'tutorials/chest', 'test-time augmentation': r'tutorials/|glossary', 'out-of-distribution': r'tutorials/use|glossary', 'evaluate': r'api/evaluate', 'lr_find': r'api/learner'}

@pytest.mark.browser
def test_what_is_sought_is_found_first(site, serve, reader):
    "Whole words, lessons and the glossary come before what only looks alike."
    page,found = reader(),{}
    page.goto(serve(site)+'index.html')
    for word in SOUGHT:
        page.fill('#quarto-search input', '')
        page.wait_for_selector('#quarto-search .smalldocs-search-results:not(.show)', state='attached')
        found[word] = search(page, word)[0]
    assert not {word: first for word,first in found.items() if not re.search(SOUGHT[word], first)}

@pytest.mark.browser
def test_the_first_tab_leads_to_the_text(site, serve, reader):
    page = reader()
    page.goto(serve(site)+'tutorials/split_by_patient.html')
    hidden = page.locator('.skip').bounding_box()
    page.keyboard.press('Tab')
    shown = page.locator('.skip').bounding_box()
    assert hidden['y']+hidden['height']<=0 and shown['y']>=0
    page.keyboard.press('Enter')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.closest("main") !== null')

def covered(page):
    "Whether what stands in the margin lies on a table, wherever the page is scrolled to."
    return page.evaluate("""() => {
        const far = document.body.scrollHeight, box = o => o.getBoundingClientRect()
        for (let y = 0; y < far; y += innerHeight/2) {
            scrollTo({top: y, behavior: 'instant'})
            const m = box(document.querySelector('#quarto-margin-sidebar'))
            for (const t of [...document.querySelectorAll('main table')].map(box))
                if (m.width && t.right > m.left && m.bottom > t.top && t.bottom > m.top && m.bottom > 60) return true
        }
        return false }""")

@pytest.mark.browser
def test_nothing_lies_on_the_tables_of_the_results(site, serve, reader):
    page = reader()
    page.goto(serve(site)+'results.html', wait_until='load')
    assert not covered(page)
    page.add_style_tag(content='.page-layout-full #quarto-margin-sidebar { position: sticky !important }') # as it was
    assert covered(page)

@pytest.mark.browser
@pytest.mark.parametrize('old,new', [('ImageDataBunch', 'Bunch'), ('"href": "api/data.html#imagedatabunch"', '"href": "api/data.html"')])
def test_search_that_finds_nothing_is_noticed(copy, plant, serve, reader, old, new):
    assert found_from_a_lesson(page := reader(), address := serve(copy))
    plant('search.json', old, new)
    assert not found_from_a_lesson(page, address)

def lightness(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)/765")

def switch(page):
    "Lightness of the page before, after the switch is pressed, and after the page is opened anew."
    before = lightness(page)
    page.click('.quarto-color-scheme-toggle')
    page.wait_for_timeout(200)
    after = lightness(page)
    page.reload()
    return before,after,lightness(page)

@pytest.mark.browser
def test_dark_mode_switches_and_stays(site, serve, reader):
    page = reader()
    page.goto(serve(site)+'index.html')
    before,after,then = switch(page)
    assert before>.9 and after<.3 and then<.3
    before,after,then = switch(page)
    assert before<.3 and after>.9 and then>.9
    dark = reader(scheme='dark')
    dark.goto(serve(site)+'index.html')
    assert lightness(dark)<.3

@pytest.mark.browser
def test_a_dead_switch_is_noticed(copy, plant, serve, reader):
    plant('start.html', 'smalldocsToggleScheme', 'nothing')
    page = reader()
    page.goto(serve(copy)+'start.html')
    before,after,_ = switch(page)
    assert before==after

@pytest.mark.browser
def test_the_sidebar_opens_on_a_phone_and_what_scrolls_is_reached_by_keyboard(site, serve, reader):
    page = reader(390)
    page.goto(serve(site)+'results.html')
    assert page.locator('#quarto-sidebar a', has_text='How to cite').bounding_box()['x']<0
    page.click('.quarto-btn-toggle')
    page.wait_for_timeout(400)
    assert page.locator('#quarto-sidebar a', has_text='How to cite').bounding_box()['x']>=0
    wide = page.eval_on_selector_all('main .sd-table', 'os => os.filter(o => o.scrollWidth > o.clientWidth).map(o => o.tabIndex)')
    assert wide and {*wide}=={0}

# ---- what the pages show

def undefined(notebook):
    "Names that shown code reads, though only a hidden cell, or none, defines them."
    import malaria_fastai.all
    known,found = {*dir(builtins), 'display', 'get_ipython'},[]
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        code = ''.join(cell['source'])
        if cell['cell_type']!='code' or re.match(r'#\|\s*(hide|exporti?\b|exec_doc\n#\|\s*echo: false)', code): continue
        nodes = [*ast.walk(ast.parse(re.sub(r'^([ \t]*)[%!](?:[^\n]*\\\n)*[^\n]*$', r'\1pass', code, flags=re.M)))]
        for o in nodes:
            if isinstance(o, ast.ImportFrom) and o.names[0].name=='*': known |= {*malaria_fastai.all.__all__}
            elif isinstance(o, (ast.Import, ast.ImportFrom)): known |= {(a.asname or a.name).split('.')[0] for a in o.names}
            elif isinstance(o, (ast.FunctionDef, ast.ClassDef)): known.add(o.name)
            elif isinstance(o, ast.arg): known.add(o.arg)
            elif isinstance(o, ast.ExceptHandler) and o.name: known.add(o.name)
            elif isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store): known.add(o.id)
        found += [f'{notebook.name}: {o.id}' for o in nodes if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load) and o.id not in known]
    return sorted({*found})

def test_what_a_page_shows_runs_as_it_is_shown(tmp_path):
    pages = [*LESSONS, *sorted((ROOT/'nbs/howto').glob('[0-9]*.ipynb')), *(ROOT/'nbs'/f'{o}.ipynb' for o in ('index', 'script', 'trouble'))]
    assert len(pages)>15 and not sum(map(undefined, pages), [])
    cells = [dict(cell_type='code', source='#| hide\nroot = 1'), dict(cell_type='code', source='print(root)')]
    (tmp_path/'x.ipynb').write_text(json.dumps(dict(cells=cells)), encoding='utf-8')
    assert undefined(tmp_path/'x.ipynb')==['x.ipynb: root']

# ---- what the pages say of files

def explained():
    "The words in the tables and bold lines of the page on what commands write."
    cells = json.loads((ROOT/'nbs/howto/06_what_a_command_writes.ipynb').read_text(encoding='utf-8'))['cells']
    return {*re.findall(r'`([\w…]+)`', ''.join(''.join(c['source']) for c in cells))}

def unexplained(columns):
    "Columns that the page does not name; intervals and undisputed labels have their own rule."
    known = explained()
    return [o for o in columns if re.sub(r'(_undisputed)?(_lo|_hi)?$', '', o) not in known]

@pytest.mark.slow
def test_every_column_that_a_command_writes_is_explained(sample_root, made_once):
    from functools import partial
    import pandas as pd
    from malaria_fastai.extra.simulate import simulate_predictions
    from malaria_fastai.extra.audit import ask_verdicts, review_list
    from malaria_fastai.predict import Predictor
    from test_export import small_run
    run = made_once('small_run', partial(small_run, sample_root))
    for file in (*run.glob('*.csv'), ROOT/'results/compare.csv', ROOT/'results/best_robustness.csv'):
        assert not unexplained(pd.read_csv(file, nrows=1)), file
    preds = simulate_predictions(patients=12, cells=20)
    preds = preds.assign(fold=pd.factorize(preds.patient)[0] % 3, sha256='0', split='test', p_one_view=preds.p)
    review = review_list(preds, 'Parasitized')
    assert not unexplained(review) and not unexplained(ask_verdicts(review, preds, 3))
    assert not unexplained(Predictor()(sorted(sample_root.rglob('*.png'))[:1]))
    assert unexplained(['path', 'n_undisputed', 'accuracy_lo', 'novel'])==['novel']

# ---- what the pages tell the reader to do

SMALLER = {"'my_cells.zip'": "'sample'", 'size=128,': 'size=32,', 'models.resnet34, metrics': 'models.squeezenet1_1, pretrained=False, metrics', 'fit_one_cycle(10,': 'fit_one_cycle(1,'}

@pytest.mark.slow
def test_the_script_of_the_page_runs_and_goes_on(tmp_path):
    cells = json.loads((ROOT/'nbs/script.ipynb').read_text(encoding='utf-8'))['cells']
    script = next(m for c in cells if c['cell_type']=='markdown' for m in re.findall(r'```python\n(.*?)```', ''.join(c['source']), re.S) if 'def main' in m)
    for old,new in SMALLER.items():
        assert old in script
        script = script.replace(old, new)
    (tmp_path/'mine.py').write_text(script, encoding='utf-8')
    said = [subprocess.run([sys.executable, 'mine.py'], cwd=tmp_path, capture_output=True, text=True) for _ in range(2)]
    assert [o.returncode for o in said]==[0, 0], said[0].stderr[-2000:]+said[1].stderr[-2000:]
    assert 'starting at epoch 0' in said[0].stdout and 'Loaded mine_0' in said[1].stdout
    assert (tmp_path/'runs/mine/predictions.csv').exists() and (tmp_path/'runs/mine/export.pkl').exists()
