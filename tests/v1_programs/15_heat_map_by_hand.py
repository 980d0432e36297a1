from fastai.vision import *
from fastai.callbacks.hooks import *
data = ImageDataBunch.from_folder('data/cells', valid_pct=0.2, size=32, bs=16).normalize(imagenet_stats)
learn = cnn_learner(data, models.resnet18, pretrained=False)
learn.fit_one_cycle(1)
x, y = data.valid_ds[0]
m = learn.model.eval()
xb, _ = data.one_item(x)
xb_im = Image(data.denorm(xb)[0])
assert xb_im.shape == (3, 32, 32)
with hook_output(m[0]) as hook_a:
    preds = m(xb)
acts = hook_a.stored[0].cpu()
assert acts.shape[0] == 512
_, ax = plt.subplots()
xb_im.show(ax)
ax.imshow(acts.mean(0).detach(), alpha=0.6, extent=(0, 32, 32, 0), interpolation='bilinear', cmap='magma')
