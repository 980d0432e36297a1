from fastai.vision import *
path = Path('data/cells')
fnames = get_image_files(path/'Parasitized') + get_image_files(path/'Uninfected')
assert len(fnames) == 80
data = ImageDataBunch.from_name_re(path, fnames, r'/([^/]+)/[^/]+.png$', ds_tfms=get_transforms(), size=24, bs=16).normalize(imagenet_stats)
learn = cnn_learner(data, models.resnet18, metrics=error_rate, pretrained=False)
learn.fit_one_cycle(1)
learn.freeze()
learn.unfreeze()
learn.fit_one_cycle(1, max_lr=slice(1e-6, 1e-4))
interp = ClassificationInterpretation.from_learner(learn)
print(interp.most_confused(min_val=0))
assert data.classes == ['Parasitized', 'Uninfected'] and len(learn.recorder.val_losses) >= 1
