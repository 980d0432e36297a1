"""Write a markdown twin beside each page of the site, and `llms.txt`, which lists them.

Programs read them, and `help()` of a module leads to one: `api/split.html` has the twin `api/split.html.md`."""
import json,re
import yaml

FRONT_MATTER = re.compile(r'\A\s*---\n(.*?)\n---\s*', re.S) # nbdev puts the title there
PAGE = re.compile(r'(?<=\]\()(?!https?:)([^)\s#]+)[.]ipynb')

def joined(text): return text if isinstance(text, str) else ''.join(map(str, text))

def fenced(text, language=''): return f'```{language}\n{text.rstrip()}\n```'

def said(output):
    "What an output says in words; a figure stands on the page alone."
    if output['output_type']=='stream': return fenced(joined(output['text']))
    data = output.get('data', {})
    if 'text/markdown' in data: return joined(data['text/markdown'])
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
