"""Write a markdown twin beside each page of the site, and `llms.txt`, which lists them.

Programs read them, and `help()` of a module leads to one: `api/split.html` has the twin `api/split.html.md`."""
import re
import nbformat
from nbconvert.exporters import MarkdownExporter

FRONT_MATTER = re.compile(r'\A\s*---\n.*?\n---\n', re.S)
PICTURE = re.compile(r'!\[(?:png|jpeg|svg)\]\([^)]*\)\n*') # a figure that the code drew; it stands on the page
PAGE = re.compile(r'(?<=\]\()(?!https?:)([^)\s#]+)[.]ipynb')

def twin(notebook):
    "The text of a staged notebook as markdown, with links to other twins."
    text,_ = MarkdownExporter().from_notebook_node(notebook)
    text = PICTURE.sub('', FRONT_MATTER.sub('', text.lstrip()))
    return PAGE.sub(r'\1.html.md', text).lstrip()

def heading(text):
    "The title of a page, and the sentence below it."
    found = re.search(r'^# (.+)\n+(?:> (.+))?', text, re.M)
    return (found[1],found[2] or '') if found else ('','')

def write_twins(
    stage, # Folder of the staged notebooks
    site, # Folder of the built pages
    address, # Where the site will be
):
    "Write the twins and the list of them."
    rows = []
    for path in sorted(stage.rglob('*.ipynb')):
        page = path.relative_to(stage).with_suffix('.html.md')
        text = twin(nbformat.read(path, as_version=4))
        (site/page).write_text(text, encoding='utf-8')
        title,sentence = heading(text)
        rows.append(f'- [{title or page.stem}]({address}/{page.as_posix()}): {sentence}')
    text = '\n'.join(['# malaria_fastai', '', '> Malaria cell classification with fastai: lessons, library, measured results.', '', '## Pages', '', *rows, ''])
    (site/'llms.txt').write_text(text, encoding='utf-8')
