"""What the model folder promises, measured: parity of ONNX, pictures a second from files, and what is refused.

    MALARIA_NIH_ZIP=cell_images.zip MALARIA_CXR_ZIP=chest_xray.zip python bench/deploy.py parity|throughput|refusal [RUN]

`throughput` needs a packed run folder with both ONNX files; `parity` and `refusal` need none: the check is fitted as `pack` does it, on the patients of the
training and validation parts, limits by patients left out in turn, and the cells that are judged belong to the test part. Photographs are the pictures that
scikit-learn and scikit-image (`pip install scikit-image`) carry. Writes results/deploy_parity.csv, deploy_throughput.csv and refusal.csv."""
import argparse,io,os,sys,tempfile,time,zipfile
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import pandas as pd
from PIL import Image,ImageFilter

from malaria_fastai.backbone import ModelSpec
from malaria_fastai.cells import open_picture, read_cells, locate, Resizing, ResizeMethod
from malaria_fastai.evaluate import read_predictions
from malaria_fastai.backbone import PictureNet
from malaria_fastai.export import fit_content,numbers_of
from malaria_fastai.extra.onnx import write_onnx
from malaria_fastai.predict import Predictor,appearance,read_folder
from malaria_fastai.recipes import RECIPES
from malaria_fastai.run import environment
from malaria_fastai.split import split_by

MORE = 'resnet50','vgg16_bn','mobilenet_v2' # beside the networks of the recipes, with fastai's head

def networks():
    "The different networks of the recipes, each under the first name it has there; and three more, if asked for: name -> how to build it."
    specs = {k: ModelSpec(r.arch, 2, r.lin_ftrs, r.ps, kind=r.head, log_softmax=r.activation=='log_softmax', cut=r.cut) for k,r in RECIPES.items() if r.arch}
    return {k: o for i,(k,o) in enumerate(specs.items()) if o not in [*specs.values()][:i]} | {o: ModelSpec(o, 2) for o in MORE}

def say(rows, file, a):
    "Write a table, each row with command and commit."
    table = pd.DataFrame(rows).assign(command=' '.join(['python','bench/deploy.py',*sys.argv[1:]]), commit=environment('')['commit'])
    table.to_csv(Path(a.results)/file, index=False, lineterminator='\n')
    print(table.drop(columns=['command','commit']).to_string())

def real(a, folder):
    "The folder of the cells, and their table with the split by patient."
    root = locate(os.environ['MALARIA_NIH_ZIP'], folder=folder)
    return root,split_by(read_cells(root, progress=False), 'patient', valid=.2, test=.2, seed=42)

def drawn_from(items, n, rng):
    "Some items, none of them twice, in their order."
    return [items[i] for i in sorted(rng.permutation(len(items))[:n])]

# ---- parity

def parity(a, folder):
    "From file to probability on 200 real cells of the test part, torch beside ONNX; random weights, batch norm run on cells, logits scaled so that probabilities spread."
    import torch
    from malaria_fastai.predict import _onnx_network,_softmax
    root,cells = real(a, folder)
    files,rows = [root/o for o in cells.path[cells.split=='test'].iloc[::12][:200]],[]
    for name,spec in networks().items():
        if name not in (a.only or RECIPES): continue
        size = 224 if 'vgg' in spec.arch and a.full else a.size
        net,rule = PictureNet(spec.build(), ([.485,.456,.406],[.229,.224,.225])).eval(),Resizing((size,size), ResizeMethod.SQUISH)
        x = np.stack([rule.fixed(open_picture(o)) for o in files])
        for m in net.modules(): # batch norm takes the averages of cells: else signals fade, and the factor below would only enlarge rounding
            if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                m.momentum = None
                m.reset_running_stats()
        with torch.no_grad():
            for i in range(0, 96, 32): net.train()(torch.from_numpy(x[i:i+32]))
        net.eval()
        last,z = [m for m in net.model.modules() if isinstance(m, torch.nn.Linear)][-1],[]
        hook = last.register_forward_hook(lambda m, x, y: z.append(y))
        with torch.inference_mode():
            net(torch.from_numpy(x[:32]))
            k = 2/max(z[0].std(0).mean().item(), 1e-6)
            last.weight.mul_(k)
            last.bias.mul_(k).sub_(k*z[0].mean(0))
        hook.remove()
        own = write_onnx(net, rule, Path(folder)/f'{name}.onnx')
        ask = _onnx_network(Path(folder)/f'{name}.onnx')
        with torch.inference_mode(): p = torch.cat([net(torch.from_numpy(x[i:i+32])) for i in range(0, len(x), 32)]).softmax(1).numpy()
        q = np.concatenate([_softmax(ask(x[i:i+32])) for i in range(0, len(x), 32)])
        rows.append(dict(recipe=name if name in RECIPES else '', arch=spec.arch, head=spec.kind, size=size, weights='random', cells=len(x), p_min=round(float(p[:,0].min()), 3), p_max=round(float(p[:,0].max()), 3), largest_difference=float(abs(p-q).max()),
                         same_decision=int(((p[:,0]>=.5)==(q[:,0]>=.5)).sum()), at_export=own, onnx_mb=round((Path(folder)/f'{name}.onnx').stat().st_size/1e6, 1)))
        print(rows[-1], flush=True)
        say(rows, 'deploy_parity.csv', a)
        (Path(folder)/f'{name}.onnx').unlink()

# ---- throughput

def opposite(a, b, classes):
    "How many pictures get one class from one engine and the other class from the other, neither of them unsure."
    return int(((a!=b) & a.isin(classes) & b.isin(classes)).sum())

def throughput(a, folder):
    "Pictures a second from files to answers: decode, check, resize, network. The engines take turns; the best of the rounds counts."
    root,preds = locate(os.environ['MALARIA_NIH_ZIP'], folder=folder),read_predictions(Path(a.run)/'predictions.csv')
    cells = preds[preds.split=='test'] # of the run itself: patients that it was not trained on
    files = [root/o for o in cells.path.iloc[::max(1, len(cells)//a.n)][:a.n]]
    engines = {(o,c): Predictor(a.run, o, threads=2) for o in ('torch','onnx','int8') for c in (True,False)}
    for (o,c),p in engines.items():
        if not c: p.content = None
    best,answers = {},{}
    for _ in range(a.rounds):
        for k,p in engines.items():
            start = time.perf_counter()
            answers[k] = p(files)
            best[k] = min(best.get(k, 1e9), time.perf_counter()-start)
    folder,said = read_folder(a.run)
    names,truth = dict(torch='export.pkl', onnx='model.onnx', int8='model.int8.onnx'),cells.set_index('path').label
    label = truth[[o.relative_to(root).as_posix() for o in files]].to_numpy()
    rows = [dict(engine=o, content_check=c, arch=said['arch'], size=said['resize']['size'][0], pictures=len(files), seconds=round(best[o,c], 2), pictures_per_second=round(len(files)/best[o,c]),
                 mb=round(said['files'][names[o]]['file']['bytes']/1e6, 1), accuracy=round(float((answers[o,c].pred==label)[answers[o,c].pred!=''].mean()), 4),
                 same_decision_as_torch=round(float((answers[o,c].decision==answers['torch',c].decision).mean()), 4),
                 opposite_decisions=opposite(answers[o,c].decision, answers['torch',c].decision, said['classes']), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1))
            for o,c in engines]
    say(rows, 'deploy_throughput.csv', a)

# ---- refusal: pictures by kind

def cut_piece(im, outline, scale=1., rng=None):
    "A piece of a picture, to the size and outline of a cell, black outside; `scale` is its side in sides of the outline, as much as there is."
    (h,w),(W,H) = outline.shape,im.size
    a,b = max(1, min(H, round(h*scale))),max(1, min(W, round(w*scale)))
    y,x = ((H-a)//2,(W-b)//2) if rng is None else (int(rng.integers(H-a+1)),int(rng.integers(W-b+1)))
    piece = np.array(im.crop((x, y, x+b, y+a)).resize((w, h), Image.Resampling.BILINEAR))
    piece[~outline] = 0
    return Image.fromarray(piece)

PHOTOS = '''astronaut.png brick.png camera.png cell.png chelsea.png chessboard_GRAY.png chessboard_RGB.png clock_motion.png coffee.png coins.png color.png grass.png gravel.png horse.png
hubble_deep_field.jpg ihc.png logo.png microaneurysms.png moon.png motorcycle_left.png motorcycle_right.png page.png phantom.png retina.jpg rocket.jpg text.png'''.split()

def photographs():
    "The photographs and drawings that lie in scikit-image and scikit-learn."
    ski,skl = (Path(find_spec(o).submodule_search_locations[0]) for o in ('skimage','sklearn'))
    there = [o for o in [*(ski/'data'/o for o in PHOTOS), *(skl/'datasets/images'/o for o in ('china.jpg','flower.jpg'))] if o.exists()]
    return [open_picture(o) for o in there]

def xrays(n, rng):
    "X-rays of chests, drawn at random from the archive."
    with zipfile.ZipFile(os.environ['MALARIA_CXR_ZIP']) as z:
        return [open_picture(io.BytesIO(z.read(o))) for o in drawn_from(sorted(o for o in z.namelist() if o.endswith('.jpeg')), n, rng)]

def one_noise(k, rng):
    h,w = rng.integers(60, 250, 2)
    if k==0: a = rng.integers(0, 256, (h,w,3))
    if k==1: a = rng.normal(rng.uniform(60, 200, 3), rng.uniform(10, 60), (h,w,3))
    if k==2: a = rng.normal(rng.uniform(60, 200), rng.uniform(10, 60), (h,w,1)).repeat(3, 2)
    if k==3: a = np.where(rng.random((h,w,1)) < rng.uniform(.02, .3), rng.integers(0, 2, (h,w,1))*255, rng.uniform(60, 220, 3))
    if k==4: a = np.asarray(Image.fromarray(rng.integers(0, 256, (*rng.integers(3, 12, 2),3)).astype(np.uint8)).resize((int(w),int(h)), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))

def blank(n, rng, colours):
    "One colour all over: any, or the mean colour of a cell."
    for i in range(n): yield Image.new('RGB', tuple(int(o) for o in rng.integers(60, 250, 2)), tuple(int(o) for o in (colours[i % len(colours)] if i % 2 else rng.integers(0, 256, 3))))

def field(cells, rng, kind):
    "A field of view composed of the cells of one patient, in one of three ways (without overlap, in rows, or one over the other); and the number of the cell at each pixel, or -1."
    h,w = (700,900) if kind=='apart' else (480,640) if kind=='heaped' else tuple(int(o)*170 for o in rng.integers(3, 7, 2))
    ground = np.mean([np.percentile(c[c.max(2) > 24], 98, axis=0) for c in cells[:20]], 0)*rng.uniform(1, 1.08) if kind=='apart' else rng.uniform((200,180,190), (250,235,240))
    x,owner = np.ones((h,w,3))*np.clip(ground, 0, 252),np.full((h,w), -1, np.int32)
    if kind=='apart': x += rng.normal(0, 3, (h,w,1))
    for i in range(dict(apart=int(rng.uniform(1.2, 2.7)*h*w/130**2), heaped=40).get(kind, h*w//170**2)):
        c = cells[rng.integers(len(cells))]
        (a,b),m = c.shape[:2],c.max(2) > 0
        room = (170,170) if kind=='rows' else (h,w)
        if a >= room[0] or b >= room[1]: continue
        y,z = int(rng.integers(room[0]-a)),int(rng.integers(room[1]-b))
        if kind=='rows': y,z = y+i//(w//170)*170,z+i%(w//170)*170
        if kind=='apart' and ((owner[y:y+a,z:z+b] >= 0) & m).mean() > .02: continue
        x[y:y+a,z:z+b][m],owner[y:y+a,z:z+b][m] = c[m],i
    im = Image.fromarray(x.clip(0, 255).astype(np.uint8))
    return im.filter(ImageFilter.GaussianBlur(.7)) if kind=='apart' else im,owner

def without_frame(cell, rng):
    "A cell in its box, on a background instead of black."
    return Image.fromarray(np.where(cell.max(2, keepdims=True) > 24, cell, rng.integers(170, 250, 3).astype(np.uint8)))

def outlines(cells, rng):
    "The outline of a real cell, or an oval."
    while True:
        c = cells[rng.integers(len(cells))]
        h,w = c.shape[:2]
        y,x = np.mgrid[:h,:w]
        yield c.max(2) > 24 if rng.random() < .5 else ((2*y+1)/h-1)**2+((2*x+1)/w-1)**2 <= 1

def framed(ims, shapes, rng, how, times=1):
    "In a black frame, as large as a cell: all of each picture, a piece of any size, or a piece at the scale of its pixels."
    for im in ims:
        for _ in range(times):
            o = next(shapes)
            if how=='whole': yield cut_piece(im.resize(o.shape[::-1], Image.Resampling.BILINEAR), o)
            else: yield cut_piece(im, o, a_scale(im.size, o, rng, how), rng)

def a_scale(size, o, rng, how):
    most = min(size[0]/o.shape[1], size[1]/o.shape[0])
    return 1. if how=='native' or most <= 1 else float(np.exp(rng.uniform(0, np.log(most))))

def shown(fields, shapes, rng, how, times):
    "Pieces of fields as `framed` cuts them, each with whether one cell fills at least half of it."
    for im,owner in fields:
        for _ in range(times):
            o = next(shapes)
            scale = a_scale(im.size, o, rng, how)
            (h,w),(b,a) = o.shape,(min(m, round(k*scale)) for m,k in zip(im.size, o.shape[::-1]))
            y,x = int(rng.integers(im.height-a+1)),int(rng.integers(im.width-b+1))
            seen = np.asarray(Image.fromarray(owner[y:y+a,x:x+b]).resize((w,h), Image.Resampling.NEAREST))[o]
            yield cut_piece(im.crop((x,y,x+b,y+a)), o, 1e9),np.bincount(seen+1, minlength=2)[1:].max() >= o.sum()/2

def fitted(root, cells, rng, n):
    "As `pack` fits it."
    part = {k: list(cells.path[cells.split==k]) for k in ('train','valid')}
    some = [o for v in part.values() for o in drawn_from(v, n, rng)]
    numbers,who = numbers_of(root/o for o in some),cells.set_index('path').patient
    return fit_content(numbers, [who[some[i]] for i in numbers.index])

def refusal(a, folder):
    "What share of each kind is refused; limits from patients left out, cells from test patients."
    rng = np.random.default_rng(42)
    root,cells = real(a, folder)
    check = fitted(root, cells, rng, a.n)
    test = cells[cells.split=='test']
    look = lambda o: np.asarray(open_picture(root/o))
    mine = [look(o) for o in drawn_from(list(test.path), 200, rng)]
    people = [[look(o) for o in drawn_from(list(g), 24, rng)] for _,g in test.groupby('patient').path]
    shapes,m = outlines(mine, rng),a.each
    kinds = {'X-rays': xrays(m, rng), 'photographs': photographs(), 'noise': [one_noise(i % 5, rng) for i in range(m)],
             'blank': list(blank(m, rng, [c[c.max(2) > 24].mean(0) for c in mine]))}
    rows = []
    def judge(kind, ims, about):
        seen = [appearance(o) for o in ims]
        why = [check.reason(o) for o in seen]
        rows.append(dict(kind=kind, n=len(why), refused=sum(map(bool, why)), rate=round(float(np.mean([bool(o) for o in why])), 4), frame=sum('black' in o for o in why),
                         far=sum(o.startswith('unlike') for o in why), about=about))
        print(rows[-1], flush=True)
    judge('real cells of test patients', (open_picture(root/o) for o in drawn_from(list(test.path), a.cells, rng)), f'{test.patient.nunique()} patients, who set no limit; at most 1 % may be refused')
    for k,ims in kinds.items():
        judge(k, ims, 'as they are')
        judge(f'{k}, framed', framed(ims, shapes, rng, 'whole', 4 if len(ims) < m else 1), 'all of the picture in a black frame of the size of a cell')
        judge(f'{k}, cut', framed(ims, shapes, rng, 'cut', max(1, m//len(ims))), 'a piece of any size in a black frame of the size of a cell')
    for k in ('apart','rows','heaped'):
        fields = [field(people[i % len(people)], rng, k) for i in range(m//4)]
        judge(f'smear fields, cells {k}', [o for o,_ in fields], 'as they are')
        judge(f'smear fields, cells {k}, framed', framed([o for o,_ in fields], shapes, rng, 'whole', 4), 'all of the picture in a black frame of the size of a cell')
        for how,said in (('cut','a piece of any size in a black frame of the size of a cell'), ('native','a piece as large as a cell, at the scale of its pixels')):
            pieces = [*shown(fields, shapes, rng, how, 8)]
            name = f"smear fields, cells {k}, cut{' as large as a cell'*(how=='native')}"
            for most,words in ((False,'no cell fills half of it'), (True,'one cell fills half of it or more')):
                if some := [o for o,one in pieces if one==most]: judge(f'{name}: {words}', some, said)
    judge('cells without the black frame', (without_frame(c, rng) for c in mine), 'refused on purpose: training cells are cut out on black')
    say(rows, 'refusal.csv', a)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('what', choices=('parity','throughput','refusal'))
    p.add_argument('run', nargs='?', help='a packed run folder, for throughput')
    p.add_argument('--results', default='results')
    p.add_argument('--only', nargs='*', help=f"parity: these networks only, by the name of a recipe; or of {', '.join(MORE)}")
    p.add_argument('--size', type=int, default=64, help='parity: side of the pictures')
    p.add_argument('--full', action='store_true', help='parity: VGG at 224')
    p.add_argument('--n', type=int, default=2000, help='cells to fit the check on, or to time')
    p.add_argument('--each', type=int, default=200, help='refusal: pictures of a kind')
    p.add_argument('--cells', type=int, default=2500, help='refusal: cells of test patients')
    p.add_argument('--rounds', type=int, default=2, help='throughput: rounds')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder: globals()[a.what](a, folder)

if __name__=='__main__': main()
