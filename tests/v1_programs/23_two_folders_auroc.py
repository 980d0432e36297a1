from fastai.vision import *
from fastai.callbacks.tracker import SaveModelCallback
train_path, test_path = 'data/kaggle/train', 'data/kaggle/test'
df = pd.read_csv('data/kaggle/train.csv')
np.random.seed(42)
src = (ImageItemList.from_df(df, train_path, cols='id', suffix='.png')
       .split_by_rand_pct(0.2, seed=7)
       .label_from_df(cols='diagnosis')
       .add_test(ImageItemList.from_folder(test_path)))
data = src.transform(get_transforms(flip_vert=True, max_rotate=None), size=24).databunch(path='.', bs=16, no_check=True).normalize(imagenet_stats)
order = np.random.RandomState(7).permutation(80)
assert sorted(f.stem for f in data.valid_ds.items) == sorted(df.id.iloc[order[:16]]) and len(data.test_ds) == 12
learn = create_cnn(data, models.resnet18, metrics=[accuracy, AUROC()], pretrained=False, ps=0.25, bn_final=True)
learn.lr_find(num_it=14)
learn.recorder.plot(skip_start=1, skip_end=1, return_fig=True)
learn.fit_one_cycle(2, slice(1e-4, 1e-2), callbacks=[SaveModelCallback(learn, monitor='accuracy', name='best')])
assert os.path.exists('models/best.pth')
learn.load('best')
preds, _ = learn.get_preds(ds_type=DatasetType.Test)
views, zeros = learn.TTA(ds_type=DatasetType.Test)
assert preds.shape == views.shape == (12, 2) and not zeros.any()
names = [os.path.splitext(os.path.basename(f))[0] for f in data.test_ds.items]
sub = pd.DataFrame({'id': names, 'label': to_np(views[:, 1])})
assert sub.id.tolist() == sorted(Path(f).stem for f in get_image_files(test_path)) and sub.label.between(0, 1).all()
one = learn.predict(open_image(f'{test_path}/{names[5]}.png'))
assert torch.allclose(one[2], preds[5], atol=1e-5)
