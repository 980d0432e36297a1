"""Weave the pages of the site together: terms lead to the glossary, functions to the lessons that use them, lessons to their
notebooks, and a link that is shared elsewhere shows a title, a sentence and a picture."""
import ast,html,json,re
from pathlib import Path
from zipfile import ZIP_DEFLATED,ZipFile
import pandas as pd

EVERYDAY = {'cell', 'photograph', 'loss', 'body', 'head', 'frozen', 'split'} # in prose these often mean something else
UNTOUCHED = {'a', 'code', 'pre', 'h1', 'h2', 'h3', 'h4', 'script', 'style', 'th', 'svg', 'button', 'nav', 'summary', 'math'}
TAG = re.compile(r'(<[^>]+>)')
NOTEBOOKS = 'notebooks' # the folder of the site where the lessons lie as files

def slug(term): return re.sub(r'\W+', '-', term.lower()).strip('-')

# ---- terms

def with_anchors(page):
    "The text of the glossary with an anchor at each term, and the terms."
    before,main = page.split('<main', 1)
    terms = re.findall(r'<li>(?:<p>)?<strong>([^<]+)</strong>', main)+re.findall(r'(?:a|The|the) <strong>([^<]+)</strong>', main)
    anchored = re.sub(r'<strong>([^<]+)</strong>', lambda found: f'<strong id="{slug(found[1])}">{found[1]}</strong>', main)
    return f'{before}<main{anchored}',[html.unescape(term) for term in terms]

def link_terms(page, terms, glossary):
    "Let the first use of each term in the paragraphs and lists of a page lead to the address `glossary`."
    before,main = page.split('<main', 1)
    waiting = {term.lower(): rf'\b{re.escape(term)}s?\b' for term in terms if term not in EVERYDAY}
    pieces,inside = TAG.split(main),[]
    for at,piece in enumerate(pieces):
        tag = re.match(r'<(/?)(\w+)', piece)
        if tag and tag[1]:
            if tag[2] in inside: del inside[len(inside)-1-inside[::-1].index(tag[2]):]
        elif tag: inside.append(tag[2])
        elif {'p', 'li'} & {*inside} and not UNTOUCHED & {*inside}:
            for term,pattern in [*waiting.items()]:
                link = rf'<a class="term" href="{glossary}#{slug(term)}">\g<0></a>'
                parts = TAG.split(pieces[at])
                for which in range(0, len(parts), 4): # what stands outside of the links just made
                    parts[which],times = re.subn(pattern, link, parts[which], count=1, flags=re.I)
                    if times: del waiting[term]; break
                pieces[at] = ''.join(parts)
    return f'{before}<main{"".join(pieces)}'

# ---- lessons and functions

def names_used(notebook):
    "The names that the code of a notebook reads, with those of methods as `.name`; names of modules do not count."
    used = set()
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type']!='code': continue
        code = re.sub(r'^([ \t]*)[%!](?:[^\n]*\\\n)*[^\n]*$', r'\1pass', ''.join(cell['source']), flags=re.M)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Name): used.add(node.id)
            if isinstance(node, ast.Attribute): used.add(f'.{node.attr}')
    return used

def common(name):
    "Whether a method of this name belongs to many things, so that its name alone says nothing."
    return any(hasattr(kind, name) for kind in (pd.DataFrame, Path, dict, list, str, ast, json))

def used_in(page, lessons):
    "Say below each function of a page of the API which lessons use it. `lessons`: number -> (address, names used)."
    def say(found):
        owner,_,name = found[2].rpartition('.')
        if owner and common(name): return found[0]
        wanted = f'.{name}' if owner else name
        links = [f'<a href="{address}">{number}</a>' for number,(address,used) in lessons.items() if wanted in used]
        return found[0]+f'<p class="used">Used in lesson{"s"*(len(links)>1)} {", ".join(links)}</p>'*bool(links)
    return re.sub(r'(<h3 id="[^"]+"[^>]*>)([\w.]+)</h3>', say, page)

def with_methods(reference, site):
    "Below the names of each module, the methods that its page explains."
    def say(found):
        methods = re.findall(r'<h3 id="([^"]+)"[^>]*>(\w+\.\w+)</h3>', (site/found[1]).read_text(encoding='utf-8'))
        links = ' · '.join(f'<a href="{found[1]}#{anchor}"><code>{name}</code></a>' for anchor,name in methods)
        return found[0]+f'\n<p class="used">Methods: {links}</p>'*bool(links)
    return re.sub(r'<a href="((?:api|extra)/\w+\.html)">The page of [^<]*</a></p>\n<p>.*?</p>', say, reference, flags=re.S)

# ---- files to take along, and previews

def downloads(page, notebook):
    "Offer the notebook of a lesson, and all of them, beside the button that opens it in Colab."
    links = (f' <a class="download" href="../{NOTEBOOKS}/{notebook}" download>Download the notebook</a>'
             f' <a class="download" href="../{NOTEBOOKS}/all_lessons.zip" download>All lessons</a>')
    return re.sub(r'(<a href="https://colab[^>]*>[^<]*</a>)', rf'\1{links}', page, count=1)

def preview(page, address, site):
    "Title, sentence and picture for whoever shares a link to the page."
    title,sentence = (re.search(pattern, page) for pattern in ('<title>([^<]*)', '<meta name="description" content="([^"]*)'))
    says = dict(title=title[1], description=sentence[1] if sentence else '', url=address, image=f'{site}/images/preview.png', type='website')
    return page.replace('</head>', ''.join(f'<meta property="og:{name}" content="{text}">' for name,text in says.items())+'</head>', 1)

def flow(page, up, drawing):
    "Set the picture of the flow into the page, where its boxes are links."
    drawing = drawing.replace('role="img"', 'role="group"', 1) # a picture may not hold links
    drawing = re.sub(r'href="(\w+)/\d+_(\w+)\.ipynb"', rf'href="{up}\1/\2.html"', drawing)
    return re.sub(r'<img [^>]*images/flow\.svg[^>]*>', lambda _: f'<span class="wide">{drawing}</span>', page)

def weave(
    site, # Folder of the rendered site: its pages are changed in place
    lessons, # Paths of the notebooks of the lessons
    address, # Address of the published site
):
    "Change every page of `site`, and lay the notebooks of the lessons beside them."
    (site/NOTEBOOKS).mkdir(exist_ok=True)
    with ZipFile(site/NOTEBOOKS/'all_lessons.zip', 'w', ZIP_DEFLATED) as archive:
        for lesson in lessons:
            archive.write(lesson, lesson.name)
            (site/NOTEBOOKS/lesson.name).write_bytes(lesson.read_bytes())
    glossary,terms = with_anchors((site/'glossary.html').read_text(encoding='utf-8'))
    (site/'glossary.html').write_text(glossary, encoding='utf-8')
    of = {int(lesson.name[:2]): (f'../tutorials/{lesson.stem[3:]}.html', names_used(lesson)) for lesson in lessons}
    files = {lesson.stem[3:]: lesson.name for lesson in lessons}
    drawing = (site/'images/flow.svg').read_text(encoding='utf-8')
    for path in site.rglob('*.html'):
        place = path.relative_to(site)
        if place.parts[0]=='try': continue
        up = '../'*(len(place.parts)-1)
        text = flow(path.read_text(encoding='utf-8'), up, drawing)
        if place.name!='glossary.html': text = link_terms(text, terms, f'{up}glossary.html')
        if place.parts[0] in ('api', 'extra'): text = used_in(text, of)
        if place.name=='reference.html': text = with_methods(text, site)
        if place.parts[0]=='tutorials': text = downloads(text, files[path.stem])
        path.write_text(preview(text, f'{address}/{place.as_posix()}', address), encoding='utf-8')
