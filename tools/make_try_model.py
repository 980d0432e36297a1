"""Train the small network of the page `try`, judge it, and put it into nbs/try/model: model.int8.onnx, model.json, MODEL_CARD.md.

    MALARIA_NIH_ZIP=cell_images.zip python tools/make_try_model.py
    MALARIA_NIH_ZIP=cell_images.zip python tools/make_try_model.py --split random --out runs/try_random --to ''
    MALARIA_NIH_ZIP=cell_images.zip python tools/make_try_model.py --look-anew

The last line fits only the check for what is no cell, and keeps the network. The second line measures the same network under a random split, for comparison, and packs nothing for the page. An interrupted training goes on; a
finished one is packed anew. The numbers of model.json, of the card and of results/try_model.csv are those of the 8-bit network that the page runs."""
import argparse,base64,json,os,shutil,sys
from pathlib import Path
import pandas as pd

from malaria_fastai.cells import locate,open_picture,read_cells
from malaria_fastai.export import _STEPS,_calibration,_fitted_content,write_folder,pack
from malaria_fastai.extra.onnx import export_onnx
from malaria_fastai.files import write_atomically
from malaria_fastai.evaluate import evaluate,read_predictions
from malaria_fastai.predict import _LAYOUT,Predictor,appearance,read_folder
from malaria_fastai.extra.quantize import quantize
from malaria_fastai.recipes import Recipe
from malaria_fastai.extra.crossval import block_numbers
from malaria_fastai.run import train
from malaria_fastai.split import split_by

ROOT = Path(__file__).resolve().parent.parent
# A ResNet18 up to its second stage: 0.7 million weights, and a map of 8 by 8 places, whose average goes through one linear layer.
RECIPE = Recipe('in_page', 'This project', 'resnet18', pretrained=False, cut=6, head='dense', lin_ftrs=(), ps=0., frozen='nothing', size=64, bs=64,
                tfms=dict(max_rotate=None, max_zoom=None, max_warp=None, flip_vert=True), epochs=8, lr=3e-3, split='patient', note="For the page that runs it in a browser.")
SHIPPED = 'model.int8.onnx'

def judged(run, root):
    "The predictions of validation and test cells by the 8-bit network, not calibrated, every cell answered."
    preds,predict = read_predictions(run/'predictions.csv'),Predictor(run, 'int8')
    predict.content,predict.facts = None,dict(predict.facts, temperature=1.)
    found = predict([root/o for o in preds.path])
    return preds.assign(p=found.p.to_numpy(), pred=found.pred.to_numpy())

def shipped(run, preds, to):
    "A model folder with the 8-bit network alone, and the numbers that belong to it."
    folder,said = read_folder(run)
    blocks = {k: evaluate(preds[preds.split==k], said['positive'], draws=2000) for k in ('valid','test')}
    said.update(_calibration(preds, said['positive'], said['unsure']['risk']), metrics=blocks, files={SHIPPED: said['files'][SHIPPED]})
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder/SHIPPED, to/SHIPPED)
    write_folder(to, said)

def look_anew(to, root, rule, n=2000):
    "Fit the check for what is no cell again: the network stays, and so does all that was measured of it."
    said = json.loads((to/'model.json').read_text('utf-8'))
    cells = split_by(read_cells(root, progress=False), rule, seed=42)
    if cells.split.value_counts().to_dict()!=said['data']['parts']: sys.exit(f'{root}: the network was trained on other cells')
    check = _fitted_content(root, cells, True, n)
    limits = {k: v for k,v in said['limits'].items() if k!='clip'}
    said.update(format=_LAYOUT, steps=_STEPS, content=vars(check), limits=limits)
    picture = open_picture(base64.b64decode(said['test_vector']['png']))
    said['test_vector']['numbers'] = {k: round(v, 6) for k,v in appearance(picture).items()}
    write_folder(to, said)

def row(run, preds, engine, file):
    "One row of the results: test cells, one engine."
    _,said = read_folder(run)
    facts,env = (json.loads((run/f'{o}.json').read_text('utf-8')) for o in ('metrics','environment'))
    test = preds[preds.split=='test']
    block,band = evaluate(test, said['positive'], draws=2000),_calibration(preds, said['positive'], said['unsure']['risk'])['unsure']
    keep = 'accuracy','balanced_accuracy','auc','sensitivity','specificity'
    return dict(engine=engine, split=facts['split'], part='test', n=len(test), patients=block['patients'], **{k: v for k,v in block_numbers(block).items() if k in keep},
                unsure=round(band['test']['unsure'], 4), error_decided=round(band['test']['error_decided'] or 0, 4), mb=round(said['files'][file]['file']['bytes']/1e6, 2),
                epochs=facts['epochs'], size=facts['size'], seed=facts['seed'], seconds=facts['seconds'], cores=env['cores'], data=facts['data']['name'],
                data_hash=env['data_hash'][:12], commit=env['commit'], command=env['command'])

def say(rows, file):
    "Put rows into the table of results, in the place of earlier ones of the same split."
    new = pd.DataFrame(rows)
    old = pd.read_csv(file) if file.exists() else new[:0]
    table = pd.concat([old[~old.split.isin(new.split)], new]).sort_values(['split','engine'])
    write_atomically(file, table.to_csv(index=False, lineterminator='\n'))
    print(table.drop(columns=['command','commit','data_hash']).T.to_string())

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', default='runs/try', help='the run folder')
    p.add_argument('--to', default=str(ROOT/'nbs/try/model'), help="the model folder of the page; '' packs none")
    p.add_argument('--split', default='fold:0')
    p.add_argument('--epochs', type=int, default=RECIPE.epochs)
    p.add_argument('--results', default=str(ROOT/'results/try_model.csv'))
    p.add_argument('--data-dir', default='data')
    p.add_argument('--look-anew', action='store_true', help='only fit the check for what is no cell')
    a = p.parse_args()
    source = Path(os.environ.get('MALARIA_NIH_ZIP') or sys.exit('MALARIA_NIH_ZIP names no archive of cells'))
    if a.look_anew: return look_anew(Path(a.to), locate(source, folder=a.data_dir), a.split)
    said = ' '.join(['python','tools/make_try_model.py',*(f'--{k} {v!r}' if not v else f'--{k} {v}' for k,v in (('split',a.split),('epochs',a.epochs)))])
    run = train(source, a.out, recipe=RECIPE.but(epochs=a.epochs), split=a.split, data_dir=a.data_dir, resume=True, command=said)
    root = locate(source, folder=a.data_dir)
    pack(run, root)
    export_onnx(run, data=root)
    quantize(run, root)
    preds,bits = read_predictions(run/'predictions.csv'),judged(run, root)
    same = ((preds.p>=.5)==(bits.p>=.5)).mean()
    print(f"8 bits beside floats: p differs by {abs(preds.p-bits.p).mean():.4f} on average, {abs(preds.p-bits.p).max():.3f} at most; {same:.2%} on the same side of one half")
    say([row(run, preds, 'float', 'model.onnx'), row(run, bits, 'int8', SHIPPED)], Path(a.results))
    if a.to: shipped(run, bits, Path(a.to))

if __name__=='__main__': main()
