from fastai.vision import *
from sklearn.model_selection import StratifiedKFold
PATH = Path('data/kaggle')
df = pd.read_csv(PATH/'train.csv')
scores = defaultdict(list)
for fold, (train_idx, valid_idx) in enumerate(StratifiedKFold(2, shuffle=True, random_state=1).split(df.id, df.diagnosis)):
    data = (ImageList.from_df(df, PATH, folder='train', suffix='.png').split_by_idxs(train_idx, valid_idx).label_from_df('diagnosis')
            .transform(get_transforms(), size=16).databunch(bs=16).normalize(imagenet_stats))
    assert {f.stem for f in data.valid_ds.items} == {*df.id.iloc[valid_idx]}
    learn = cnn_learner(data, models.resnet18, metrics=[accuracy], pretrained=False)
    learn.fit_one_cycle(1)
    preds, y = learn.get_preds()
    assert y.tolist() == [int(df.set_index('id').diagnosis[f.stem]) for f in data.valid_ds.items]
    scores['accuracy'].append(accuracy(preds, y).item())
    del learn
    gc.collect()
print(np.mean(scores['accuracy']))
assert len(scores['accuracy']) == 2
