"""A GPU for machines without one, as far as Python can tell.

    with SimulatedGPU() as gpu:
        learn.fit(1)             # torch.cuda.is_available() is True; what is moved to 'cuda' says so and is watched
    gpu.waits                    # every time the program would have stood still until the GPU was done: (phase, what, place)

Tensors stay in ordinary memory; a storage that "lies on the GPU" is marked. Two of torch's own hooks do the rest. A TorchFunctionMode
sees what Python asks of a tensor (its device, a copy to another one, its numbers as an array). A TorchDispatchMode sees every kernel,
those of the backward pass too: it refuses inputs from two devices where CUDA refuses them, marks what comes out, and notes what would
wait. Random kernels of the GPU draw from a generator of its own, so that a program which saves or seeds the CPU's alone ends elsewhere.

It cannot see other arithmetic (cuDNN, atomics, TF32), memory, speed, streams, and C++ code that asks a tensor for its device."""
import sys
from collections import Counter
from contextlib import ExitStack,contextmanager
from unittest.mock import patch
import torch
import torch._dynamo # lists torch's functions when it is imported, and must not find ours among them
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device('cuda', 0)
# The answer's size or value must be known on the CPU: it waits for the GPU. From torch/csrc and native/cuda, torch 2.6 to 2.14.
WAITING = {'_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'bincount', 'histc', '_unique2', 'unique_dim', 'unique_consecutive', 'is_nonzero',
           'repeat_interleave', '_linalg_solve_ex', 'linalg_inv_ex', '_linalg_check_errors'}
RANDOM = {'rand', 'randn', 'randint', 'randperm', 'rand_like', 'randn_like', 'randint_like', 'bernoulli', 'bernoulli_', 'uniform', 'uniform_', 'normal',
          'normal_', 'random_', 'exponential_', 'multinomial', 'native_dropout', 'log_normal_', 'geometric_', 'cauchy_'}
COPYING = {'copy_', '_to_copy', 'lift_fresh', 'lift_fresh_copy', 'set_'}
# Elementwise kernels of CUDA take a single number that lies on the CPU; these take none.
STRICT = {'_fused_adamw_', '_fused_adam_', '_fused_sgd_', 'gather', 'scatter', 'scatter_', 'index_select', 'embedding', 'native_batch_norm', 'convolution',
          '_native_batch_norm_legit', '_native_batch_norm_legit_functional', 'addmm', 'mm', 'cat', 'nll_loss_forward', 'nll_loss_backward'}
INDEXING = {'index', 'index_put', 'index_put_', '_index_put_impl_'}
TWO_DEVICES = 'Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!'
QUESTIONS = {getattr(torch.Tensor, name).__get__.__self__: name for name in ('device', 'is_cuda', 'is_cpu', 'grad')}

def tensors(tree): return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

def saved_tensors(thing):
    "Those in a state: of a model, of an optimizer, in dicts and lists."
    if isinstance(thing, torch.nn.Module): thing = thing.state_dict()
    return tensors(thing)

def is_gpu(device):
    "Whether `device`, whatever it is given as, is the GPU; None where nothing is said."
    if device is None: return None
    return isinstance(device, int) or torch.device(device).type=='cuda'

class Storages:
    "A set of storages that forgets those which are gone."
    def __init__(self): self.found = {}
    def has(self, tensor):
        try: key = tensor.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError): return False # sparse, meta: there is none
        reference = self.found.get(key)
        return reference is not None and not reference.expired()
    def put(self, tensor, belongs=True):
        storage = tensor.untyped_storage()
        if belongs: self.found[storage._cdata] = StorageWeakRef(storage)
        else: self.found.pop(storage._cdata, None)
        if len(self.found)>20_000: self.found = {key: one for key,one in self.found.items() if not one.expired()}
        return tensor

class Asked(TorchFunctionMode):
    "What Python asks of tensors."
    def __init__(self, gpu): self.gpu = gpu
    def __torch_function__(self, function, types, args=(), kwargs=None): return self.gpu.asked(function, args, dict(kwargs or {}))

class Kernels(TorchDispatchMode):
    "What is computed."
    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu
    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None): return self.gpu.compute(kernel, args, dict(kwargs or {}))

class SimulatedGPU:
    "One T4. Give `states`, how many generators `torch.cuda.get_rng_state_all` answers with, to be a machine with several."
    def __init__(self, name='Tesla T4 (simulated)', capability=(7, 5), states=1):
        self.name,self.capability,self.states = name,capability,states
        self.on_gpu,self.pinned = Storages(),Storages()
        self.generator = torch.Generator()
        self.generator.manual_seed(0)
        self.phase,self.making,self.bf16 = '',None,False
        self.events,self.saved = [],{}

    # ---- what happened
    def place(self):
        "The innermost line outside torch and this file: the library's, where there is one."
        lines,frame = [],sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name!=__file__ and '/torch/' not in name and not name.endswith('contextlib.py'): lines.append((name, frame.f_lineno))
            frame = frame.f_back
        ours = [line for line in lines if '/malaria_fastai/' in line[0]]
        name,number = (ours or lines)[0]
        return f"{'/'.join(name.split('/')[-2:])}:{number}"
    def note(self, kind, what): self.events.append((kind, self.phase, what, self.place()))
    def of_kind(self, kind): return [event[1:] for event in self.events if event[0]==kind]
    @property
    def waits(self): return self.of_kind('wait')
    @property
    def hazards(self): return self.of_kind('hazard')
    def count(self, phase): return Counter((what, place) for when,what,place in self.waits if when==phase)
    @contextmanager
    def during(self, phase):
        before,self.phase = self.phase,phase
        try: yield
        finally: self.phase = before

    # ---- what Python asks
    def asked(self, function, args, kwargs):
        name,tensor = getattr(function, '__name__', ''),args[0] if args and isinstance(args[0], torch.Tensor) else None
        if tensor is None or name in ('as_tensor', 'tensor'): return self.made(function, args, kwargs)
        question = QUESTIONS.get(getattr(function, '__self__', None)) if name in ('__get__', '__set__') else None
        if question=='device': return GPU if self.on_gpu.has(tensor) else function(*args, **kwargs)
        if question in ('is_cuda', 'is_cpu'): return self.on_gpu.has(tensor)==(question=='is_cuda')
        if question=='grad' and name=='__set__' and isinstance(args[1], torch.Tensor) and self.on_gpu.has(tensor)!=self.on_gpu.has(args[1]):
            raise RuntimeError('assigned grad has data located on a different device')
        answer = getattr(self, f'asked_{name}', None)
        if answer: return answer(function, tensor, args[1:], kwargs)
        return self.made(function, args, kwargs)

    def asked_to(self, function, tensor, args, kwargs):
        "A copy on another device, of another type, or both."
        kwargs = dict(kwargs)
        for value,name in zip([o for o in args if isinstance(o, bool)], ('non_blocking', 'copy')): kwargs[name] = value
        for value in args:
            if isinstance(value, torch.Tensor): kwargs |= dict(device=value.device, dtype=value.dtype)
            elif isinstance(value, torch.dtype): kwargs['dtype'] = value
            elif value is not None and not isinstance(value, bool): kwargs['device'] = value
        was,will = self.on_gpu.has(tensor),is_gpu(kwargs.pop('device', None))
        will = was if will is None else will
        waits_not = kwargs.pop('non_blocking', False)
        kwargs['copy'] = kwargs.get('copy', False) or was!=will
        if kwargs.get('dtype') is None: kwargs['dtype'] = tensor.dtype
        out = torch.Tensor.to(tensor, **kwargs)
        if was!=will: self.moved(tensor, will, waits_not)
        return self.on_gpu.put(out, will)
    def asked_cpu(self, function, tensor, args, kwargs): return self.asked_to(function, tensor, ('cpu',), {})
    def asked_cuda(self, function, tensor, args, kwargs): return self.asked_to(function, tensor, (GPU,), kwargs)
    def asked_type_as(self, function, tensor, args, kwargs): return self.asked_to(function, tensor, args, {})

    def asked_numpy(self, function, tensor, args, kwargs):
        if self.on_gpu.has(tensor):
            if not kwargs.get('force'): raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
            self.note('wait', 'numpy')
        return function(tensor, *args, **kwargs)
    asked___array__ = asked_numpy

    def asked_tolist(self, function, tensor, args, kwargs):
        if self.on_gpu.has(tensor): self.note('wait', 'tolist')
        return function(tensor)

    def asked_pin_memory(self, function, tensor, args, kwargs):
        if self.on_gpu.has(tensor): raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned")
        return self.pinned.put(tensor.clone())
    def asked_is_pinned(self, function, tensor, args, kwargs): return self.pinned.has(tensor)

    def asked___deepcopy__(self, function, tensor, args, kwargs):
        with self.away(): out = function(tensor, *args, **kwargs)
        if self.on_gpu.has(tensor):
            for copied in (out, out.grad):
                if copied is not None: self.on_gpu.put(copied)
        return out

    def made(self, function, args, kwargs):
        "A function that may be told `device=`."
        gpu = is_gpu(kwargs.get('device')) if getattr(function, '__name__', '') not in ('device', '_parse_to') else None
        if gpu is None: return function(*args, **kwargs)
        if function is torch.as_tensor and args and isinstance(args[0], torch.Tensor):
            return args[0].to(kwargs['device'], dtype=kwargs.get('dtype') or args[0].dtype)
        if gpu and kwargs.get('pin_memory'): raise RuntimeError('only dense CPU tensors can be pinned')
        before,self.making = self.making,gpu
        try: out = function(*args, **{**kwargs, 'device': 'cpu'})
        finally: self.making = before
        if gpu and function is torch.tensor: self.note('wait', 'torch.tensor(…, device=cuda)') # its numbers are copied from ordinary memory
        return self.on_gpu.put(out, gpu) if isinstance(out, torch.Tensor) else out

    def moved(self, tensor, to_gpu, waits_not):
        what = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} to the {'GPU' if to_gpu else 'CPU'}"
        if not waits_not: self.note('wait', f'copy of {what}')
        elif not to_gpu: self.note('hazard', f'copy of {what} that may be read before it is there')
        elif not self.pinned.has(tensor): self.note('staged', f'copy of {what} from memory that is not pinned')

    # ---- what is computed
    def compute(self, kernel, args, kwargs):
        name = kernel._schema.name.split('::')[-1]
        inputs = tensors((args, kwargs))
        where = [self.on_gpu.has(tensor) for tensor in inputs]
        device = is_gpu(kwargs.get('device'))
        if device: kwargs['device'] = torch.device('cpu')
        target = self.making if self.making is not None else any(where) if inputs else bool(device)
        if name=='copy_':
            target = where[0]
            if len(set(where))==2: self.moved(inputs[1], where[0], kwargs.get('non_blocking', args[2] if len(args)>2 else False))
        elif len(set(where))==2: self.two_devices(kernel, name, args, kwargs, inputs)
        if name=='set_': return kernel(*args, **kwargs) # another storage, whose mark stays what it is
        if any(where): self.note_waiting(name, inputs)
        if name=='convolution' and self.bf16 and any(where) and self.capability<(8, 0):
            raise RuntimeError('GET was unable to find an engine to execute this computation')
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        with self.drawing(name in RANDOM and target): out = kernel(*args, **kwargs)
        for tensor in tensors(out):
            if tensor.untyped_storage()._cdata not in known: self.on_gpu.put(tensor, target(tensor) if callable(target) else bool(target))
        return out

    def note_waiting(self, name, inputs):
        masks = name in INDEXING and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in inputs[1:])
        if name in WAITING or masks: self.note('wait', name)

    def two_devices(self, kernel, name, args, kwargs, inputs):
        "Refuse inputs from two devices, but for what CUDA allows: copies, single numbers and indices that lie on the CPU."
        if name in COPYING: return
        strangers = [tensor for tensor in inputs if not self.on_gpu.has(tensor)]
        given = {**{argument.name: value for argument,value in zip(kernel._schema.arguments, args)}, **kwargs}
        written = [given.get(argument.name) for argument in kernel._schema.arguments if argument.alias_info and argument.alias_info.is_write]
        if name in INDEXING and self.on_gpu.has(inputs[0]):
            for tensor in strangers: self.note('wait', f'{name}: indices {tuple(tensor.shape)} that lie on the CPU')
            return
        on_cpu = any(not self.on_gpu.has(tensor) for tensor in tensors(written))
        if on_cpu or name in STRICT or any(tensor.ndim for tensor in strangers): raise RuntimeError(f'{TWO_DEVICES} ({name})')

    @contextmanager
    def drawing(self, on_gpu):
        "Random kernels of the GPU draw from its own generator."
        if not on_gpu:
            yield
            return
        kept = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generator.get_state())
        try: yield
        finally:
            self.generator.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(kept)

    # ---- torch.cuda and its neighbours
    def answers(self):
        "Functions of torch.cuda, by name."
        seed = lambda number: self.generator.manual_seed(int(number)) and None
        nothing = lambda *args, **kwargs: None
        def set_states(states):
            if len(states)>self.states: raise RuntimeError(f'CUDA error: invalid device ordinal (of {self.states})')
            self.generator.set_state(states[0])
        return dict(is_available=lambda: True, device_count=lambda: self.states, current_device=lambda: 0, is_initialized=lambda: True,
            get_device_name=lambda *args: self.name, get_device_capability=lambda *args: self.capability, manual_seed=seed, manual_seed_all=seed,
            seed=nothing, seed_all=nothing, get_rng_state=lambda *args: self.generator.get_state(), set_device=nothing, empty_cache=nothing,
            set_rng_state=lambda state, *args: self.generator.set_state(state) and None, set_rng_state_all=set_states,
            get_rng_state_all=lambda: [self.generator.get_state() for _ in range(self.states)],
            synchronize=lambda *args: self.note('wait', 'synchronize'), is_bf16_supported=lambda including_emulation=True: including_emulation or self.capability>=(8, 0),
            _lazy_init=nothing, init=nothing, _is_in_bad_fork=lambda: False)

    def autocast(self):
        "The CPU's half precision stands for the GPU's."
        gpu = self
        class Autocast(torch.autocast):
            def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
                self.for_gpu = device_type=='cuda'
                self.bf16 = self.for_gpu and enabled and dtype==torch.bfloat16
                super().__init__('cpu' if self.for_gpu else device_type, torch.bfloat16 if self.for_gpu else dtype, enabled, cache_enabled)
            def __enter__(self):
                self.before,gpu.bf16 = gpu.bf16,gpu.bf16 or self.bf16
                return super().__enter__()
            def __exit__(self, *error):
                gpu.bf16 = self.before
                return super().__exit__(*error)
        return Autocast

    def saving(self):
        "torch.save and torch.load, which know where the tensors of a file lay."
        save,load = torch.save,torch.load
        def save_noted(thing, file, *args, **kwargs):
            self.saved[str(file)] = any(map(self.on_gpu.has, saved_tensors(thing)))
            return save(thing, file, *args, **kwargs)
        def load_noted(file, map_location=None, *args, **kwargs):
            lay = self.saved.get(str(file), False)
            if lay and map_location is None: self.note('hazard', 'tensors of the GPU are read without map_location: this fails on a machine without one')
            with self.away(): thing = load(file, 'cpu', *args, **kwargs)
            named = map_location if isinstance(map_location, (str, int, torch.device)) else None
            if is_gpu(named) or (lay and map_location is None):
                for tensor in saved_tensors(thing): self.on_gpu.put(tensor)
            return thing
        return dict(save=save_noted, load=load_noted)

    def grouping(self):
        "How torch's optimizers sort tensors by device, which they ask of C++."
        group = torch.optim.Optimizer._group_tensors_by_device_and_dtype
        def group_marked(lists, with_indices=False):
            groups = {}
            for (device,dtype),found in group(lists, with_indices).items():
                first = next(tensor for tensor in tensors(found[0]))
                groups[GPU if self.on_gpu.has(first) else device, dtype] = found
            return groups
        return staticmethod(group_marked)

    def beside(self, method):
        "A method of DistributedDataParallel, whose C++ makes its buckets where it believes the weights to lie; what it counts lies on the CPU."
        def made_on_gpu(parallel, *args, **kwargs):
            before,self.making = self.making,lambda tensor: tensor.is_floating_point()
            try: return method(parallel, *args, **kwargs)
            finally: self.making = before
        return made_on_gpu

    @contextmanager
    def away(self):
        "Plain torch inside."
        from torch.utils._python_dispatch import _disable_current_modes
        with torch._C.DisableTorchFunction(), _disable_current_modes(): yield

    def __enter__(self):
        import fastai.callback.fp16
        self.stack = ExitStack()
        autocast = self.autocast()
        replaced = [(torch.cuda, name, new) for name,new in self.answers().items()] + [(torch, name, new) for name,new in self.saving().items()]
        replaced += [(module, 'autocast', autocast) for module in (torch, torch.amp, fastai.callback.fp16)]
        # the optimizers of torch ask the driver whether a CUDA graph is captured
        health = [name for name in vars(torch.optim.Optimizer) if name.endswith('_graph_capture_health_check')]
        replaced += [(torch.optim.Optimizer, name, lambda self: None) for name in health]
        replaced += [(torch.optim.Optimizer, '_group_tensors_by_device_and_dtype', self.grouping())]
        parallel = torch.nn.parallel.DistributedDataParallel
        replaced += [(parallel, name, self.beside(getattr(parallel, name))) for name in ('_ddp_init_helper', '_pre_forward')]
        for module,name,new in replaced: self.stack.enter_context(patch.object(module, name, new))
        for mode in (Kernels(self), Asked(self)): self.stack.enter_context(mode)
        return self

    def __exit__(self, *error): self.stack.close()
