from fastai.vision import *
from fastai.metrics import error_rate
path = Path('data/cells')
np.random.seed(42)
data = ImageDataBunch.from_folder(path, train='.', valid_pct=0.2, ds_tfms=get_transforms(), size=24, num_workers=0, bs=16).normalize(imagenet_stats)
data.show_batch(rows=3, figsize=(5, 5))
plt.savefig('batch.png')
print(data.classes, data.c, len(data.train_ds), len(data.valid_ds))
assert (data.classes, data.c, len(data.train_ds), len(data.valid_ds)) == (['Parasitized', 'Uninfected'], 2, 64, 16)
xb, yb = data.one_batch()
assert xb.shape == (16, 3, 24, 24) and yb.dtype == torch.int64 and os.path.exists('batch.png')
