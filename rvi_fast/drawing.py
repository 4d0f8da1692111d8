"""Random numbers from a generator of one's own where torch would take those of the process.

What a module draws, first values and dropout among them, comes from torch's default generators, which
all threads share: a thread that seeds, saves or restores them changes the numbers of all others. Within
`drawing_from` it comes from a generator given there, in this thread alone, and is what the default
generator gives after `torch.manual_seed` of the same seed.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, normalization
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

# modules of torch that draw while they train, and those that never do
_TRAINING = {kind for kind in vars(dropout).values() if isinstance(kind, type)} | {nn.RReLU}
_QUIET = {
    kind
    for module in (activation, batchnorm, conv, instancenorm, normalization)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module)
}
_QUIET |= {nn.Bilinear, nn.Flatten, nn.Identity, nn.Linear, nn.ModuleList, nn.Sequential}
_QUIET |= {nn.Unflatten, nn.Upsample}
_QUIET -= {nn.Module, nn.MultiheadAttention, *_TRAINING}

# tagged as if they drew
_MISTAGGED = {"aten::_fused_sdp_choice", "aten::_nested_tensor_softmax_with_shape"}

# what an op draws with: the overload that takes a generator, or that it takes none, or draws nothing
_Form = torch._ops.OpOverload | bool
_forms: dict[Any, _Form] = {}


class Drawing(TorchDispatchMode):
    """Within it every op that draws, and is given no generator, draws from one of this object.

    The mode holds in the thread that has entered it, backward passes included. It does not look into
    compiled code, but gives that its seeds.

    Args:
        source: a seed, for a generator on each device that something is drawn on, as
            `torch.manual_seed` seeds them; or a generator, for its device alone.

    Raises:
        RuntimeError: within it, where an op draws that no generator can be given to; or where something
            is drawn while a backward pass computes a forward again, as `torch.utils.checkpoint` does,
            which would be other numbers than those of the forward.
    """

    def __init__(self, source: int | torch.Generator) -> None:
        super().__init__()
        self._generators: dict[torch.device, torch.Generator] = {}
        self._given = source if isinstance(source, torch.Generator) else None
        self._seed = 0 if isinstance(source, torch.Generator) else source

    def reseed(self, seed: int) -> None:
        """Begins the stream of another seed, with the same generators."""
        self._seed = seed
        for generator in self._generators.values():
            generator.manual_seed(seed)

    def generator(self, device: torch.device) -> torch.Generator:
        """What draws on a device."""
        if self._given is not None:
            return self._given
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def state(self, device: torch.device) -> dict[str, Tensor]:
        """Where the generators of the CPU and of `device` stand, by kind of device."""
        devices = dict.fromkeys((torch.device("cpu"), device))
        return {device.type: self.generator(device).get_state() for device in devices}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the generators back to what `state` has returned."""
        for kind, held in state.items():
            self.generator(torch.device(kind)).set_state(held.cpu())

    # those of the base class keep flags of the whole process, which threads leave wrong

    def __enter__(self) -> Drawing:
        if "torch._dynamo" in sys.modules and "__torch_dispatch__" not in vars(self):
            # between the compiled parts of a decoder the compiler would look into this mode
            uncompiled = torch.compiler.disable(type(self).__torch_dispatch__)
            self.__dict__["__torch_dispatch__"] = MethodType(uncompiled, self)
        _push_mode(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _pop_mode()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # to say so of `__torch_dispatch__` would import the compiler at the first op
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        form = _forms.get(func)
        if form is None:
            form = _forms[func] = _form_of(func)
        if form is False:
            return func(*args, **kwargs)
        return self._draw(func, form, args, kwargs)

    def _draw(self, func: Any, form: _Form, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        device = _device_of(given)
        if given.get("generator") is not None or device.type == "meta":
            return func(*args, **kwargs)
        shares = [given[name] for name in ("p", "dropout_p", "dropout") if name in given]
        if form is True and (given.get("train") is False or 0 in shares):
            return func(*args, **kwargs)
        if torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled():
            raise RuntimeError(
                f"{func}: expected nothing to be drawn where a backward pass computes a forward "
                "again: the numbers would be others; leave dropout out of torch.utils.checkpoint"
            )
        if not isinstance(form, bool):
            given.pop("generator", None)
            kept = [argument for argument in form._schema.arguments if argument.name in given]
            return form(
                *(given[argument.name] for argument in kept if not argument.kwarg_only),
                **{argument.name: given[argument.name] for argument in kept if argument.kwarg_only},
                generator=self.generator(device),
            )
        if func is torch.ops.aten.native_dropout.default:
            return _dropout(args[0], args[1], self.generator(device))
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        raise RuntimeError(
            f"{func}: expected an op that can be given a generator: it draws from torch's default "
            "generator alone, which all threads share. Attention can: use "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or no dropout within it"
        )


def drawing_from(source: int | torch.Generator | None) -> AbstractContextManager[Any]:
    """A context in which what is drawn comes from `source`, see `Drawing`; None leaves all as it is."""
    return nullcontext() if source is None else Drawing(source)


def may_draw(module: nn.Module, *, training: bool, quiet: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether a call of the module could draw random numbers, as far as the kinds of its parts tell.

    Args:
        module: with all its parts.
        training: whether it is called in training mode.
        quiet: kinds known not to draw, beside those of torch.
    """
    return any(
        (
            type(part) not in _QUIET
            and type(part) not in quiet
            and (training or type(part) not in _TRAINING)
        )
        or "forward" in vars(part)
        or bool(part._forward_hooks or part._forward_pre_hooks)
        or bool(part._backward_hooks or part._backward_pre_hooks)
        for part in module.modules()
    )


def _form_of(func: Any) -> _Form:
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func
    packet = func.overloadpacket
    for overload in packet.overloads():
        found = [argument.name for argument in getattr(packet, overload)._schema.arguments]
        if "generator" in found and [name for name in found if name != "generator"] == names:
            return getattr(packet, overload)
    return torch.Tag.nondeterministic_seeded in func.tags and func._schema.name not in _MISTAGGED


def _device_of(given: dict[str, Any]) -> torch.device:
    """Where an op works that is called with these arguments."""
    for value in given.values():
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, Tensor):
                return part.device
    return torch.device(given.get("device") or "cpu")


def _dropout(x: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Dropout and which entries are kept, as `aten::native_dropout`."""
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1.0 - share, generator=generator)
    scale = 0.0 if share == 1.0 else 1.0 / (1.0 - share)
    return x * kept * scale, kept
