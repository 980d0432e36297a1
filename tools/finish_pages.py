"""Make the rendered pages fit to be read offline, by keyboard and by ear.

smalldocs takes formulae, fonts and badges from the network, gives pictures no words, and lets menus call themselves
what they are not. Each function here mends one of these in the text of a page."""
import html,json,re,shutil,struct
from base64 import b64decode
from pathlib import Path
from latex2mathml.converter import convert

FORMULA = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
NETWORK = re.compile(r'<(?:link|script)\b[^>]*\b(?:href|src)="https?://cdn\.[^"]*"[^>]*>(?:</script>)?')
BADGE = re.compile(r'<p>(?:<a [^>]*><img [^>]*src="https?://(?!colab)[^>]*></a>\s*)+</p>\n?')
PICTURE = re.compile(r'<img\b[^>]*src="https?://[^>]*>')
INTERVAL = re.compile(r'(?<=<td>)([+−-]?[\d.]+) (\([^<>]*\))(?=</td>)')
EMPTY = re.compile(r'<div class="code-copy-outer-scaffold">(?:(?!</pre>).)*?\(\s*<span class="op">\*</span>args, <span class="op">\*</span><span class="op">\*</span>kwargs\s*\):(?:(?!</?div).)*</div>(?:(?!</div>).)*</div>\n?', re.S)
CODE_OR_PICTURE = re.compile(r'<code class="sourceCode python">(?P<code>.*?)</code>|<img (?P<rest>[^>]*?src="data:image/[\w+]+;base64,(?P<data>[^"]*)"[^>]*)>', re.S)

def formulae(text):
    "Write formulae as MathML, which browsers set by themselves, and drop what a page would fetch to set them."
    return FORMULA.sub(lambda m: convert(html.unescape(m[2]), display='block' if m[1]=='display' else 'inline'), NETWORK.sub('', text))

def distant_pictures(text):
    "Replace pictures that lie elsewhere by their words; a paragraph of badges goes."
    return PICTURE.sub(lambda m: re.search(r'alt="([^"]*)"', m[0])[1], BADGE.sub('', text))

def last_statement(code):
    "The last statement of `code`, as shown on a page, on one line and not too long."
    lines = html.unescape(re.sub('<[^>]+>', '', code)).rstrip().split('\n')
    first = max((i for i,o in enumerate(lines) if o[:1] not in ('', ' ', ')', ']', '}')), default=0)
    text = ' '.join(o.strip() for o in lines[first:])
    return text if len(text)<=120 else text[:119]+'…'

def size_of(data):
    "Width and height in pixels of a PNG, JPEG or SVG in base64; None if they are not found."
    raw = b64decode(data)
    if raw[:4]==b'\x89PNG': return struct.unpack('>II', raw[16:24])
    if found := re.search(rb'\xff[\xc0-\xc2]..\x08(..)(..)', raw, re.S): return tuple(int.from_bytes(found[i], 'big') for i in (2, 1))
    if found := re.search(rb'<svg\b[^>]*? width="([\d.]+)pt" height="([\d.]+)pt"', raw): return tuple(round(float(o)*4/3) for o in found.groups()) # 3 pt are 4 pixels

def figures(text):
    "Give figures a size, so that nothing jumps while a page loads, and those without words the statement that drew them."
    said = 'a notebook cell'
    def mend(m):
        nonlocal said
        if m['code'] is not None: said = last_statement(m['code']); return m[0]
        has = m['rest'].replace(m['data'], '')
        size = None if ' width=' in has else size_of(m['data'])
        words = '' if re.search(r'\balt=', has) else f'alt="Figure drawn by: {html.escape(said)}" '
        box = f' width="{size[0]}" height="{size[1]}"' if size else ''
        return f'<img {words}{m["rest"]}{box}>'
    return CODE_OR_PICTURE.sub(mend, text)

def roles(text):
    "What folds a section of the sidebar is a button, to the keyboard too; the switch to dark mode and the icons have names."
    text = re.sub(r'(<a class="sidebar-item-[^>]*?) role="navigation"', r'\1 role="button" tabindex="0"', text)
    text = text.replace('<div id="quarto-margin-sidebar"', '<div role="complementary" aria-label="On this page" id="quarto-margin-sidebar"')
    text = text.replace('<i class="bi bi-github" role="img"></i>', '<i class="bi bi-github" aria-hidden="true"></i>')
    text = text.replace('role="button" id="quarto-back-to-top"', 'role="button" tabindex="0" id="quarto-back-to-top"')
    text = text.replace('<nav class="navbar ', '<nav aria-label="Site" class="navbar ').replace('<nav class="quarto-secondary-nav"', '<nav aria-label="Place" class="quarto-secondary-nav"')
    text = text.replace('<nav id="quarto-sidebar"', '<nav aria-label="Pages" id="quarto-sidebar"').replace('<nav class="page-navigation"', '<nav aria-label="Previous and next" class="page-navigation"')
    return text.replace('<a class="quarto-color-scheme-toggle nav-link" href=""', '<a class="quarto-color-scheme-toggle nav-link" role="button" href="#" aria-label="Dark mode"')

def stops(text):
    "The first stop of the keyboard leads past the menus; a section of the sidebar is one stop, and its arrow, which does the same, none."
    text = re.sub(r'(<body\b[^>]*>)', r'\1<a class="skip" href="#quarto-document-content">To the text</a>', text, count=1)
    text = text.replace('<main class="content" id="quarto-document-content"', '<main class="content" id="quarto-document-content" tabindex="-1"')
    return re.sub(r'(<a class="sidebar-item-toggle[^>]*?) role="button" tabindex="0"([^>]*?) aria-label="Toggle section"', r'\1\2 aria-hidden="true"', text)

def signatures(text):
    "A signature names classes of its own module by their names alone; nbdev ran the notebook as `__main__`. That of an error says nothing."
    text = re.sub(r'__main__(<span class="op">)?\.(?(1)</span>)', '', text)
    text = re.sub(r'<span class="op">&lt;</span>function (\w+) at <span class="bn">0x\w+</span><span class="op">&gt;</span>', r'\1', text)
    return EMPTY.sub('', text)

def breaks(text):
    "Long names in tables of pandas may go on in the next line after an underline or a slash; an interval stands below its number."
    def cells(table): return INTERVAL.sub(r'\1<br><small>\2</small>', names(table))
    def names(table): return re.sub(r'(?<=>)[^<>]{8,}(?=</t[dh]>)', lambda m: re.sub(r'(?<=\w)([_/])(?=\w)', r'\1<wbr>', m[0]), table[0])
    return re.sub(r'(?s)<table border="\d" class="dataframe.*?</table>|<table id="T_.*?</table>', cells, text)

def for_a_phone(text):
    "Cells of wide tables of words know their heading, since a phone shows them below one another; printed sentences, which wrap there, are marked."
    def heads(table):
        names = [re.sub('<[^>]+>', '', o) for o in re.findall(r'(?s)<th\b[^>]*>(.*?)</th>', table[0])]
        def row(found):
            left = iter(names)
            return re.sub('<td>', lambda _: f'<td data-head="{html.escape(html.unescape(next(left, "")))}">', found[0])
        return re.sub(r'(?s)<tr>.*?</tr>', row, table[0]) if len(names)>2 else table[0]
    def said(block): return '<pre class="said">' + block[1] if max(map(len, html.unescape(block[1]).split('\n')))>110 else block[0]
    text = re.sub(r'(?s)<table class="caption-top table">.*?</table>', heads, text)
    return re.sub(r'(?s)<pre>(<code>.*?</code>)', said, text)

def sources(text, moved):
    "Let links to the source of a page name the notebook, which has its number: `moved` maps notebooks to staged ones."
    for notebook,page in moved.items(): text = text.replace(f'/main/nbs/{page}"', f'/main/nbs/{notebook}"')
    return text

def finish(
    site, # Folder of the rendered site: its pages are changed in place
    moved, # dict, path of a notebook below nbs -> path under which it was staged
):
    """Mend every page of `site`, drop fonts from elsewhere, rank what search finds by `search.js`, and keep its index as a script:
    a page on disk may not fetch."""
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        for mend in (formulae, distant_pictures, figures, roles, stops, signatures, breaks, for_a_phone): text = mend(text)
        page.write_text(sources(text, moved), encoding='utf-8')
    for css in site.glob('site_libs/themes/*.css'): css.write_text(re.sub(r'@import url\([^)]*\);?', '', css.read_text(encoding='utf-8')), encoding='utf-8')
    shutil.copyfile(Path(__file__).parent/'search.js', site/'site_libs/fuse/fuse.min.js')
    index = json.loads((site/'search.json').read_text(encoding='utf-8'))
    (site/'search.js').write_text(f'window.searchIndex = {json.dumps(index, ensure_ascii=False)}', encoding='utf-8')
