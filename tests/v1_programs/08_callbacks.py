from fastai.vision import *
from fastai.callbacks import *
data = (ImageList.from_folder('data/cells').split_by_rand_pct().label_from_folder().transform(size=24).databunch(bs=16).normalize(imagenet_stats))
learn = cnn_learner(data, models.resnet18, metrics=accuracy, pretrained=False,
                    callback_fns=[ShowGraph, partial(EarlyStoppingCallback, monitor='val_loss', min_delta=0.01, patience=3)])
learn.fit_one_cycle(2, 1e-3, callbacks=[SaveModelCallback(learn, monitor='val_loss', mode='min', name='best_model'), CSVLogger(learn, filename='log'),
                                        ReduceLROnPlateauCallback(learn, monitor='val_loss', patience=1)])
assert (Path('data/cells')/'models'/'best_model.pth').exists()
assert len(learn.recorder.lrs) >= 4 and len(learn.recorder.moms) == len(learn.recorder.lrs)
