from fastai.vision import *
src = ImageList.from_folder('data/cells').split_by_rand_pct(0.2, seed=1).label_from_folder()
def get_data(size, bs): return src.transform(get_transforms(), size=size).databunch(bs=bs).normalize(imagenet_stats)
learn = cnn_learner(get_data(16, 16), models.resnet18, metrics=accuracy, pretrained=False)
learn.fit_one_cycle(1)
before = {f for f in learn.data.valid_ds.items}
learn.data = get_data(24, 8)
learn.fit_one_cycle(1, slice(1e-5, 1e-3))
assert {f for f in learn.data.valid_ds.items} == before and learn.data.bs == 8
