from fastai.vision import *
path = 'data/cells'
data = (ImageItemList.from_folder(path)
        .label_from_folder()
        .random_split_by_pct(0.2, seed=7)
        .transform(get_transforms(), size=24)
        .databunch(bs=16)
        .normalize(imagenet_stats))
learn = create_cnn(data, models.resnet18, metrics=[accuracy], pretrained=False)
learn.fit_one_cycle(1)
learn.recorder.plot_lr(show_moms=True)
learn.recorder.plot_metrics()
assert len(data.valid_ds) == 16
