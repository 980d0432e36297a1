"""Damaged pictures against the reader that predicts: how many of each kind, and what became of them.

    python tests/fuzz_pictures.py --seconds 600 --out results/fuzz.csv

A damaged PNG must be refused, or give the very pixels it had; any other picture must be refused or read. A crash, a hang, an exception of
another type, or other pixels without a word are faults. The reader runs in a child process, which writes down each case before it tries it:
so a crash of the whole process is found, and named, too. Kinds that strike at one place go evenly over the whole file: each byte once before
any is struck again. `--plant` breaks the reader on purpose, to see that the faults are found."""
import argparse,csv,io,json,os,subprocess,sys,tempfile,time,zlib
from math import gcd
from pathlib import Path
import numpy as np

HANG = 20   # Seconds for one case
START = 180 # Seconds for a child to import what it needs, and to end
PLANTS = 'raise','abort','hang','label','hang at the first','hang at the start'

def drawn(w, h, kind='PNG'):
    "A drawn cell of this size, as the bytes of a file."
    from malaria_fastai.sample import draw_cell
    f = io.BytesIO()
    draw_cell(np.random.default_rng(42), True)[0].resize((w, h)).save(f, kind)
    return f.getvalue()

def pictures():
    "One picture in four formats."
    return {k: drawn(80, 72, k) for k in ('PNG', 'JPEG', 'BMP', 'TIFF')}

def place(i, n):
    "Where case `i` strikes among `n` bytes: near and far in turn, and each byte once in `n` cases."
    return i*next(k for k in range(int(n*.618), n+1) if gcd(k, n)==1) % n

# A kind of mutation: (bytes, where, generator) -> other bytes
def truncate(b, at, rng): return b[:at]
def flip_byte(b, at, rng): return b[:at] + bytes([b[at] ^ int(rng.integers(1, 256))]) + b[at+1:]
def flip_bit(b, at, rng): return b[:at] + bytes([b[at] ^ 1 << int(rng.integers(8))]) + b[at+1:]
def remove(b, at, rng): return b[:at] + b[at + int(rng.integers(1, 40)):]
def insert(b, at, rng): return b[:at] + rng.bytes(int(rng.integers(1, 40))) + b[at:]
def many_bytes(b, at, rng):
    a = np.frombuffer(b, np.uint8).copy()
    a[rng.integers(0, len(a), int(rng.integers(2, 60)))] = rng.integers(0, 256)
    return a.tobytes()
def swap_halves(b, at, rng): return b[at:] + b[:at]
def honest_checksum(b, at, rng):
    "A byte of a PNG changed, and its checksum mended: what somebody does on purpose."
    chunks,at = [],8
    while at < len(b):
        n = int.from_bytes(b[at:at+4], 'big')
        chunks.append((b[at+4:at+8], b[at+8:at+8+n]))
        at += 12+n
    j = int(rng.integers(len(chunks)))
    kind,data = chunks[j]
    if data: chunks[j] = kind,flip_byte(data, int(rng.integers(len(data))), rng)
    return b[:8] + b''.join(len(d).to_bytes(4, 'big') + k + d + zlib.crc32(k+d).to_bytes(4, 'big') for k,d in chunks)

KINDS = [('PNG', o) for o in (truncate, flip_byte, flip_bit, remove, insert, many_bytes, swap_halves, honest_checksum)]
KINDS += [(k, o) for k in ('JPEG', 'BMP', 'TIFF') for o in (truncate, flip_byte, many_bytes)]
FREE = {honest_checksum} # such a PNG is another picture, and a valid one
ANYWHERE = {many_bytes, honest_checksum} # these choose their places themselves

def reader(plant=''):
    "What is tried: (bytes, number of the case) -> pixels, the way a prediction takes. A plant breaks it for some of the cases."
    if plant=='hang at the start': time.sleep(1e6)
    from malaria_fastai.predict import Found, appearance
    def read(data, i=0):
        if plant: spoil(plant, i)
        if plant=='label' and planted(i): return np.zeros((72, 80, 3), np.uint8)
        im = Found('case', data).open()
        appearance(im)
        return np.asarray(im)
    return read

def planted(i): return i % 23 == 5

def spoil(plant, i):
    if plant=='hang at the first' or plant=='hang' and planted(i): time.sleep(1e6)
    if plant=='raise' and planted(i): raise ZeroDivisionError
    if plant=='abort' and planted(i): os.abort()

def tried(read, data, i, before, free):
    "What became of one case: 'refused', 'same pixels', 'other pixels' (where that is allowed), or a fault."
    from malaria_fastai.cells import BadPicture
    try: x = read(data, i)
    except BadPicture: return 'refused'
    except Exception as e: return f'fault: {type(e).__name__}'
    if x.shape==before.shape and (x==before).all(): return 'same pixels'
    return 'other pixels' if free else 'fault: other pixels without a word'

def case(i, sources, seed):
    "Case `i`: (format, kind, where it strikes, bytes)."
    n,(form,kind) = i//len(KINDS),KINDS[i % len(KINDS)]
    at = place(n, len(sources[form]))
    return form,kind,at,kind(sources[form], at, np.random.default_rng([seed, i]))

def child(seconds, seed, plant, where, skip):
    "Try case after case, at least one of each kind; the number of the next one is always in the file."
    read,sources = reader(plant),pictures()
    want = {k: np.asarray(reader()(v)) for k,v in sources.items()}
    end,counts,struck,i = time.time()+seconds,{},{},0
    with open(where, 'r+b', buffering=0) as f:
        while time.time() < end or i < len(KINDS):
            f.seek(0); f.write(b'%12d' % i)
            if i not in skip:
                form,kind,at,data = case(i, sources, seed)
                key = f'{form} {kind.__name__} | ' + tried(read, data, i, want[form], form!='PNG' or kind in FREE)
                counts[key] = counts.get(key, 0)+1
                if kind not in ANYWHERE: struck.setdefault(f'{form} {kind.__name__}', set()).add(at)
            i += 1
        f.seek(0); f.write(b'%12d' % -1)
    print(json.dumps([counts, {k: [len(v), len(sources[k.split()[0]])] for k,v in struck.items()}]))

def started(seconds, seed, plant, where, skip):
    "A child that begins with case 0; before it does, and after the last, -1 is in the file."
    where.write_bytes(b'%12d' % -1)
    return subprocess.Popen([sys.executable, __file__, '--child', json.dumps([seconds, seed, plant, str(where), skip])], stdout=subprocess.PIPE, text=True)

def run(seconds, seed=0, plant=''):
    "Counts per 'kind | outcome', and (bytes struck, bytes there) per kind that strikes at one place; over as many children as it takes."
    total,struck,skip,end = {},{},[],time.time()+seconds
    with tempfile.TemporaryDirectory() as d:
        where = Path(d)/'case'
        while (left := end-time.time()) > 0 or not total:
            p = started(max(left, 1), seed, plant, where, skip)
            fault,i = watch(p, where),int(where.read_bytes())
            if not fault:
                counts,struck = json.loads(p.stdout.read())
                return {**total, **counts},struck
            total[f'{named(i)} | fault: {fault} (case {i})'] = 1
            if i < 0: break # the next child would end in the same way
            skip.append(i)
    return total,struck

def named(i):
    if i < 0: return 'start or end'
    form,kind = KINDS[i % len(KINDS)]
    return f'{form} {kind.__name__}'

def watch(p, where):
    "Wait for a child: '' if it ended well, else what happened."
    last,since = None,time.time()
    while p.poll() is None:
        time.sleep(.1)
        now = where.read_bytes()
        if now!=last: last,since = now,time.time()
        if time.time()-since > (START if int(now or -1) < 0 else HANG):
            p.kill()
            p.wait()
            return 'hang'
    return f'crash, exit {p.returncode}' if p.returncode else ''

def faults(counts): return {k: v for k,v in counts.items() if 'fault' in k}

def shown(counts, struck):
    "The counts, one line for each format."
    lines,total = {},sum(counts.values())
    for k,v in sorted(counts.items()):
        kind,what = k.split(' | ')
        part = lines.setdefault(kind.split()[0], {}).setdefault(kind.split(' ', 1)[1], [])
        part.append(f'{v:,} {what}')
    for k,(some,whole) in struck.items(): lines[k.split()[0]][k.split()[1]].append(f'at {some:,} of {whole:,} bytes')
    return [f'{total:,} damaged pictures, {sum(faults(counts).values())} faults'] + [f"{form}: {'; '.join(f'{k} '+', '.join(v) for k,v in kinds.items())}" for form,kinds in lines.items()]

def written(out, counts, struck):
    "The table, each row with command and commit; bytes are empty for what chooses its places itself."
    from malaria_fastai.run import environment
    what = ' '.join(['python','tests/fuzz_pictures.py',*sys.argv[1:]]),environment('')['commit']
    rows = [(*k.split(' | '), v, *struck.get(k.split(' | ')[0], ['','']), *what) for k,v in sorted(counts.items())]
    with open(out, 'w', newline='') as f: csv.writer(f, lineterminator='\n').writerows([('kind','outcome','cases','bytes_struck','bytes','command','commit'), *rows])

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--plant', choices=PLANTS, default='')
    p.add_argument('--out', type=Path)
    p.add_argument('--child')
    a = p.parse_args()
    if a.child: return child(*json.loads(a.child))
    counts,struck = run(a.seconds, a.seed, a.plant)
    print(*shown(counts, struck), sep='\n')
    if a.out: written(a.out, counts, struck)
    return int(bool(faults(counts)))

if __name__=='__main__': sys.exit(main())
