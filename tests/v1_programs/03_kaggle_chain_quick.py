from fastai.vision import *
PATH = Path('data/kaggle')
train_df = pd.read_csv(PATH/'train.csv')
sub = pd.read_csv(PATH/'sample_submission.csv')
tfms = get_transforms(do_flip=True, max_rotate=10., max_zoom=1.1, max_lighting=0.2, max_warp=0.)
test = ImageList.from_df(sub, path=PATH, folder='test', suffix='.png')
np.random.seed(42)
data = (ImageList.from_df(train_df, path=PATH, folder='train', suffix='.png', cols='id')
        .split_by_rand_pct(0.2, seed=42)
        .label_from_df(cols='diagnosis')
        .add_test(test)
        .transform(tfms, size=24, resize_method=ResizeMethod.SQUISH)
        .databunch(bs=16, num_workers=0)
        .normalize(imagenet_stats))
order = np.random.RandomState(42).permutation(80)
assert {f.stem for f in data.valid_ds.items} == {*train_df.id[order[:16]]}
assert data.classes == [0, 1] and [f.stem for f in data.test_ds.items] == sub.id.tolist()
assert len(data.test_ds) == 12
