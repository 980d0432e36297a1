"""Build the site in _docs without Quarto: nbdev stages the notebooks, smalldocs renders them from nbs/_quarto.yml, and
`finish_pages` makes the pages fit to be read offline, by keyboard and by ear; `try_page` adds the page that tries a network.

Where npm cannot fetch what runs the network in the browser, a note takes the place of that page. `WHOLE_SITE=1`, which is how the site is
published, makes this an error.

Whoever has Quarto runs `nbdev-docs` on the same notebooks instead."""
import os,re,shutil,subprocess,sys
from importlib.metadata import version
from pathlib import Path
import yaml
from finish_pages import finish
from markdown_twins import write_twins
from nbdev.config import get_config,nbpath2html
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from try_page import build as build_try
from weave_pages import weave

ROOT = Path(__file__).resolve().parent.parent

UNREAD = re.compile(r'"output-file: [\w.-]+\\n",\s*|^format-links:.*\Z', re.M|re.S) # what nbdev writes for Quarto alone

FIGURE = re.compile(r'https://raw\.githubusercontent\.com/[\w.-]+/malaria_fastai/main/results/(?=\w+\.svg)') # lessons run without a checkout

def staged(notebook):
    "Where `notebook` lies while it is rendered: nbdev drops the number from the page's name, smalldocs names pages by file."
    return nbpath2html(notebook).with_suffix('.ipynb')

def spell_out(contents, stage):
    "Replace globs in the `contents` of a sidebar by the notebooks they find, in the order of their numbers."
    for o in [contents] if isinstance(contents, str) else contents:
        if isinstance(o, dict): yield {**o, 'contents': [*spell_out(o['contents'], stage)]} if 'contents' in o else o
        elif '*' in o: yield from (p.relative_to(stage).as_posix() for p in sorted(stage.glob(o)))
        else: yield o

def there(entry, stage):
    "False for a section without pages, and for a page that is not there."
    if not isinstance(entry, dict): return (stage/entry).exists()
    return entry['contents']!=[] if 'contents' in entry else (stage/entry['href']).exists()

def prune(entry, stage):
    "A sidebar `entry` without what is not `there`."
    if isinstance(entry, list): return [o for o in (prune(o, stage) for o in entry) if there(o, stage)]
    if isinstance(entry, dict) and 'contents' in entry: return {**entry, 'contents': prune(entry['contents'], stage)}
    return entry

def rename(text, names):
    "Let links in `text` follow the renamed notebooks. Addresses elsewhere, as in Colab, know them by their own names."
    for old,new in names.items(): text = re.sub(rf'(https?://[^\s"\')]*)?(?<![\w-]){re.escape(old)}', lambda m: m[0] if m[1] else new, text)
    return text

def arrange(stage, site, release):
    "Make what nbdev staged fit smalldocs: page names, sidebar, version, relative links to our own pages. Returns which notebook got which name."
    config = yaml.safe_load((stage/'_quarto.yml').read_text(encoding='utf-8'))
    side = config['website']['sidebar']
    side['contents'] = prune([*spell_out(side['contents'], stage)], stage)
    footer = config['website']['page-footer']
    footer['left'] = footer['left'].replace('malaria_fastai', f'malaria_fastai {release}', 1)
    (stage/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    moved = {o.relative_to(stage).as_posix(): staged(o).relative_to(stage).as_posix() for o in stage.rglob('*.ipynb') if staged(o)!=o}
    names = {Path(k).name: Path(v).name for k,v in moved.items()}
    for page in [*stage.rglob('*.ipynb'), stage/'_quarto.yml', stage/'nbdev.yml']:
        up = '../'*(len(page.relative_to(stage).parts)-1)
        text = rename(page.read_text(encoding='utf-8'), names).replace(f'{site}/', up)
        text = FIGURE.sub(f'{up}results/', text)
        text = UNREAD.sub('', text)
        page.write_text(text, encoding='utf-8')
        if page.suffix=='.ipynb': page.rename(staged(page))
    return moved

def main():
    os.chdir(ROOT)
    cfg = get_config()
    stage,built = ROOT/'_site_src',cfg.doc_path
    refresh_quarto_yml()
    _build_modidx()
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(proc_nbs(cfg.nbs_path, n_workers=1, force=True), stage, ignore=shutil.ignore_patterns('runs')) # what lessons wrote
    (stage/'try/model/MODEL_CARD.md').unlink(missing_ok=True) # no page of the site: `try_page` brings it
    moved = arrange(stage, cfg.doc_url, version('malaria_fastai'))
    done = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '--strict', str(stage)])
    if done.returncode: sys.exit('The site is not built: mend what the lines above name.')
    shutil.copytree(ROOT/'results', stage/built.name/'results', ignore=shutil.ignore_patterns('*.csv', '*.md', '*.txt'))
    finish(stage/built.name, moved)
    weave(stage/built.name, sorted((cfg.nbs_path/'tutorials').glob('*.ipynb')), cfg.doc_url.rstrip('/'))
    write_twins(stage, stage/built.name, cfg.doc_url.rstrip('/'))
    if not build_try(stage/built.name/'try') and os.environ.get('WHOLE_SITE'): sys.exit('The site is not whole: mend what the line above names.')
    shutil.rmtree(built, ignore_errors=True)
    shutil.move(stage/built.name, built)
    shutil.rmtree(stage)
    print(f'Open {built.relative_to(ROOT)}/index.html')

if __name__=='__main__': main() # the guard is needed: nbdev stages in processes of its own
