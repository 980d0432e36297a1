from fastai.vision import *
from fastai.metrics import error_rate
from fastai.callbacks import SaveModelCallback
path = Path('data/cells')
data = ImageDataBunch.from_folder(path, valid_pct=0.2, ds_tfms=get_transforms(), size=24, bs=16).normalize(imagenet_stats)
learn = cnn_learner(data, models.resnet18, metrics=[accuracy, error_rate], pretrained=False)
learn.lr_find(num_it=12)
learn.recorder.plot(skip_start=2, skip_end=2)
learn.fit_one_cycle(2, max_lr=slice(1e-4, 1e-3), callbacks=[SaveModelCallback(learn, every='improvement', monitor='accuracy', name='best')])
learn.recorder.plot_losses()
assert len(learn.recorder.losses) == 2*(64//16) and len(learn.recorder.val_losses) == 2
learn.save('stage-1')
learn.load('stage-1')
learn.unfreeze()
interp = ClassificationInterpretation.from_learner(learn)
losses, idxs = interp.top_losses()
assert len(losses) == len(idxs) == len(data.valid_ds) == interp.confusion_matrix().sum() == 16
interp.plot_top_losses(4, figsize=(6, 6))
interp.plot_confusion_matrix()
learn.export()
learn2 = load_learner(path)
img = open_image(data.valid_ds.items[0])
cat, idx, probs = learn2.predict(img)
assert str(cat) in data.classes and probs.equal(learn2.predict(data.valid_ds.items[0])[2])
