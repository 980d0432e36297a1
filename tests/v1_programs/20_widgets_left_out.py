from fastai.vision import *
from fastai.vision.models import resnet18
from fastai.callbacks.mem import PeakMemMetric
import fastai.utils.collect_env as env
tfms = get_transforms(xtra_tfms=[rotate(degrees=(-10, 10), p=0.5), flip_lr(p=0.5)])
data = (ImageList.from_folder('data/cells').split_by_rand_pct(0.3).label_from_folder().transform(tfms, size=(24, 24)).databunch(bs=14).normalize(imagenet_stats))
assert len(data.valid_ds) == 24
for i in range(2):
    data.show_batch(rows=2, figsize=(3, 3))
    plt.show()
learn = cnn_learner(data, models.resnet18, pretrained=False, metrics=[accuracy, error_rate])
learn.fit_one_cycle(1, 1e-3, moms=(0.9, 0.8), pct_start=0.5, div_factor=10.)
a, b = learn.recorder.metrics[-1]
assert abs(float(a) + float(b) - 1) < 1e-6
