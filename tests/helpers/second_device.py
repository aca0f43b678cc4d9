"""A made-up GPU: tensors that say they are on `cuda` and are computed on the CPU.

An operation on tensors of both devices raises an error, as on a real GPU. So code that forgets to
move a tensor is found without one.
"""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""Operations whose indices may be on the CPU."""
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
"""Operations between two devices."""


class OnGpu(torch.Tensor):
    """A tensor on the made-up GPU; `inner` has its values."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"OnGpu({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def on_gpu(tensor):
    """Return a tensor with the same values on the made-up GPU."""
    return OnGpu(tensor)


def compute(function, args, kwargs):
    """Compute an operation on the CPU, after a check of its devices."""
    name = function._schema.name
    device = kwargs.get("device")
    target = torch.device(device).type if device is not None else None
    checked = (*args[:1], *args[2:]) if name in INDEXED else args
    tensors = [t for t in tree_flatten((checked, kwargs))[0] if isinstance(t, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
    if there and here and name not in COPIES:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {name}"
        )

    def unwrap(value):
        if isinstance(value, OnGpu):
            return value.inner
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    found = function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if name == "aten::copy_" or function._schema.is_mutable:
        return args[0] if isinstance(found, torch.Tensor) else found
    on_cuda = target == "cuda" if target else bool(there) or isinstance(args[0], OnGpu)

    def wrap(value):
        return OnGpu(value) if isinstance(value, torch.Tensor) else value

    return tree_map(wrap, found) if on_cuda else found


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


@contextlib.contextmanager
def second_device():
    """Make `cuda` exist within the block, also for generators of random numbers."""
    generator = torch.Generator
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "Generator", lambda device="cpu": generator()))
        if not torch.cuda.is_available():  # else torch looks for a driver
            stack.enter_context(mock.patch.object(torch.cuda, "_lazy_init", lambda: None))
            # As torch's own FakeTensorMode does.
            torch._C._ensureCUDADeviceGuardSet()
            former = torch._C._only_lift_cpu_tensors()
            torch._C._set_only_lift_cpu_tensors(True)
            stack.callback(torch._C._set_only_lift_cpu_tensors, former)
        stack.enter_context(_Mode())
        yield CUDA
