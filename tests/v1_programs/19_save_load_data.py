from fastai.vision import *
path = Path('data/cells')
data = ImageDataBunch.from_folder(path, valid_pct=0.2, seed=3, ds_tfms=get_transforms(), size=24, bs=16)
data.save()
again = load_data(path, bs=16).normalize(imagenet_stats)
assert [*again.valid_ds.items] == [*data.valid_ds.items]
learn = cnn_learner(again, models.resnet18, pretrained=False, metrics=accuracy)
learn.mixup()
learn.fit_one_cycle(1)
learn.save('mixed')
learn.load('mixed')
