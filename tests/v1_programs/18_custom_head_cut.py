from fastai.vision import *
data = (ImageList.from_folder('data/cells').split_by_idx(list(range(0, 80, 5))).label_from_re(r'(Parasitized|Uninfected)')
        .transform(get_transforms(), size=24).databunch(bs=16).normalize(imagenet_stats))
assert len(data.valid_ds) == 16
head = nn.Sequential(AdaptiveConcatPool2d(), Flatten(), nn.Linear(1024, 2))
learn = cnn_learner(data, models.resnet18, pretrained=False, cut=-2, custom_head=head, metrics=accuracy)
learn.fit_one_cycle(1, 1e-3, wd=0.1)
assert to_np(learn.get_preds()[0]).shape == (16, 2)
