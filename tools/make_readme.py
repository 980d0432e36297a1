"Write README.md from nbs/index.ipynb: nbconvert's Markdown, with links seen from the repository's top folder."
import re,sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`: change that. -->\n\n'
LINK = re.compile(r'(\]\(|(?:src|href)=")(?![a-z]+:|[#/])([^)"\s]+)')

def shown(cell):
    "Drop hidden cells, and the directives of the others."
    if cell.cell_type=='raw' or re.match(r'#\|\s*(hide|include:\s*false)\s*$', cell.source, re.M): return
    if cell.cell_type=='code': cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    return cell

def readme(
    notebook, # Path of the notebook
): # str, the Markdown, and a dict file name -> bytes of the pictures it shows
    "Convert `notebook` to Markdown."
    nb = nbformat.read(notebook, 4)
    nb.cells = [c for c in map(shown, nb.cells) if c]
    exporter = MarkdownExporter()
    exporter.register_filter('add_anchor', lambda s: s)
    text,res = exporter.from_notebook_node(nb, {'unique_key':'README', 'output_files_dir':'nbs/images'})
    text = re.sub(r'<style scoped>.*?</style>\s*', '', text, flags=re.S)
    text = LINK.sub(lambda m: m[0] if m[2] in res['outputs'] else f'{m[1]}nbs/{m[2]}', text)
    return NOTE + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', res['outputs']

def main():
    text,pictures = readme(ROOT/'nbs/index.ipynb')
    for name,data in pictures.items():
        (ROOT/name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/name).write_bytes(data)
    (ROOT/'README.md').write_text(text, encoding='utf-8', newline='\n')

if __name__=='__main__': main()
