"""A GPU that is none: its tensors lie on the CPU, keep their values, and say that they are on ``cuda:0``.

Every call of torch is looked at, with the line of this project it comes from: what would fail on a GPU (tensors of two
devices, a generator of the wrong one), what copies from the host, and what makes the host wait. Tensors without values
(torch's fake ones) would not do: the code branches on values on the CPU.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)
ROOT = f"{Path(__file__).resolve().parents[1]}/"
_PLAIN = torch._C.DisableTorchFunctionSubclass

_WAITS = {
    "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "is_nonzero", "equal", "nonzero",
    "bincount", "unique", "_unique2", "unique_consecutive", "masked_select", "linalg_inv", "linalg_svdvals",
}  # fmt: skip
_INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}
_MIXING_ALLOWED = {"set_", "__set__", "backward", "grad", "__get__"}
_SAME_DEVICE = {"cat", "stack", "concat"}  # not even a single number may lie elsewhere
_DRAWING = {"rand", "randn", "randint", "randperm", "normal_", "uniform_", "bernoulli", "bernoulli_", "multinomial"}


class OnGpu(Tensor):
    """A tensor that pretends."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class ParameterOnGpu(OnGpu, nn.Parameter):
    """A weight that pretends."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendGpu(TorchFunctionMode):
    """What would go wrong on a GPU (``faults``), and where it is copied to and waited for, each by file and line."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator["PretendGpu"]:
        """All of the block's torch calls; ``module.to(GPU)`` marks weights and buffers, and nothing else of it."""
        moving, grouped = nn.Module.to, clip_grad._group_tensors_by_device_and_dtype

        def to(module: nn.Module, *args: Any, **keywords: Any) -> nn.Module:
            if _is_gpu(args[0] if args else keywords.get("device")):
                for part in module.modules():
                    for tensor in (*part._parameters.values(), *part._buffers.values()):
                        _mark(tensor)
                return module
            return moving(module, *args, **keywords)

        def by_device(lists: Any) -> Any:  # torch finds devices by itself here
            return {
                (_device(there[0][0]), kind): (there, *more) for (_, kind), (there, *more) in grouped(lists).items()
            }

        nn.Module.to = to  # type: ignore[method-assign, assignment]
        clip_grad._group_tensors_by_device_and_dtype = by_device
        try:
            with self:
                yield self
        finally:
            nn.Module.to = moving  # type: ignore[method-assign]
            clip_grad._group_tensors_by_device_and_dtype = grouped

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One call of torch."""
        keywords = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return _device(args[0])
        if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return isinstance(args[0], OnGpu)
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._to(function, args, keywords)
        there, here = _by_device([*args, *keywords.values()])
        made = _is_gpu(keywords.get("device"))
        if made:
            del keywords["device"]
        self._look(name, args, keywords, there, here, made)
        given = _called(function, args, keywords)
        elsewhere = keywords.get("device") is not None or name in ("numpy", "tolist", "item")
        return _marked(given) if (made or there) and not elsewhere else given

    def _look(
        self, name: str, args: tuple[Any, ...], keywords: Mapping[str, Any], there: list[Tensor], here: list[Tensor],
        made: bool,
    ) -> None:  # fmt: skip
        first = args[0] if args else None
        generator = keywords.get("generator")
        if (made or there) and generator is not None and generator.device.type == "cpu":
            self.faults[f"{_where()}: {name} on the GPU by a CPU's generator"] += 1
        if (made and name in ("tensor", "as_tensor")) or (there and name == "new_tensor"):
            self.copies[_where()] += 1
        if there and here and keywords.get("device") is None:
            self._mix(name, first, [t for t in here if t.ndim or name in _SAME_DEVICE])
        if not there:
            return
        by_mask = name in _INDEXING and isinstance(first, OnGpu) and _has_mask(args[1])
        counting = (name == "where" and len(args) == 1) or (
            name == "repeat_interleave" and len(there) > 1 and keywords.get("output_size") is None
        )
        if by_mask or counting or (name in _WAITS and (isinstance(first, OnGpu) or not isinstance(first, Tensor))):
            self.waits[f"{_where()}: {'a mask as index' if by_mask else name}"] += 1

    def _mix(self, name: str, first: Any, here: list[Tensor]) -> None:
        """Tensors of both devices in one call; single numbers of the CPU go along with most."""
        if name == "copy_" or (name in _INDEXING and isinstance(first, OnGpu)):
            if isinstance(first, OnGpu):
                self.copies[_where()] += max(1, len(here))
            else:
                self.waits[f"{_where()}: copied to the CPU"] += 1
        elif here and name not in _MIXING_ALLOWED:
            self.faults[f"{_where()}: {name} of tensors on the GPU and on the CPU"] += 1

    def _to(self, function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """``tensor.to(...)`` and its like: the only way between the devices that is meant."""
        tensor, *rest = args
        target: Any = {Tensor.cpu: "cpu", Tensor.cuda: GPU}.get(function, keywords.pop("device", None))
        if rest and isinstance(rest[0], Tensor):
            target, rest[0] = GPU if isinstance(rest[0], OnGpu) else "cpu", rest[0].dtype
        elif rest and isinstance(rest[0], str | torch.device):
            target = rest.pop(0)
        keywords.pop("non_blocking", None)
        if target is not None and torch.device(target).type == "meta":
            return _called(function, args, {**keywords})
        with _PLAIN():
            found = Tensor.to(tensor, *rest, **keywords) if rest or keywords else tensor
            if found is tensor and (_is_gpu(target) != isinstance(tensor, OnGpu)) and target is not None:
                found = tensor.detach().clone()
        if target is None:
            return _marked(found) if isinstance(tensor, OnGpu) else found
        if not _is_gpu(target):
            if isinstance(tensor, OnGpu):
                self.waits[f"{_where()}: copied to the CPU"] += 1
                with _PLAIN():
                    return found.detach().as_subclass(Tensor)
            return found
        if not isinstance(tensor, OnGpu):
            self.copies[_where()] += 1
        return _mark(found)


def _where() -> str:
    """The innermost line of this project, and the library's where it is within one."""
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(__file__)]
    own = [frame for frame in frames if frame.filename.startswith(ROOT) and "site-packages" not in frame.filename]
    last = next((frame for frame in reversed(frames) if "/torch/" not in frame.filename), None)
    found = f"{own[-1].filename.removeprefix(ROOT)}:{own[-1].lineno}" if own else "?"
    if last is not None and "site-packages/" in last.filename:
        found += f" (in {last.filename.split('site-packages/')[1]}:{last.lineno})"
    return found


def _called(function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    with _PLAIN():
        return function(*args, **keywords)


def _device(tensor: Tensor) -> torch.device:
    with _PLAIN():
        return GPU if isinstance(tensor, OnGpu) else torch.device(tensor.device)


def _is_gpu(device: Any) -> bool:
    return device is not None and isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


def _by_device(given: Iterable[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors in ``given``, however deep, that pretend, and those that do not."""
    there: list[Tensor] = []
    here: list[Tensor] = []
    for each in given:
        if isinstance(each, Tensor):
            (there if isinstance(each, OnGpu) else here).append(each)
        elif isinstance(each, list | tuple | dict):
            more = _by_device(each.values() if isinstance(each, dict) else each)
            there += more[0]
            here += more[1]
    return there, here


def _mark(tensor: Any) -> Any:
    """The same object, pretending from now on."""
    if type(tensor) is nn.Parameter:
        tensor.__class__ = ParameterOnGpu
    elif type(tensor) is Tensor:
        with _PLAIN():
            if tensor.device.type == "cpu":
                tensor.__class__ = OnGpu
    return tensor


def _marked(given: Any) -> Any:
    if isinstance(given, Tensor):
        return _mark(given)
    if isinstance(given, list | tuple | dict):
        for each in given.values() if isinstance(given, dict) else given:
            _marked(each)
    return given
