"""A CUDA device of fake tensors: shapes, dtypes, devices and order are checked, nothing is computed.

CPU tensors stay real, so that the host plans as ever. Tensors "on cuda" are torch's FakeTensors, in which an operator
with wrong arguments, dtypes or devices raises as on a card. Needs torch's CUDA build, but neither a GPU nor a driver.

Small tensors whose values follow from the host, such as the grids of a vision tower, have a *twin*: the same values on
the CPU. A read of such a tensor by the host gets the true values, a read of any other a constant.
"""

import threading
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rehearsal.fake_streams import FakeEvent, FakeGraph, FakeStream, FakeStreams, RehearsalError
from rehearsal.traffic import Traffic

aten = torch.ops.aten

_MAX_TWIN_INTEGERS, _MAX_TWIN_FLOATS = 2**18, 2**13
_CUDA = torch.device("cuda", 0)
_UNSET = (aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided)
_INDEXED = (aten.index, aten.index_put_, aten.index_put, aten._unsafe_index)
# What the host reads where the value is unknown: any token, any probability.
_ANY_INTEGER, _ANY_FLOAT = 5, 0.5


class FakeCuda:
    """The device. ``with device.installed():`` makes it the machine's only CUDA device, for all threads of a pool.

    traffic: what the host did.
    """

    def __init__(self):
        self.traffic = Traffic()
        self.streams = FakeStreams()
        self._fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._lock = threading.RLock()

    @contextmanager
    def installed(self):
        """Replace torch's CUDA by this device in this block."""
        torch._C._ensureCUDADeviceGuardSet()
        with ExitStack() as stack:
            for owner, replacements in self._replacements():
                stack.enter_context(mock.patch.multiple(owner, create=True, **replacements))
            stack.enter_context(_Dispatch(self))
            yield self

    def enter_thread(self):
        """Use the device in the current thread until it ends; the initializer of a pool's threads."""
        _Dispatch(self).__enter__()

    def _replacements(self):
        streams = self.streams
        yield (
            torch.cuda,
            {
                "_lazy_init": lambda: None,
                "is_available": lambda: True,
                "device_count": lambda: 1,
                "synchronize": lambda device=None: self._wait("synchronize"),
                "Stream": FakeStream,
                "Event": FakeEvent,
                "CUDAGraph": lambda: _Graph(self),
                "current_stream": streams.current,
                "stream": streams.stream,
                "graph": streams.capture,
                "graph_pool_handle": object,
            },
        )
        yield torch, {"tensor": _tensor, "Generator": lambda device=None: _real_generator()}
        yield (
            FakeTensor,
            {
                "data_ptr": lambda tensor: tensor.untyped_storage()._cdata,
                "record_stream": _record_stream,
                "tolist": lambda tensor: self._read(tensor, "tolist").tolist(),
            },
        )

    # --- operators

    def run(self, func, args, kwargs):
        """Run an operator that has to do with the device."""
        with self._lock:
            if func in (aten._local_scalar_dense.default, aten.item.default):
                return self._read(args[0], "item").item()
            if func is aten._to_copy.default:
                return self._copy(func, args, kwargs, _device_of(kwargs.get("device")) or args[0].device)
            if func is aten.copy_.default:
                return self._copy_(*args, **kwargs)
            return self._launch(func, args, kwargs)

    def _launch(self, func, args, kwargs):
        if func.overloadpacket in _INDEXED:
            args = (args[0], self._indices(args[0], args[1]), *args[2:])
        kwargs = dict(kwargs)
        self._check_generator(func, kwargs.pop("generator", None))
        try:
            out = self._fake(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return self._of_known_values(func, args, kwargs)
        self._order(func, args, kwargs, out)
        self._update_twins(func, args, kwargs, out)
        return out

    def _of_known_values(self, func, args, kwargs):
        """Run an operator whose result has a size that depends on values; the host waits for the size."""
        self._wait(f"the size of {func.overloadpacket}")
        twins = _run_twins(func, args, kwargs, ())
        if twins is None:
            raise RehearsalError(f"{func} has a result of unknown size, and only the device knows it")
        out = tree_map(lambda x: _on_cuda(self, x), twins)
        self._order(func, args, kwargs, out)
        return out

    def _fake(self, func, args, kwargs):
        as_fake = self._fake_mode.from_tensor
        args, kwargs = tree_map(lambda x: as_fake(x) if _is_host(x) else x, (args, kwargs))
        with self._fake_mode:
            return func(*args, **kwargs)

    def _indices(self, tensor, indices) -> list:
        """Bring indices onto the device as torch does: from the host by a blocking copy, masks by their nonzeros."""
        found = []
        for index in indices:
            if _is_host(index):
                self._upload(index, is_blocking=True)
                index = _on_cuda(self, index)
            if isinstance(index, FakeTensor) and index.dtype in (torch.bool, torch.uint8):
                where = self._read(index, "the size of a mask", is_needed=True).nonzero(as_tuple=True)
                found.extend(_on_cuda(self, axis) for axis in where)
            else:
                found.append(index)
        return found

    def _check_generator(self, func, generator):
        """Raise RehearsalError inside a graph, which knows the default generator alone."""
        if generator is not None and self.streams.graph is not None:
            raise RehearsalError(f"{func} draws from a generator that the graph does not know")

    # --- order

    def _order(self, func, args, kwargs, out):
        """Count a kernel; check that what it reads was written before, and remember what it writes."""
        if func.is_view:
            return
        self.traffic.operators[str(func.overloadpacket)] += 1
        stream = self.streams.current()
        stream.num_done += 1
        read = _storages((args, kwargs))
        for storage in read:
            self._check_order(func, storage)
        written = _storages(out) + _storages(list(_mutated(func, args, kwargs)))
        for storage in written:
            storage.written = (stream, stream.num_done)
            if not hasattr(storage, "allocated_on"):
                is_captured = self.streams.graph is not None  # a graph's memory lives as long as the graph
                storage.allocated_on, storage.used_on = self.streams.default if is_captured else stream, {stream}
        if self.streams.graph is not None:
            self.streams.graph.add_operator(read, written)

    def _check_order(self, what: Any, storage: torch.UntypedStorage):
        """Raise RehearsalError for a race: a read before the write, or of memory that may be used again already."""
        stream = self.streams.current()
        if not stream.has_seen(*getattr(storage, "written", (stream, 0))):
            raise RehearsalError(f"{what} reads what another stream wrote, without waiting for it")
        # Memory of the default stream is taken to live as long as the engine, as weights do.
        if stream not in getattr(storage, "used_on", {stream}) and storage.allocated_on is not self.streams.default:
            raise RehearsalError(f"{what} reads memory of another stream that was not recorded for this one")

    # --- copies and waits

    def _copy(self, func, args, kwargs, device):
        source, is_blocking = args[0], not kwargs.get("non_blocking", False)
        if device.type != "cuda":
            dtype = kwargs.get("dtype") or source.dtype
            return self._read(source, "copy to the host").to(dtype, copy=True)
        if _is_host(source):
            self._upload(source, is_blocking, kwargs.get("dtype"))
        out = self._fake(func, args, {**kwargs, "device": _CUDA})
        self._order(func, args, kwargs, out)
        self._update_twins(func, args, kwargs, out)
        return out

    def _copy_(self, target, source, non_blocking=False):
        if _is_host(target):
            return target.copy_(self._read(source, "copy to the host"))
        if _is_host(source) and source.ndim:
            self._upload(source, not non_blocking, target.dtype)
        func, args = aten.copy_.default, (target, source)
        out = self._fake(func, args, {})
        self._order(func, args, {}, target)
        self._update_twins(func, args, {}, target)
        return out

    def _upload(self, source: torch.Tensor, is_blocking: bool, dtype: torch.dtype | None = None):
        """Count a copy to the device. A blocking copy converts on the host, another one on the device."""
        size = (dtype or source.dtype).itemsize if is_blocking else source.element_size()
        is_pinned = hasattr(source.untyped_storage(), "pinned")
        if self.streams.graph is not None and not is_pinned:
            raise RehearsalError("pageable memory is copied to the device inside a graph")
        self.traffic.add_upload(source.numel() * size, is_pinned)
        if is_blocking:
            self._wait("blocking copy to the device")

    def _read(self, tensor: torch.Tensor, reason: str, *, is_needed: bool = False) -> torch.Tensor:
        """Wait, and return the values on the CPU: the twin's, or a constant where there is none."""
        self._wait(reason)
        for storage in _storages(tensor):
            self._check_order(reason, storage)
        twin = _twin(tensor)
        if twin is None and is_needed:
            raise RehearsalError(f"{reason} decides a shape, and only the device knows it")
        if twin is not None:
            return twin
        return torch.full(tensor.shape, _ANY_FLOAT if tensor.is_floating_point() else _ANY_INTEGER, dtype=tensor.dtype)

    def _wait(self, reason: str):
        if self.streams.graph is not None:
            raise RehearsalError(f"the host waits ({reason}) inside a graph")
        stream = self.streams.current()
        stream.num_awaited = stream.num_done
        self.traffic.add_wait(reason)

    # --- twins

    def _update_twins(self, func, args, kwargs, out):
        twins = None if self.streams.graph is not None else _run_twins(func, args, kwargs, out)
        if twins is None:
            for tensor in _mutated(func, args, kwargs):
                tensor.untyped_storage().is_unknown = True
            return
        for tensor, twin in zip(tree_leaves(out), tree_leaves(twins), strict=True):
            if isinstance(tensor, FakeTensor):
                tensor.twin = twin


class _Dispatch(TorchDispatchMode):
    """Sends what touches the device to it, and runs all else on the CPU."""

    def __init__(self, device: FakeCuda):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(x, FakeTensor) or _is_cuda(x) for x in tree_leaves((args, kwargs))):
            return self.device.run(func, args, kwargs)
        if func is aten.is_pinned.default:
            return hasattr(args[0].untyped_storage(), "pinned")
        if func in (aten._pin_memory.default, aten.pin_memory.default):
            return _pinned(args[0].clone())
        return func(*args, **kwargs)


class _Graph(FakeGraph):
    """A graph whose replay counts as one operator."""

    def __init__(self, device: FakeCuda):
        super().__init__()
        self._device = device

    def replay(self):
        """Check the graph, and count its launch."""
        self.check_replay()
        self._device.traffic.operators["graph"] += 1


_real_tensor, _real_generator = torch.tensor, torch.Generator


def _tensor(data, *, dtype=None, device=None, pin_memory=False, requires_grad=False):
    """Stands for torch.tensor, which copies to the device below the reach of a dispatch mode."""
    with torch.device("cpu"):
        made = _real_tensor(data, dtype=dtype, requires_grad=requires_grad)
    made = _pinned(made) if pin_memory else made
    return made.to(torch.empty(0).device if device is None else device)


def _record_stream(tensor: torch.Tensor, stream: FakeStream):
    """Stands for Tensor.record_stream: memory is not used again before the stream has passed this point."""
    tensor.untyped_storage().used_on.add(stream)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    tensor.untyped_storage().pinned = True
    return tensor


def _device_of(given: Any) -> torch.device | None:
    return None if given is None else torch.device(given)


def _is_cuda(x: Any) -> bool:
    return isinstance(x, torch.device) and x.type == "cuda"


def _is_host(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)


def _on_cuda(device: FakeCuda, tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake copy with a twin, without counting it."""
    out = device._fake(aten.empty.memory_format, (tensor.shape,), {"dtype": tensor.dtype, "device": _CUDA})
    out.twin = tensor
    return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, FakeTensor)]


def _mutated(func, args, kwargs):
    """Yield the tensors that an operator writes to."""
    for argument, given in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (x for x in tree_leaves(given) if isinstance(x, FakeTensor))
    if isinstance(kwargs.get("out"), FakeTensor):
        yield kwargs["out"]


def _twin(x: Any) -> torch.Tensor | None:
    """Return the values of a tensor on the CPU, None if only the device knows them."""
    if _is_host(x):
        return x
    return None if hasattr(x.untyped_storage(), "is_unknown") else getattr(x, "twin", None)


def _run_twins(func, args, kwargs, out):
    """Run an operator on the twins; return None if one is missing, or the result is large or random."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    is_random = torch.Tag.nondeterministic_seeded in func.tags or func.overloadpacket in _UNSET
    if is_random or not _is_small(out) or any(_twin(x) is None for x in tensors):
        return None
    as_twin = {id(x): _twin(x) for x in tensors}
    args, kwargs = tree_map(
        lambda x: torch.device("cpu") if _is_cuda(x) else as_twin.get(id(x), x) if isinstance(x, torch.Tensor) else x,
        (args, kwargs),
    )
    return func(*args, **{name: value for name, value in kwargs.items() if name != "pin_memory"})


def _is_small(tree: Any) -> bool:
    return all(
        x.numel() <= (_MAX_TWIN_FLOATS if x.is_floating_point() else _MAX_TWIN_INTEGERS)
        for x in tree_leaves(tree)
        if isinstance(x, torch.Tensor)
    )
