from fastai.vision import *
PATH = 'data/kaggle'
df = pd.read_csv(f'{PATH}/train.csv')
sub = pd.read_csv(f'{PATH}/sample_submission.csv')
src = (ImageItemList.from_df(df, PATH, folder='train', suffix='.png').random_split_by_pct(0.2).label_from_df()
       .add_test(ImageItemList.from_df(sub, PATH, folder='test', suffix='.png')))
data = src.transform(get_transforms(), size=24).databunch(bs=16).normalize(imagenet_stats)
learn = cnn_learner(data, models.resnet18, metrics=[accuracy, KappaScore(weights='quadratic')], pretrained=False, ps=0.3)
learn.fit_one_cycle(1, 1e-2)
preds, _ = learn.get_preds(DatasetType.Test)
sub['diagnosis'] = preds.argmax(1)
sub.to_csv('submission.csv', index=False)
for name, row in zip(sub.id[:3], preds[:3]):
    assert torch.allclose(learn.predict(f'{PATH}/test/{name}.png')[2], row, atol=1e-5)
assert len(pd.read_csv('submission.csv')) == 12
