"""Put the page that tries the network into a folder of the site: the files of nbs/try, and onnxruntime-web from npm.

    python tools/try_page.py FOLDER    the page alone; to look at it: python -m http.server -d FOLDER
    python tools/try_page.py --fetch   only fill npm's cache, so that tests and later builds need no network"""
import re,shutil,subprocess,sys,tarfile
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

PAGE = Path(__file__).resolve().parent.parent/'nbs/try'
PACKAGE = 'onnxruntime-web@1.30.0' # MIT licence, Microsoft
FILES = {'ort.wasm.bundle.min.mjs': '11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90', # in its package's folder dist: SHA-256
         'ort-wasm-simd-threaded.wasm': '3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2'}

class NoRuntime(RuntimeError):
    "What runs the network in the browser cannot be had."

def pack(folder, offline=False):
    "The package as npm fetches it, or has it in its cache."
    npm = shutil.which('npm')
    if npm is None: raise NoRuntime('npm is not installed')
    how = [npm,'pack',PACKAGE,'--pack-destination',str(folder),'--silent','--offline' if offline else '--prefer-offline']
    try: done = subprocess.run(how, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as e: raise NoRuntime('npm does not answer') from e
    if done.returncode: raise NoRuntime(f"npm does not get {PACKAGE}{' from its cache' if offline else ''}")
    return next(Path(folder).glob('*.tgz'))

def runtime(to, offline=False):
    "Write the files that run the network, each checked by its hash, into a folder."
    with TemporaryDirectory() as tmp, tarfile.open(pack(tmp, offline)) as archive:
        to.mkdir(parents=True, exist_ok=True)
        for name,digest in FILES.items():
            data = archive.extractfile(f'package/dist/{name}').read()
            if sha256(data).hexdigest()!=digest: raise NoRuntime(f'{name} of {PACKAGE} is not the file that is known')
            (to/name).write_bytes(data)

def without(why):
    "The page as words only, which say why it cannot answer."
    text = re.sub(r'<script.*?</script>\n', '', (PAGE/'index.html').read_text(encoding='utf-8'))
    note = f'<p id="start" class="notice">This site was built without what runs the network in the browser ({why}). Build it again where npm can fetch {PACKAGE}.</p>'
    return re.sub(r'<p id="start">.*?</p>', lambda _: note, text, flags=re.S)

def build(to, offline=False):
    "Write the page into a folder; where the runtime cannot be had, write a note in its place. Returns whether the page works."
    to = Path(to)
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(PAGE, to)
    (to/'model/MODEL_CARD.md').rename(to/'model/MODEL_CARD.txt') # a browser shows it, and nothing makes a page of it
    try: runtime(to/'ort', offline)
    except NoRuntime as e:
        print(f'Try it in the page: left out, {e}', file=sys.stderr)
        (to/'index.html').write_text(without(e), encoding='utf-8')
        return False
    return True

def fetch():
    "Fill npm's cache."
    try:
        with TemporaryDirectory() as tmp: print(f"{pack(tmp).name} is in npm's cache")
    except NoRuntime as e: sys.exit(str(e))

def main(argv):
    if len(argv)!=1: sys.exit(__doc__)
    if argv==['--fetch']: fetch()
    elif not build(argv[0]): sys.exit(1)

if __name__=='__main__': main(sys.argv[1:])
