"""Build the site in _docs without Quarto: nbdev stages the notebooks, smalldocs renders them from nbs/_quarto.yml.

Whoever has Quarto runs `nbdev-docs` on the same notebooks instead."""
import os,re,shutil,subprocess,sys
from pathlib import Path
import yaml
from nbdev.config import get_config,nbpath2html
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent

UNREAD = re.compile(r'"output-file: [\w.-]+\\n",\s*|^format-links:.*\Z', re.M|re.S) # what nbdev writes for Quarto alone

def staged(notebook):
    "Where `notebook` lies while it is rendered: nbdev drops the number from the page's name, smalldocs names pages by file."
    return nbpath2html(notebook).with_suffix('.ipynb')

def spell_out(entry, stage):
    "Replace a glob in a sidebar `entry` by the notebooks it finds, in the order of their numbers."
    if isinstance(entry, list): return [spell_out(o, stage) for o in entry]
    if not isinstance(entry, dict): return entry
    found = entry.get('contents')
    if isinstance(found, str): found = [o.relative_to(stage).as_posix() for o in sorted(stage.glob(found))]
    return {k: spell_out(found if k=='contents' else v, stage) for k,v in entry.items()}

def filled(entry):
    "False for a section without pages."
    return not isinstance(entry, dict) or entry.get('contents')!=[]

def rename(text, names):
    "Let links in `text` follow the renamed notebooks."
    for old,new in names.items(): text = re.sub(rf'(?<![\w-]){re.escape(old)}', new, text)
    return text

def arrange(stage, site):
    "Make what nbdev staged fit smalldocs: page names, sidebar, and relative links to our own pages, to be read offline."
    config = yaml.safe_load((stage/'_quarto.yml').read_text(encoding='utf-8'))
    side = config['website']['sidebar']
    side['contents'] = [o for o in spell_out(side['contents'], stage) if filled(o)]
    (stage/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    names = {o.name: staged(o).name for o in stage.rglob('*.ipynb') if staged(o)!=o}
    for page in [*stage.rglob('*.ipynb'), stage/'_quarto.yml', stage/'nbdev.yml']:
        up = '../'*(len(page.relative_to(stage).parts)-1)
        text = rename(page.read_text(encoding='utf-8'), names).replace(f'{site}/', up)
        text = UNREAD.sub('', text)
        page.write_text(text, encoding='utf-8')
        if page.suffix=='.ipynb': page.rename(staged(page))

def main():
    os.chdir(ROOT)
    cfg = get_config()
    stage,built = ROOT/'_site_src',cfg.doc_path
    refresh_quarto_yml()
    _build_modidx()
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(proc_nbs(cfg.nbs_path, n_workers=1, force=True), stage)
    arrange(stage, cfg.doc_url)
    done = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '--strict', str(stage)])
    if done.returncode: sys.exit('The site is not built: mend what the lines above name.')
    shutil.rmtree(built, ignore_errors=True)
    shutil.move(stage/built.name, built)
    shutil.rmtree(stage)
    print(f'Open {built.relative_to(ROOT)}/index.html')

if __name__=='__main__': main() # the guard is needed: nbdev stages in processes of its own
