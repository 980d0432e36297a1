from fastai import *
from fastai.vision import *
data = ImageDataBunch.from_folder('data/parts', train='train', valid='valid', test='test', ds_tfms=get_transforms(), size=24, bs=10)
data.normalize(imagenet_stats)
learn = create_cnn(data, models.resnet18, metrics=accuracy, pretrained=False)
learn.fit(1, 1e-3)
preds, y = learn.get_preds(ds_type=DatasetType.Valid)
acc = accuracy(preds, y)
print(f'accuracy {acc:.3f}')
assert preds.shape == (20, 2) and torch.allclose(preds.sum(1), torch.ones(20), atol=1e-5)
preds, y = learn.get_preds(DatasetType.Test)
assert len(preds) == 12 and y.tolist() == [0]*12
loss, acc2 = learn.validate(learn.data.valid_dl)
assert abs(float(acc2) - float(acc)) < 1e-6
