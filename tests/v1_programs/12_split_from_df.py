from fastai.vision import *
PATH = Path('data/kaggle')
data = (ImageList.from_csv(PATH, 'train.csv', folder='train', suffix='.png')
        .split_from_df(col='is_valid')
        .label_from_df(cols='diagnosis')
        .transform(get_transforms(), size=24).databunch(bs=16).normalize(imagenet_stats))
df = pd.read_csv(PATH/'train.csv')
assert len(data.valid_ds) == df.is_valid.sum() and data.classes == [0, 1]
learn = cnn_learner(data, models.resnet18, pretrained=False, metrics=[FBeta(beta=1), Precision(), Recall()])
learn.fit_one_cycle(1, 1e-3)
metrics = learn.recorder.metrics
assert len(metrics) == 1 and len(metrics[0]) == 3
