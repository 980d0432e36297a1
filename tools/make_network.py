"""Train the network that comes with the package on all cells, and pack it, judged by a cross-validation.

    malaria-fastai crossval cell_images.zip --recipe best --out runs/best_cv --resume
    OMP_NUM_THREADS=1 python tools/make_network.py cell_images.zip --judged runs/best_cv --out runs/network

Number of epochs, sizes and rates are those of the recipe, fixed before; no cell is held back, so the numbers of the card are those of
the folds, whose networks never saw the patients they were judged on. Temperature and band of unsure come from the same predictions.
An interrupted training goes on exactly; a finished one is only packed anew. The same machine and threads make the same file, bit for bit."""
import argparse
import json
import shutil
from pathlib import Path

import pandas as pd

import malaria_fastai.extra.packaged_weights # noqa: F401
from malaria_fastai.data import LabelList
from malaria_fastai.evaluate import evaluate, read_predictions
from malaria_fastai.export import pack, write_folder
from malaria_fastai.files import write_atomically
from malaria_fastai.predict import read_folder
from malaria_fastai.recipes import find_recipe
from malaria_fastai.run import about_data, environment, fit_recipe, positive_class, prepare
from malaria_fastai.run import recipe_data, recipe_learner
from malaria_fastai.split import split_by

NETWORK = Path(__file__).resolve().parent.parent/'malaria_fastai/network'
FILES = 'export.pkl','model.json','MODEL_CARD.md'


def trained(recipe, root, cells, out):
    "The learner of a recipe after training on all cells; a twentieth of them is watched, which chooses nothing."
    watched = cells.assign(split=['train' if i % 20 else 'valid' for i in range(len(cells))])
    data = recipe_data(recipe, root, watched)
    data.loaders[0] = data.train.new(LabelList(data.pictures, data.cells, data.classes, 0, random_crop=True))
    print(f'{len(data.train_ds):,} cells are trained on, {len(data.valid_ds):,} of them watched')
    learn = recipe_learner(recipe, data, path=out, model_dir='states')
    with learn.no_bar(): fit_recipe(learn, recipe, every='epoch', resume=True)
    write_atomically(out/'history.csv', learn.recorder.to_frame().to_csv(index=False))
    return learn


def halved(learn, recipe, positive):
    "Round the weights of the layers to half precision, say what that changes, and write the model file."
    cells = learn.dls.cells
    before = learn.predict_cells(cells, positive)
    learn.export('whole.pkl')
    for weights in learn.model.parameters():
        if weights.dim() > 1: weights.data = weights.data.half() # batch norm's few numbers stay whole
    learn.export(Path('model')/'export.pkl', extra=dict(positive=positive, views=8 if recipe.tta else 1))
    learn.model.float()
    after = learn.predict_cells(cells, positive)
    largest,turned = abs(after.p - before.p).max(),(after.pred != before.pred).sum()
    print(f'Half precision: p changes by {largest:.1g} at most; {turned} of {len(cells):,} answers are others')


def judged(folder):
    "The test cells of all folds that are finished, the numbers of all and those of one view, and how many folds."
    runs = sorted(file.parent for file in folder.glob('fold*/metrics.json'))
    tables = [read_predictions(run/'predictions.csv').assign(fold=int(run.name[4:])) for run in runs]
    preds = pd.concat([table[table.split == 'test'] for table in tables], ignore_index=True)
    positive = json.loads((runs[0]/'metrics.json').read_text('utf-8'))['data']['positive']
    numbers = dict(folds=evaluate(preds, positive))
    if 'p_one_view' in preds:
        numbers['one_view'] = evaluate(preds.drop(columns='pred').assign(p=preds.p_one_view.astype(float)), positive)
    return preds,numbers,len(runs)


def packed(out, source, root, cells, recipe, folds, command):
    "Write the model folder: limits and numbers are those of the folds."
    preds,numbers,n = judged(folds)
    data = about_data(source, root, cells.assign(split='train'), positive_class(cells.label))
    about = dict(split=f'patient: {n} of five folds for the numbers, then all patients for the network', data=data,
                 pretrained=recipe.pretrained)
    made = environment(command, data_hash=data['hash'])
    for name,content in (('metrics', about), ('environment', made)):
        write_atomically(out/f'{name}.json', json.dumps(content, indent=1) + '\n')
    write_atomically(out/'predictions.csv', preds.assign(split='valid').to_csv(index=False))
    parts = split_by(cells, 'fold:0')[['path', 'label', 'patient', 'sha256', 'split']]
    write_atomically(out/'split.csv', parts.to_csv(index=False)) # the check for what is no cell is fitted and tried on these
    folder,facts = read_folder(pack(out, root))
    write_folder(folder, facts | dict(metrics=numbers, folds=n))
    return folder


def main():
    "Do what the command line says."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='the archive of cells, or its folder')
    parser.add_argument('--judged', type=Path, help='a cross-validation of the recipe; without it nothing is packed')
    parser.add_argument('--out', type=Path, default=Path('runs/network'), help='the run folder')
    parser.add_argument('--to', type=Path, default=NETWORK, help='where the three files go')
    parser.add_argument('--recipe', default='best')
    parser.add_argument('--limit', type=int, help='at most so many cells, for a try')
    parser.add_argument('--size', type=int, help='side of the pictures, for a try')
    parser.add_argument('--data-dir', default='data')
    words = parser.parse_args()
    recipe = find_recipe(words.recipe)
    if words.size: recipe = recipe.but(size=words.size)
    root,cells = prepare(words.source, None, limit=words.limit, data_dir=words.data_dir, out=words.out)
    if not (words.out/'model/export.pkl').exists():
        halved(trained(recipe, root, cells, words.out), recipe, positive_class(cells.label))
    if not words.judged: return
    command = f'OMP_NUM_THREADS=1 python tools/make_network.py {Path(words.source).name} --judged {words.judged.name}'
    folder = packed(words.out, words.source, root, cells, recipe, words.judged, command)
    words.to.mkdir(parents=True, exist_ok=True)
    for name in FILES: shutil.copyfile(folder/name, words.to/name)
    print(f'{sum((words.to/name).stat().st_size for name in FILES)/1e6:.2f} MB in {words.to}')


if __name__ == '__main__': main()
