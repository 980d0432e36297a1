from fastai.vision import *
df = pd.read_csv('data/kaggle/train.csv')
data = ImageDataBunch.from_df('data/kaggle', df, folder='train', suffix='.png', valid_pct=0.2, ds_tfms=get_transforms(), size=24, bs=16).normalize()
learn = cnn_learner(data, models.resnet18, metrics=[error_rate], pretrained=False, wd=1e-2)
learn.fit_one_cycle(1)
log_preds, y = learn.TTA()
assert log_preds.shape == (16, 2)
assert 0 <= float(error_rate(log_preds, y)) <= 1
learn.show_results(rows=2)
