"""The code that touches a GPU, on a simulated one (simulated_gpu.py): where tensors lie, how often the CPU waits, whose random numbers
are drawn. A real card's arithmetic, memory and speed: `bench/gpu.py`."""
import copy,shutil
from contextlib import contextmanager
import malaria_fastai.data
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from simulated_gpu import SimulatedGPU
from torch import nn
from malaria_fastai.cells import ResizeMethod,read_cells
from malaria_fastai.data import DatasetType,ImageDataBunch
from malaria_fastai.interpret import ClassificationInterpretation,grad_cam
from malaria_fastai.learner import HalfPrecision,cnn_learner,half_precision,load_learner,weights_hash
from malaria_fastai.resume import SaveModelCallback
from malaria_fastai.split import split_by
from malaria_fastai.transforms import get_transforms
from fastai.metrics import accuracy

SMALL = 'test_resnet' # of timm: a ResNet whose state is small, as quick to write as to compare
TFMS = dict(flip_vert=True, max_rotate=None, max_warp=None, max_zoom=1.)

@pytest.fixture(scope='module')
def cells(sample_root):
    "A third of the drawn cells: of eight patients."
    whole = read_cells(sample_root, progress=False)
    return split_by(whole[whole.patient.isin(sorted(whole.patient.unique())[::3])].reset_index(drop=True), 'patient')

@pytest.fixture
def bunch(sample_root, cells, tmp_path):
    def make(tfms=None, size=32, bs=16, **options):
        tfms = get_transforms(**TFMS) if tfms is None else tfms
        return ImageDataBunch.from_cells(sample_root, cells, ds_tfms=tfms, size=size, bs=bs, cache=tmp_path/'cache', **options)
    return make

@pytest.fixture
def learner(bunch, tmp_path):
    def make(name='a', data=None, arch='resnet18', **options):
        return cnn_learner(data or bunch(), arch, pretrained=False, path=tmp_path/name, metrics=[accuracy], **options)
    return make

class Phases(Callback):
    "Say in the simulator's book what the learner is doing, and count its batches."
    order = -1000
    def __init__(self, gpu): self.gpu,self.batches = gpu,dict(train=0, valid=0)
    def before_train(self): self.gpu.phase = 'train'
    def before_validate(self): self.gpu.phase = 'valid'
    def after_batch(self): self.batches['train' if self.training else 'valid'] += 1
    def after_train(self): self.gpu.phase = 'epoch'
    def after_validate(self): self.gpu.phase = 'epoch'
    def after_fit(self): self.gpu.phase = ''

def fit(learn, n=1, callbacks=(), **options):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, 3e-3, callbacks=[*callbacks], **options)
    return learn

# ---- the simulator itself

@contextmanager
def refused(*kinds):
    with pytest.raises(kinds or RuntimeError): yield

def test_devices_are_kept_apart():
    with SimulatedGPU() as gpu:
        on_cpu = torch.randn(3, 4)
        on_gpu = on_cpu.to('cuda')
        assert on_gpu.device.type=='cuda' and on_gpu.is_cuda and not on_cpu.is_cuda and on_cpu.device.type=='cpu'
        assert (on_gpu+torch.tensor(2.)).is_cuda and on_gpu[0].is_cuda and on_gpu.t().contiguous().is_cuda
        assert on_gpu[torch.tensor([0, 1])].is_cuda and torch.zeros_like(on_gpu).is_cuda and torch.zeros((), device=on_gpu.device).is_cuda
        assert not torch.zeros_like(on_gpu, device='cpu').is_cuda
        with refused(): on_cpu+on_gpu
        with refused(): torch.cat([on_cpu, on_gpu])
        with refused(): torch.zeros(()).add_(on_gpu.sum())
        with refused(): on_gpu.gather(1, torch.zeros(3, 1).long())
        with refused(): on_cpu[torch.tensor([0, 1]).cuda()]
        with refused(TypeError): on_gpu.numpy()
        with refused(TypeError): np.asarray(on_gpu)
    assert not torch.cuda.is_available() and on_gpu.device.type=='cpu'

def test_networks_and_optimizers_are_kept_apart():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x,y = torch.randn(5, 3, 8, 8),torch.randint(0, 2, (5,))
    with SimulatedGPU() as gpu:
        net.to('cuda', memory_format=torch.channels_last)
        assert all(tensor.is_cuda for tensor in [*net.parameters(), *net.buffers(), *copy.deepcopy(net).parameters()])
        with refused(): net(x)
        with refused(): nn.functional.cross_entropy(net(x.cuda()), y)
        nn.functional.cross_entropy(net(x.cuda()), y.cuda()).backward()
        assert all(p.grad.is_cuda for p in net.parameters())
        torch.optim.AdamW(net.parameters(), fused=True).step()
        from torch.optim.adamw import adamw
        ps = [*net.parameters()]
        zeros = [torch.zeros_like(p) for p in ps]
        with refused(), torch.no_grad(): # counters that lie on the CPU
            adamw(ps, [p.grad for p in ps], zeros, zeros, [], [torch.zeros(()) for p in ps], fused=True, amsgrad=False, beta1=.9, beta2=.99, lr=.1,
                  weight_decay=0., eps=1e-5, maximize=False)

def test_waits_are_counted(tmp_path):
    x,y = torch.randn(5, 3),torch.randint(0, 2, (5,))
    with SimulatedGPU() as gpu:
        def waits(what):
            before = len(gpu.waits)
            what()
            return len(gpu.waits)-before
        on_gpu = x.cuda()
        assert waits(lambda: float(on_gpu.sum()))==waits(lambda: on_gpu.cpu())==waits(lambda: y.to('cuda'))==waits(lambda: on_gpu.tolist())==1
        assert waits(lambda: on_gpu[on_gpu>0])==waits(lambda: torch.tensor([1.], device='cuda'))==1
        assert waits(lambda: on_gpu*2)==waits(lambda: x.pin_memory().to('cuda', non_blocking=True))==0
        assert not gpu.of_kind('staged')
        x.to('cuda', non_blocking=True)
        assert len(gpu.of_kind('staged'))==1 and not gpu.hazards
        on_gpu.to('cpu', non_blocking=True)
        torch.save(dict(a=on_gpu), tmp_path/'a.pth')
        torch.load(tmp_path/'a.pth')
        assert len(gpu.hazards)==2
        assert torch.load(tmp_path/'a.pth', 'cuda')['a'].is_cuda and not torch.load(tmp_path/'a.pth', 'cpu')['a'].is_cuda

def test_the_gpu_draws_for_itself():
    with SimulatedGPU():
        torch.manual_seed(1)
        first = torch.rand(3, device='cuda').cpu()
        torch.manual_seed(1)
        torch.rand(5)
        assert torch.equal(first, torch.rand(3, device='cuda').cpu())
        state = torch.get_rng_state()
        torch.rand(4, device='cuda')
        assert torch.equal(state, torch.get_rng_state())

# ---- training

@pytest.mark.parametrize('half', [False, True], ids=['single', 'half'])
def test_waits_per_batch(learner, half):
    with SimulatedGPU() as gpu:
        phases = Phases(gpu)
        learn = fit(learner(), callbacks=[phases, *(half_precision() if half else [])])
        assert next(learn.model.parameters()).is_cuda
    for phase,most in dict(train=.15, valid=.05).items():
        seen = gpu.count(phase)
        assert sum(seen.values())/phases.batches[phase]<=most, (phase, seen)
    assert not gpu.of_kind('staged') and not gpu.hazards

@pytest.mark.parametrize('scale', [2.**16, 2.**127], ids=['usual', 'overflow'])
def test_half_precision_equals_fastai(learner, scale):
    "Only the waiting differs: the weights are equal to the bit, those too of steps that are left out because a gradient overflows."
    ends = []
    for kind in (HalfPrecision, MixedPrecision):
        with SimulatedGPU() as gpu:
            learn = fit(learner(channels_last=True), callbacks=[kind(init_scale=scale)])
            ends.append(weights_hash(learn.model))
    assert ends[0]==ends[1]

def test_clipping_sees_unscaled_gradients(learner):
    from fastai.callback.training import GradientClip
    ends = []
    for kind in (HalfPrecision, MixedPrecision):
        with SimulatedGPU() as gpu: ends.append(weights_hash(fit(learner(channels_last=True), callbacks=[kind(), GradientClip(.1)]).model))
    assert ends[0]==ends[1]

def test_bfloat16_needs_hardware(learner):
    with SimulatedGPU(capability=(7, 5)) as gpu, pytest.raises(ValueError, match='to_fp16'): learner().to_bf16()
    with SimulatedGPU(capability=(8, 0)) as gpu: assert fit(learner().to_bf16()).recorder.losses

class Stop(Callback):
    "Ctrl-C before a batch."
    looks_on = True
    def __init__(self, epoch, batch): self.at = epoch,batch
    def before_batch(self):
        if self.training and (self.epoch, self.iter)==self.at: raise KeyboardInterrupt

@pytest.mark.slow
@pytest.mark.parametrize('half', [False, True], ids=['single', 'half'])
@pytest.mark.parametrize('every,at', [('epoch', (1, 2)), (3, (1, 5))])
def test_resume_is_exact(learner, half, every, at, tmp_path):
    "A new process has a GPU whose generator has drawn nothing."
    precision = lambda: half_precision() if half else []
    ends = []
    for stopped in (False, True):
        with SimulatedGPU() as gpu:
            learn = learner('run', arch=SMALL)
            stop = [Stop(*at)]*stopped
            try: fit(learn, 2, [SaveModelCallback(learn, every=every, name='run'), *stop, *precision()])
            except KeyboardInterrupt: pass
        if stopped:
            torch.manual_seed(998)
            with SimulatedGPU() as gpu:
                gpu.generator.manual_seed(999)
                learn = learner('run', arch=SMALL)
                fit(learn, 2, [SaveModelCallback(learn, every=every, name='run'), *precision()], start_epoch='last')
        ends.append(weights_hash(learn.model))
        shutil.rmtree(tmp_path/'run')
    assert ends[0]==ends[1]

# ---- what a user does besides

@pytest.mark.slow
@pytest.mark.parametrize('options', [dict(), dict(max_stain=.2, **TFMS), dict(max_lighting=None, max_rotate=None, max_warp=None, max_zoom=1.)],
                         ids=['affine', 'views, light and stain', 'flips'])
@pytest.mark.parametrize('method', [ResizeMethod.CROP, ResizeMethod.PAD, ResizeMethod.SQUISH])
def test_batches_lie_on_the_gpu(bunch, options, method):
    with SimulatedGPU() as gpu:
        data = bunch(get_transforms(**options), resize_method=method)
        with gpu.during('load'):
            for x,y in data.train: pass
        assert x.is_cuda and y.is_cuda and x.dtype==torch.float32
        assert sum(gpu.count('load').values())/len(data.train)<=.15, gpu.count('load')
        data.show_batch(rows=2)

@pytest.mark.slow
def test_the_path_of_2019(learner, bunch, tmp_path):
    "Rate finder, frozen, thawed, answers, errors with heat maps, export, and the model read where there is no GPU."
    with SimulatedGPU() as gpu:
        learn = learner('path', bunch(size=64), SMALL)
        before = weights_hash(learn.model)
        learn.lr_find(num_it=12)
        assert weights_hash(learn.model)==before
        learn.freeze(), fit(learn), learn.unfreeze(), fit(learn)
        for part in DatasetType: learn.get_preds(ds_type=part)
        learn.predict(learn.dls.valid_ds.items[0]), learn.TTA(), learn.validate(), learn.show_results(rows=2)
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(4, heatmap=True), interp.plot_confusion_matrix(), interp.most_confused()
        x,y = learn.dls.valid_dl.one_batch()
        assert len(grad_cam(learn.model, x[:2], y[:2]))==2
        learn.save('here'), learn.load('here'), learn.export()
        want = learn.get_preds()[0]
    again = load_learner(tmp_path/'path')
    again.data = bunch(size=64)
    assert not next(again.model.parameters()).is_cuda
    torch.testing.assert_close(again.get_preds()[0], want, rtol=0, atol=1e-6)

@pytest.mark.slow
def test_losses_with_weights(learner):
    from fastai.losses import CrossEntropyLossFlat,LabelSmoothingCrossEntropyFlat
    for loss in (CrossEntropyLossFlat(weight=torch.tensor([1., 2.])), LabelSmoothingCrossEntropyFlat()):
        with SimulatedGPU(): fit(learner(arch=SMALL, loss_func=loss)).get_preds(with_loss=True)

# ---- faults that must be seen

@pytest.mark.parametrize('fault', ['labels from ordinary memory', 'labels stay on the CPU', 'a number is read in each batch'])
def test_planted_faults(learner, fault, monkeypatch):

    sent = malaria_fastai.data.sent
    def labels(x, device):
        if x.dtype!=torch.int64: return sent(x, device)
        return x if fault=='labels stay on the CPU' else x.to(device)
    class Reads(Callback):
        def after_loss(self): float(self.loss_grad)
    if fault.startswith('labels'): monkeypatch.setattr(malaria_fastai.data, 'sent', labels)
    with SimulatedGPU() as gpu:
        phases = Phases(gpu)
        fit(learner(), callbacks=[phases, *[Reads()]*fault.startswith('a number')])
    assert sum(gpu.count('train').values())/phases.batches['train']>=1

# ---- how weights lie in memory

@pytest.mark.parametrize('arch,card,last', [('resnet18', (8, 0), True), ('resnet18', (7, 5), False), ('mobilenet_v2', (8, 0), False)])
def test_channels_last_where_it_helps(bunch, arch, card, last, tmp_path):
    def is_last(learn):
        weight = next(layer for layer in learn.model.modules() if isinstance(layer, nn.Conv2d)).weight
        return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    with SimulatedGPU(capability=card):
        make = lambda **options: cnn_learner(bunch(), arch, pretrained=False, path=tmp_path, **options)
        assert is_last(make())==last and is_last(make(channels_last=True)) and not is_last(make(channels_last=False))
        learn = fit(make().to_fp16())
        assert is_last(learn) # tensor cores want it so in half precision
    assert is_last(cnn_learner(bunch(), arch, pretrained=False, path=tmp_path)) # and so do processors
