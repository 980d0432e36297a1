"Write the repository's address, whose one home is `git_url` in settings.ini, wherever it is repeated."
import re,subprocess
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = re.compile(r"(?<=https://)[\w-]+(?=\.github\.io(?:/malaria_fastai|'))", re.I)
REPO = re.compile(r'(?<=github\.com/)[\w.-]+(?=/malaria_fastai\b)|(?<=githubusercontent\.com/)[\w.-]+(?=/malaria_fastai\b)'
                  r'|(?<=research\.google\.com/github/)[\w.-]+(?=/malaria_fastai\b)')

def owner(tree):
    "The owner named by `git_url` in the settings.ini of `tree`."
    cfg = ConfigParser(delimiters=['='])
    cfg.read_string((tree/'settings.ini').read_text(encoding='utf-8'))
    return re.fullmatch(r'https://github\.com/([\w.-]+)/malaria_fastai', cfg['DEFAULT']['git_url'])[1]

def owners(text):
    "All owners that the addresses in `text` name."
    return {*REPO.findall(text), *SITE.findall(text)}

def readdress(text, owner):
    "`text` with every address of this repository and its site under `owner`."
    return SITE.sub(owner, REPO.sub(owner, text))

def files(tree):
    "What git would commit from `tree`; outside git, every file."
    if not (tree/'.git').exists():
        return [o for o in sorted(tree.rglob('*')) if o.is_file() and not {'.venv', '__pycache__'} & {*o.relative_to(tree).parts}]
    git = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(git, cwd=tree, stdout=subprocess.PIPE, text=True, check=True).stdout.split('\0')
    return [tree/o for o in sorted({*names}) if o and (tree/o).is_file()]

def text_files(tree):
    "Pairs of path and text for those `files` of `tree` that are text."
    for path in files(tree):
        try: yield path, path.read_text(encoding='utf-8')
        except UnicodeDecodeError: pass

def main():
    for path,text in text_files(ROOT):
        new = readdress(text, owner(ROOT))
        if new!=text: path.write_text(new, encoding='utf-8', newline='\n'); print(path.relative_to(ROOT))

if __name__=='__main__': main()
