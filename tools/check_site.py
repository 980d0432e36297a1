"""Check the built site without a browser: every link, every anchor, and that no page takes anything from the network.

`python tools/check_site.py` says what is wrong in `_docs`, and counts what it looked at."""
import json,re,sys
from collections import Counter
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote,urlsplit

ROOT = Path(__file__).resolve().parent.parent
TAKEN = {'img': 'src', 'script': 'src', 'link': 'href', 'source': 'src', 'iframe': 'src'} # what a page loads by itself

VERBATIM = 'code','pre','script','style','textarea' # where markdown is not rendered
RAW_LINK = re.compile(r'\]\([\w./-]+[^)\s]*\)')
DOCS = re.compile(r'^Docs: \S+?/malaria_fastai/([^\s"]+)', re.M)

class Page(HTMLParser):
    "The anchors of a page, the addresses it loads by itself, those it leads to, and links that nobody rendered."
    def __init__(self, path):
        super().__init__()
        self.anchors,self.loads,self.leads,self.raw,self.inside = set(),[],[],[],[]
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        if tag in VERBATIM: self.inside.append(tag)
        has = dict(attrs)
        self.anchors |= {has[o] for o in ('id', 'name') if has.get(o)}
        if has.get(TAKEN.get(tag, '')): self.loads.append(has[TAKEN[tag]])
        if tag=='a' and has.get('href'): self.leads.append(has['href'])

    def handle_endtag(self, tag):
        if self.inside and tag==self.inside[-1]: self.inside.pop()

    def handle_data(self, data):
        if not self.inside: self.raw += RAW_LINK.findall(data)

def repository(tree):
    "The address of the repository."
    cfg = ConfigParser(delimiters=['='])
    cfg.read_string((tree/'settings.ini').read_text(encoding='utf-8'))
    return cfg['DEFAULT']['git_url']

def examine(
    site, # Folder of the built site
    tree=ROOT, # Folder of the repository
): # (list of complaints, each beginning with a page; Counter of what was looked at)
    "Follow each address on each page, and each entry of the search index."
    site,found,seen = Path(site).resolve(),[],Counter()
    pages = {o: Page(o) for o in sorted(site.rglob('*.html'))}
    ours = re.compile(re.escape(repository(tree).replace('https://github.com/', '')) + r'/(?:blob|edit|tree|raw)/main/([^#?"]+)')

    def follow(page, address, kind):
        parts = urlsplit(address)
        if m := ours.search(address):
            seen['links into the repository'] += 1
            return None if (tree/unquote(m[1])).exists() else 'is not in the repository'
        if parts.scheme in ('data', 'mailto', 'javascript'): return
        if parts.scheme or parts.netloc:
            seen['links elsewhere'] += 1
            return 'comes from the network' if kind=='loads' else None
        to = (page.parent/unquote(parts.path)).resolve() if parts.path else page
        if to.is_dir(): to = to/'index.html'
        seen['internal links'] += 1
        if not to.is_file(): return 'is not there'
        if not parts.fragment or to not in pages: return
        seen['anchors'] += 1
        if unquote(parts.fragment) not in pages[to].anchors: return 'names an anchor that is not there'

    for page,has in pages.items():
        for kind in ('loads', 'leads'):
            for address in getattr(has, kind):
                if wrong := follow(page, address, kind): found.append(f'{page.relative_to(site).as_posix()}: {address} {wrong}')
    index = json.loads((site/'search.json').read_text(encoding='utf-8'))
    for o in index:
        if wrong := follow(site/'search.json', o['href'], 'leads'): found.append(f"search.json: {o['href']} {wrong}")
    for page,has in pages.items(): found += [f'{page.relative_to(site).as_posix()}: {link} is no link' for link in has.raw]
    for module in sorted((tree/'malaria_fastai').rglob('*.py')):
        for page in DOCS.findall(module.read_text(encoding='utf-8')):
            seen['links of modules'] += 1
            if not (site/page).is_file(): found.append(f'{module.relative_to(tree).as_posix()}: {page} is not there')
    for css in site.rglob('*.css'):
        text = re.sub(r'data:[^)"\']*', '', css.read_text(encoding='utf-8'))
        found += [f'{css.relative_to(site).as_posix()}: {o} comes from the network' for o in re.findall(r'(?:@import|url\()\s*["\']?(https?:[^"\')]*)', text)]
    return found, Counter({'pages': len(pages), 'entries of the search index': len(index)}) + seen

def main():
    found,seen = examine(sys.argv[1] if len(sys.argv)>1 else ROOT/'_docs')
    print(', '.join(f'{n:,} {what}' for what,n in seen.items()))
    if found: sys.exit('\n'.join(found))

if __name__=='__main__': main()
