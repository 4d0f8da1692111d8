"""Rows that are up to date for whoever reads them, by whatever way.

In dense mode the rows that were not in recent batches lag behind. Readers of parameters do not ask the
posterior: `parameters()`, averages, exporters and norms take the tensor itself. While a `RowAdam` drives
them, the rows are therefore of a class of their own, which brings them up to date before any torch
function sees their values. What looks at shape, dtype, gradient or hooks alone costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import ops
from ..posteriors.relay import RelayPosterior

_PROPERTIES = str.split("""
    grad _grad grad_fn requires_grad is_leaf retains_grad output_nr _version _backward_hooks
    _post_accumulate_grad_hooks shape ndim dtype device layout itemsize nbytes
    is_cuda is_cpu is_xpu is_mps is_meta is_sparse is_sparse_csr is_mkldnn is_quantized is_nested
""")
_METHODS = str.split("""
    size dim ndimension numel nelement stride storage_offset element_size get_device is_contiguous
    is_floating_point is_complex is_signed is_inference requires_grad_ register_hook
    register_post_accumulate_grad_hook _is_view __len__ __hash__
""")
# torch functions that do not look at values; our own backward, which needs rows of a past batch; and the
# ops as compiled code calls them, where the posterior has asked for the rows beforehand
_OF_TENSORS: Any = Tensor
_BLIND: frozenset[Any] = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
        *(getattr(Tensor, name) for name in _METHODS),
        *(_OF_TENSORS.grad.__set__, _OF_TENSORS.grad.__delete__),
        _OF_TENSORS.requires_grad.__set__,
        *(torch.is_floating_point, torch.is_complex, torch.numel),
        *(ops.relay_sample_bwd, ops.relay_sample_bwd.default),
        *(ops.relay_sample_fwd.default, ops.row_adam_catch_up.default),
    ]
)


class LiveRows(nn.Parameter):
    """The rows of a posterior while a `RowAdam` in dense mode drives them; copies are parameters."""

    _posterior: RelayPosterior

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func not in _BLIND and not torch.compiler.is_compiling():
                for rows in _live((args, kwargs)):
                    rows._settle()
            return func(*args, **kwargs)

    def _settle(self) -> None:
        optimizer: Any = self._posterior._row_optimizer
        # one that is lent to other rows, or set aside, leaves these as they are
        if optimizer is not None and optimizer.posterior is self._posterior:
            optimizer.before_read(None)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        if id(self) not in memo:
            values = self.data.clone(memory_format=torch.preserve_format)
            memo[id(self)] = nn.Parameter(values, self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter(self.data, self.requires_grad).__reduce_ex__(protocol)


def watch(posterior: RelayPosterior) -> None:
    """From now on the rows of a posterior are up to date for every reader."""
    if type(posterior.rows) is nn.Parameter:
        rows: Any = posterior.rows
        rows._posterior = posterior
        rows.__class__ = LiveRows


def let_go(rows: Tensor) -> None:
    """The rows are a plain parameter again."""
    if isinstance(rows, LiveRows):
        plain: Any = rows
        del plain._posterior
        plain.__class__ = nn.Parameter


def _live(values: Any) -> Iterator[LiveRows]:
    if isinstance(values, LiveRows):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _live(value)
    elif isinstance(values, dict):
        yield from _live(list(values.values()))
