from fastai import *
from fastai.vision import *
PATH = 'data/kaggle'
train_df = pd.read_csv(f'{PATH}/train.csv')
train_df['path'] = train_df['id'].map(lambda x: os.path.join(PATH, 'train', '{}.png'.format(x)))
train_df = train_df.drop(columns=['id', 'is_valid']).sample(frac=1, random_state=3).reset_index(drop=True)
bs, sz = 16, 16
src = (ImageList.from_df(df=train_df, path='./', cols='path')
       .split_by_idx(np.arange(0, 80, 4))
       .label_from_df(cols='diagnosis', label_cls=None))
data = src.transform(get_transforms(do_flip=True, flip_vert=True, max_lighting=0.1, max_zoom=0.5), size=sz, padding_mode='zeros').databunch(bs=bs).normalize()
assert [f.name for f in sorted(data.valid_ds.items)] == sorted(Path(p).name for p in train_df.path[::4])
kappa = KappaScore()
kappa.weights = 'quadratic'
learn = cnn_learner(data, base_arch=models.resnet18, metrics=[kappa, accuracy], pretrained=False, callback_fns=[ShowGraph, partial(ReduceLROnPlateauCallback, patience=1)], model_dir='weights')
learn.fit_one_cycle(1, 1e-3)
file = learn.save('stage-1', return_path=True)
assert file.exists() and file.parent.name == 'weights'
learn.unfreeze()
learn.data = src.transform(get_transforms(), size=24).databunch(bs=8).normalize(data.stats)
learn.fit_one_cycle(1, max_lr=slice(1e-6, 1e-4), wd=0.1, pct_start=0.5)
learn.recorder.plot_losses()
learn.recorder.plot_lr()
from sklearn.metrics import cohen_kappa_score
preds, y = learn.get_preds(n_batch=None)
own = cohen_kappa_score(np.argmax(preds.numpy(), axis=1), y.numpy(), weights='quadratic')
assert abs(learn.validate()[1] - own) < 1e-5 and learn.data.batch_size == 8
learn.data.batch_size = 4
assert learn.data.train_dl.batch_size == 4
