from fastai.vision import *
path = Path('data/cells')
src = ImageList.from_folder(path).split_by_rand_pct(0.25, seed=2).label_from_folder()
print(src)
data = src.transform(get_transforms(flip_vert=True, max_warp=0.), size=24).databunch(bs=8).normalize(imagenet_stats)
assert len(data.train_ds) == 60 and len(data.valid_ds) == 20 and len(data.train_dl) == 60//8
img, label = data.train_ds[0]
assert img.shape == (3, 24, 24) and img.size == (24, 24) and str(label) in data.classes
img.show(figsize=(2, 2), y=label)
plt.show()
assert data.train_ds.x.items[0].suffix == '.png' and len(data.train_ds.y.items) == 60
