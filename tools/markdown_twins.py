"""Write a markdown twin beside each page of the site, and `llms.txt`, which lists them.

Programs read them, and `help()` of a module leads to one: `api/split.html` has the twin `api/split.html.md`."""
import json,re
from html.parser import HTMLParser
import yaml

FRONT_MATTER = re.compile(r'\A\s*---\n(.*?)\n---\s*', re.S) # nbdev puts the title there
PAGE = re.compile(r'(?<=\]\()(?!https?:)([^)\s#]+)[.]ipynb')

def joined(text): return text if isinstance(text, str) else ''.join(map(str, text))

def fenced(text, language=''): return f'```{language}\n{text.rstrip()}\n```'

class Words(HTMLParser):
    "What HTML says, as markdown: paragraphs, tables with a bar between cells, and the words of pictures."
    CELLS,BLOCKS,UNREAD = ('td', 'th'),('p', 'div', 'h1', 'h2', 'h3', 'h4', 'caption', 'li', 'ul'),('style', 'script')

    def __init__(self, text):
        super().__init__()
        self.parts,self.words,self.rows,self.span,self.unread = [],[],None,1,0
        self.feed(text)
        self.paragraph()

    def text(self):
        "What was said since the last cell or paragraph."
        words,self.words = ' '.join(''.join(self.words).split()),[]
        return words

    def paragraph(self): self.parts += [o for o in [self.text()] if o]

    def handle_starttag(self, tag, attrs):
        has = dict(attrs)
        if tag in self.UNREAD: self.unread += 1
        if tag=='img' and has.get('alt'): self.words.append(f"*Figure: {has['alt']}*")
        if tag=='br': self.words.append(' ')
        if tag=='small' and self.rows is not None: self.words.append('(')
        if tag in self.BLOCKS and self.rows is None: self.paragraph()
        if tag=='table': self.paragraph(); self.rows = []
        if tag=='tr' and self.rows is not None: self.rows.append([])
        if tag in self.CELLS: self.text(); self.span = int(has.get('colspan') or 1)

    def handle_endtag(self, tag):
        if tag in self.UNREAD: self.unread -= 1
        if tag=='small' and self.rows is not None: self.words.append(')')
        if tag in self.BLOCKS and self.rows is None: self.paragraph()
        if tag in self.CELLS and self.rows: self.rows[-1] += [self.text().replace('|', r'\|')]+['']*(self.span - 1)
        if tag=='table': self.parts.append(barred(self.rows)); self.rows = None

    def handle_data(self, data):
        if not self.unread: self.words.append(data)

def barred(rows):
    "Rows of cells as a table of markdown. Below the heads pandas has a row that names the index: it joins them."
    rows = [row for row in rows if any(row)]
    if len(rows)>1 and rows[0][0]=='' and not any(rows[1][1:]): rows[:2] = [[*rows[1][:1], *rows[0][1:]]]
    width = max(map(len, rows), default=0)
    lines = ['| '+' | '.join(row+['']*(width - len(row)))+' |' for row in rows]
    return '\n'.join([*lines[:1], '|---'*width+'|', *lines[1:]])

def said(output):
    "What an output says in words; a figure stands on the page alone."
    if output['output_type']=='stream': return fenced(joined(output['text']))
    data = output.get('data', {})
    if 'text/markdown' in data: return joined(data['text/markdown'])
    if 'text/html' in data: return '\n\n'.join(Words(joined(data['text/html'])).parts)
    if any(kind.startswith('image/') for kind in data) or 'text/plain' not in data: return ''
    return fenced(joined(data['text/plain']))

def parts(notebook):
    "The text of each cell, and of what it printed."
    for cell in notebook['cells']:
        source = joined(cell['source'])
        if cell['cell_type']=='markdown': yield source
        if cell['cell_type']!='code': continue
        if source.strip() and 'echo: false' not in source: yield fenced(source, 'python')
        yield from map(said, cell['outputs'])

def about(notebook):
    "The title of a page, and the sentence below it."
    first = joined(notebook['cells'][0]['source'])
    if matter := FRONT_MATTER.match(first):
        fields = yaml.safe_load(matter[1])
        return fields.get('title', ''),fields.get('description', '')
    found = re.search(r'^# (.+)\n+(?:> (.+))?', first, re.M)
    return (found[1],found[2] or '') if found else ('','')

def twin(notebook):
    "The text of a staged notebook as markdown, with links to other twins."
    title,sentence = about(notebook)
    head = '\n\n'.join(['# '+title]*bool(title)+['> '+sentence]*bool(sentence))
    first = joined(notebook['cells'][0]['source'])
    text = '\n\n'.join(part for part in parts(notebook) if part.strip())
    if FRONT_MATTER.match(first): text = f'{head}\n\n{text}'
    return PAGE.sub(r'\1.html.md', text)+'\n'

def write_twins(
    stage, # Folder of the staged notebooks
    site, # Folder of the built pages
    address, # Where the site will be
):
    "Write the twins and the list of them."
    rows = []
    for path in sorted(stage.rglob('*.ipynb')):
        page = path.relative_to(stage).with_suffix('.html.md')
        if not (site/page).parent.is_dir(): continue
        notebook = json.loads(path.read_text(encoding='utf-8'))
        (site/page).write_text(twin(notebook), encoding='utf-8')
        title,sentence = about(notebook)
        rows.append(f'- [{title or page.stem}]({address}/{page.as_posix()}): {sentence}')
    head = ['# malaria_fastai', '', '> Malaria cell classification with fastai: lessons, library, measured results.', '', '## Pages', '']
    (site/'llms.txt').write_text('\n'.join([*head, *rows, '']), encoding='utf-8')
