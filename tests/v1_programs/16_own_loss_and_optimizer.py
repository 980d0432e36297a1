from fastai.vision import *
data = ImageDataBunch.from_folder('data/cells', valid_pct=0.2, ds_tfms=get_transforms(do_flip=True, flip_vert=True), size=24, bs=16).normalize(imagenet_stats)
learn = cnn_learner(data, models.resnet18, pretrained=False, metrics=accuracy, opt_func=partial(optim.SGD, momentum=0.9),
                    loss_func=nn.CrossEntropyLoss(weight=torch.tensor([1., 2.])))
learn.fit(1, 1e-2)
preds, y = learn.get_preds()
assert torch.allclose(preds.sum(1), torch.ones(len(preds)), atol=1e-5) and preds.min() >= 0
