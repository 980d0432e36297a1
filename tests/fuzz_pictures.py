"""Damaged pictures against the reader that predicts: how many of each kind, and what became of them.

    python tests/fuzz_pictures.py --seconds 600 --out results/fuzz.csv

A damaged PNG must be refused, or give the very pixels it had; any other picture must be refused or read. A crash, a hang, an exception of
another type, or other pixels without a word are faults. The reader runs in a child process, which writes down each case before it tries it:
so a crash of the whole process is found, and named, too. `--plant` breaks the reader on purpose, to see that the faults are found."""
import argparse,csv,io,json,os,subprocess,sys,tempfile,time,zlib
from pathlib import Path
import numpy as np

HANG = 20 # Seconds for one case
PLANTS = 'raise','abort','hang','label'

def pictures():
    "One picture, drawn by formula, in four formats."
    from PIL import Image
    from malaria_fastai.deploy import _test_picture
    im = Image.open(io.BytesIO(_test_picture(80, 72)))
    def saved(kind):
        f = io.BytesIO()
        im.save(f, kind)
        return f.getvalue()
    return {k: saved(k) for k in ('PNG', 'JPEG', 'BMP', 'TIFF')}

# A kind of mutation: (bytes, number of the case, generator) -> other bytes
def truncate(b, i, rng): return b[:i % len(b)]
def flip_byte(b, i, rng): return b[:i % len(b)] + bytes([b[i % len(b)] ^ int(rng.integers(1, 256))]) + b[i % len(b)+1:]
def flip_bit(b, i, rng): return b[:i//8 % len(b)] + bytes([b[i//8 % len(b)] ^ 1 << i % 8]) + b[i//8 % len(b)+1:]
def remove(b, i, rng): return b[:i % len(b)] + b[i % len(b) + int(rng.integers(1, 40)):]
def insert(b, i, rng): return b[:i % len(b)] + rng.bytes(int(rng.integers(1, 40))) + b[i % len(b):]
def many_bytes(b, i, rng):
    a = np.frombuffer(b, np.uint8).copy()
    a[rng.integers(0, len(a), int(rng.integers(2, 60)))] = rng.integers(0, 256)
    return a.tobytes()
def swap_halves(b, i, rng): return b[i % len(b):] + b[:i % len(b)]
def honest_checksum(b, i, rng):
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

def reader(plant):
    "What is tried: bytes -> pixels. A plant breaks it for some of the cases."
    from malaria_fastai.deploy import Found, appearance
    def read(data):
        if plant and zlib.crc32(data) % 50 == 7:
            if plant=='raise': return [][1]
            if plant=='abort': os.abort()
            if plant=='hang': time.sleep(1e6)
            if plant=='label': return np.zeros((72, 80, 3), np.uint8)
        im = Found('case', data).open()
        appearance(im)
        return np.asarray(im)
    return read

def tried(read, data, before, free):
    "What became of one case: 'refused', 'same pixels', 'other pixels' (where that is allowed), or a fault."
    from malaria_fastai.cells import BadPicture
    try: x = read(data)
    except BadPicture: return 'refused'
    except Exception as e: return f'fault: {type(e).__name__}'
    if x.shape==before.shape and (x==before).all(): return 'same pixels'
    return 'other pixels' if free else 'fault: other pixels without a word'

def child(seconds, seed, plant, where, skip):
    "Try case after case; the number of the next one is always in the file."
    read,sources = reader(plant),pictures()
    want = {k: np.asarray(reader('')(v)) for k,v in sources.items()}
    end,counts = time.time()+seconds,{}
    with open(where, 'r+b', buffering=0) as f:
        i = 0
        while time.time() < end:
            f.seek(0); f.write(b'%12d' % i)
            n,(form,kind) = i//len(KINDS),KINDS[i % len(KINDS)]
            if i not in skip:
                data = kind(sources[form], n, np.random.default_rng([seed, i]))
                what = tried(read, data, want[form], form!='PNG' or kind in FREE)
                counts[f'{form} {kind.__name__} | {what}'] = counts.get(f'{form} {kind.__name__} | {what}', 0)+1
            i += 1
    print(json.dumps(counts))

def run(seconds, seed=0, plant=''):
    "Counts per 'kind | outcome', over as many children as it takes."
    total,skip,end = {},[],time.time()+seconds
    with tempfile.TemporaryDirectory() as d:
        where = Path(d)/'case'
        while (left := end-time.time()) > 0 or not total:
            where.write_bytes(b'%12d' % 0)
            p = subprocess.Popen([sys.executable, __file__, '--child', json.dumps([max(left, 1), seed, plant, str(where), skip])], stdout=subprocess.PIPE, text=True)
            fault = watch(p, where)
            if not fault:
                for k,v in json.loads(p.stdout.read()).items(): total[k] = total.get(k, 0)+v
                break
            i = int(where.read_bytes())
            form,kind = KINDS[i % len(KINDS)]
            total[f'{form} {kind.__name__} | fault: {fault} (case {i})'] = 1
            skip.append(i)
    return total

def watch(p, where):
    "Wait for a child: '' if it ended well, else what happened."
    last,since = None,time.time()
    while p.poll() is None:
        time.sleep(.1)
        now = where.read_bytes()
        if now!=last: last,since = now,time.time()
        if time.time()-since > HANG and int(now or 0) > 0:
            p.kill()
            p.wait()
            return 'hang'
    return f'crash, exit {p.returncode}' if p.returncode else ''

def faults(counts): return {k: v for k,v in counts.items() if 'fault' in k}

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--plant', choices=PLANTS, default='')
    p.add_argument('--out', type=Path)
    p.add_argument('--child')
    a = p.parse_args()
    if a.child: return child(*json.loads(a.child))
    counts = run(a.seconds, a.seed, a.plant)
    rows = [(*k.split(' | '), v) for k,v in sorted(counts.items())]
    for o in rows: print(*o, sep='\t')
    print(f'{sum(counts.values()):,} cases, {sum(faults(counts).values())} faults')
    if a.out:
        with open(a.out, 'w', newline='') as f: csv.writer(f, lineterminator='\n').writerows([('kind', 'outcome', 'cases'), *rows])
    return int(bool(faults(counts)))

if __name__=='__main__': sys.exit(main())
