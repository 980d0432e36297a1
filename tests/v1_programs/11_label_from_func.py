from fastai.vision import *
def label(x): return 'infected' if x.parent.name == 'Parasitized' else 'healthy'
data = ImageList.from_folder('data/cells').split_by_valid_func(lambda o: o.stem.endswith('0')).label_from_func(label).transform(get_transforms(), size=24).databunch(bs=8)
data = data.normalize(imagenet_stats)
assert data.classes == ['healthy', 'infected']
learn = cnn_learner(data, models.resnet18, pretrained=False, metrics=[accuracy])
learn.fit_one_cycle(1, 3e-3)
x, y = data.one_batch(DatasetType.Valid)
assert learn.model.training or x.shape[1:] == (3, 24, 24)
