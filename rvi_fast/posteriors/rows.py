"""Posteriors that own a row for each datapoint: who holds the rows, where they lie, how they are kept.

What the numbers of a row mean, and what is shared beside them, is `RelayPosterior`'s.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

from .. import _checks, reference
from .._devices import beside, device_row
from ..functional.relay_sample import RelaySample
from ..layout import FORMS, RowLayout
from ..memory.room import check_memory
from ..ops import check_rows_read
from .base import Posterior
from .tables import HostTables, MappedTables, Tables

# rows read at once when a whole table is asked for, and drawn at once
_CHUNK, _DRAWN = 8192, 65536
# within it rows are read as they are: `_before_read` has been told which ones, and a `RowAdam` need not
# bring all up to date, as it does for readers of the parameter
as_they_are = torch._C.DisableTorchFunctionSubclass


class _RowOptimizer(Protocol):
    def before_read(self, index: Tensor | None) -> None: ...
    def after_forward(self, index: Tensor) -> None: ...
    def rows_replaced(self, kept: Tensor, added: int) -> None: ...


class OwnedRows(Posterior):
    """A table of rows [N, W], one for each datapoint, beside relays [K, T] that all of them share.

    Attributes:
        rows: parameter [N, W], the packed rows.
        relays: parameter [K, T].
        layout: which numbers of a row are what.
        initial_log_std: what the log standard deviations of rows that are drawn start at.
        scale_factor: that of `infer`, which gave the rows, and of draws around them; 1 in training.
        tables: where the rows lie.
        row_numbers: int64 [N] or None: numbers of rows that lie in any order.
    """

    owns_rows = True
    rows: nn.Parameter
    relays: nn.Parameter
    layout: RowLayout
    tables: Tables
    sparse: bool
    row_numbers: Tensor | None = None
    # of the class: posteriors that were pickled before it was an argument have none of their own
    initial_log_std: float = -2.0
    learn_std: bool = True
    scale_factor: float = 1.0
    _row_optimizer: _RowOptimizer | None

    if TYPE_CHECKING:  # nn.Module says of a call that it gives anything

        def __call__(
            self,
            index: Tensor,
            *,
            num_samples: int | None = None,
            noise: Tensor | None = None,
            noise_index: Tensor | None = None,
            seed: Tensor | int | None = None,
            generator: torch.Generator | None = None,
        ) -> RelaySample: ...

    def _start_at(self, log_std: float, learn: bool) -> None:
        """Takes `initial_log_std` and `learn_std`."""
        limit = reference.LOG_STD_LIMIT
        log_std = _checks.check_between("initial_log_std", log_std, -limit, limit)
        # set where they are not as usual: a resume compares the attributes of modules, and checkpoints
        # of earlier versions know none
        if log_std != self.initial_log_std:
            self.initial_log_std = log_std
        if not _checks.check_bool("learn_std", learn):
            self.learn_std = False

    def _make_rows(
        self,
        tables: Tables,
        generator: torch.Generator | None,
        initial_log_std: float,
        learn_std: bool,
    ) -> None:
        """Makes the rows in these tables and draws them and the relays, or opens rows that are there."""
        self._start_at(initial_log_std, learn_std)
        self.tables = tables
        shape, like = (self.num_data, self.layout.width), self.relays
        place = torch.device("cpu") if isinstance(tables, HostTables) else like.device
        if isinstance(tables, MappedTables):
            opened = tables.holds(self._description())
            with tables.kept() if opened else contextlib.nullcontext():
                self.rows = nn.Parameter(tables.make("rows", shape, like.dtype, place))
            before = None if generator is None else generator.get_state()
            if not opened:
                self._draw_rows(generator)
                tables.finish(self._description(), before, generator)
            elif generator is None:
                # other threads draw from torch's as well: it can be drawn from, but not be set
                self._draw_rows(None, keep=False)
            else:
                tables.skip_drawing(generator)
            self._draw_relays(generator)
        else:
            check_memory(place, "posterior.rows", math.prod(shape) * like.element_size())
            self.rows = nn.Parameter(torch.empty(shape, device=place, dtype=like.dtype))
            self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws first values of rows and relays."""
        raise NotImplementedError

    def _draw_relays(self, generator: torch.Generator | None) -> None:
        raise NotImplementedError

    @property
    def staged(self) -> bool:
        """Whether the rows lie in host memory while all else is on a GPU."""
        return self.tables.staged(self.relays.device)

    @torch.no_grad()
    def _draw_rows(self, generator: torch.Generator | None, *, keep: bool = True) -> None:
        """Fills the rows; or, where they are not to be kept, draws the numbers alone."""
        if self.rows.is_meta:  # holds no numbers
            return
        if keep:
            self.tables.before_rewrite()
        first, end = self.first_row, self.first_row + self.num_data
        for start in range(0, self.table_size, _DRAWN):
            stop = min(start + _DRAWN, self.table_size)
            inside = keep and first <= start and stop <= end
            # rows that others hold are drawn as well, or those here would depend on who holds them
            shape = (stop - start, self.layout.width)
            part = self.rows[start - first : stop - first] if inside else self.rows.new_empty(shape)
            part.zero_()
            for columns in (*self.layout.group_slices, self.layout.deviation_slice):
                draw_normal(part[:, columns], 0.01, generator)
            part[:, self.layout.log_std_slice].fill_(self.initial_log_std)
            begin, finish = max(start, first), min(stop, end)
            if keep and begin < finish:
                if not inside:
                    self.rows[begin - first : finish - first] = part[begin - start : finish - start]
                self.tables.release(begin - first, finish - first)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The relays, and whatever a subclass has added."""
        return [parameter for name, parameter in self.named_parameters() if name != "rows"]

    def rows_of(self, index: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Self, Tensor | None]:
        """This posterior and `index`: what a row has does not depend on the data at hand."""
        return self, index

    def noise_index(self, index: Tensor) -> Tensor | None:
        """The row numbers that key the noise of rows `index`; None where they are `index` itself."""
        if self.row_numbers is not None:
            # what is out of range is for the op to report
            return self.row_numbers[index.clamp(0, self.num_data - 1)]
        return index.to(torch.int64) + self.first_row if self.first_row else None

    def mean_row(self) -> Tensor:
        """The average of all packed rows [W]: where rows of new datapoints can start."""
        self._bring_up_to_date(None)
        return mean_of(self.rows.detach(), self.tables, self.relays.device)

    def _read(self, index: Tensor | None, columns: slice) -> Tensor:
        """Some columns of rows `index`, or of all rows, where the relays are."""
        if index is not None:
            self._check_rows(index)
        self._before_read(index)
        with as_they_are():
            rows = self.rows if index is None else self.rows[index.to(self.rows.device)]
            return rows[:, columns].to(self.relays.device)

    def _lent(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A table where the relays are, and where in it rows `index` lie."""
        if not self.staged:
            return self.rows, index
        _checks.check_row_numbers(index, self.num_data)
        rows = nn.functional.embedding(index.cpu(), self.rows, sparse=self.sparse)
        return rows.to(index.device), torch.arange(len(index), device=index.device)

    def _summed_by_ddp(self) -> bool:
        """Whether a `DistributedDataParallel` at work sums the rows' gradients, dense ones alone."""
        ddp = nn.parallel.DistributedDataParallel._active_ddp_module
        return ddp is not None and any(p is self.rows for p in ddp._module_parameters)

    def _learned(self, grad: Tensor) -> Tensor:
        """The gradient of packed rows [n, W], zero where they are held; changed in place."""
        if not self.learn_std:
            grad[:, self.layout.log_std_slice] = 0.0
        return grad

    def _check_rows(self, index: Tensor) -> None:
        _checks.check_index(index, self.relays.device)
        if not torch.compiler.is_compiling():
            _checks.check_row_numbers(index, self.num_data)

    def _parts(self, index: Tensor | None) -> Iterator[Tensor]:
        if index is not None:
            self._check_rows(index)
            self._before_read(index)
            yield index
            return
        self._bring_up_to_date(None)
        for start in range(0, self.num_data, _CHUNK):
            end = min(start + _CHUNK, self.num_data)
            self.tables.before_rows(start, end)
            yield torch.arange(start, end, device=self.relays.device)
            self.tables.release(start, end)

    def _before_read(self, index: Tensor | None) -> None:
        self._bring_up_to_date(index)
        self.tables.before_read(index)

    def _bring_up_to_date(self, index: Tensor | None) -> None:
        if self._row_optimizer is not None:
            self._row_optimizer.before_read(index)
        else:
            self.tables.notice_writes()
        if index is None:
            check_rows_read(self.relays.device)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        # moved or converted rows can no longer be caught up: the moments stay where they are
        self._bring_up_to_date(None)
        if not isinstance(self.tables, HostTables):
            return super()._apply(*args, **kwargs)
        rows, moved = self.rows, args[0](self.rows.detach()[:0])
        mapped = isinstance(self.tables, MappedTables)
        if (mapped and moved.dtype != rows.dtype) or not device_row(moved.device.type).hosts:
            raise ValueError(
                f"storage: the rows stay {rows.dtype} on {rows.device}"
                f"{', where their files are' if mapped else ''}; asked for {moved.dtype} on "
                f"{moved.device}"
            )
        del self._parameters["rows"]
        try:
            super()._apply(*args, **kwargs)
        finally:
            self._parameters["rows"] = rows
        if moved.dtype != rows.dtype:
            rows.data = rows.data.to(moved.dtype)
        return self

    # Copies, pickles and state_dicts hold rows that are up to date, and no optimiser.

    def __getstate__(self) -> dict[str, Any]:
        self._before_read(None)
        # a copy has its rows in memory
        tables = HostTables() if isinstance(self.tables, HostTables) else self.tables
        return {**self.__dict__, "_row_optimizer": None, "tables": tables}

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._before_read(None)
        super()._save_to_state_dict(*args, **kwargs)

    def _description(self) -> dict[str, Any]:
        """What the files of a table must have been made for."""
        layout = [int(number) for number in self.get_extra_state()]
        found = {"num_data": self.num_data, "layout": layout, "dtype": str(self.relays.dtype)}
        whole = {"first_row": self.first_row, "table_size": self.table_size}
        return {**found, **whole} if self.sharded else found

    def get_extra_state(self) -> Tensor:
        """The layout as int64: T, form, then K_g and m_g; two layouts can have equal shapes."""
        layout = self.layout
        return torch.tensor(
            [layout.latent_dim, FORMS.index(layout.form), *layout.groups, *layout.kept],
            device="cpu",
        )

    def set_extra_state(self, state: Tensor) -> None:
        """Compared with the layout before anything is loaded, see `_load_from_state_dict`."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._bring_up_to_date(None)
        rows = state_dict.get(prefix + "rows")
        layout = state_dict.get(prefix + "_extra_state")
        errors = []
        if layout is not None and layout.tolist() != self.get_extra_state().tolist():
            errors.append(
                f"{prefix}layout: the checkpoint's [T, form, K_g..., m_g...] is "
                f"{layout.tolist()}, the module's is {self.get_extra_state().tolist()}"
            )
        if rows is not None and len(rows) != self.num_data:
            errors.append(
                f"{prefix}rows: the checkpoint has {len(rows)} rows, the module has {self.num_data}"
            )
        if errors:
            error_msgs += errors
            return
        if rows is not None:
            self.tables.before_rewrite()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def mean_of(
    rows: Tensor, tables: Tables | None = None, device: torch.device | None = None
) -> Tensor:
    """The average [W] of packed rows [N, W], which are read a part at a time.

    Args:
        rows: up to date.
        tables: where they lie; in memory if not given.
        device: where the result is wanted; theirs if not given.
    """
    wanted = device or rows.device
    return (sum_of(rows, tables, wanted) / len(rows)).to(rows.dtype).to(wanted)


def sum_of(
    rows: Tensor, tables: Tables | None = None, device: torch.device | None = None
) -> Tensor:
    """The sum [W] of packed rows, float64, beside a device; arguments as in `mean_of`."""
    tables, place = tables or Tables(), beside(device or rows.device)
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=place)
    for start in range(0, len(rows), _DRAWN):
        tables.before_rows(start, min(start + _DRAWN, len(rows)))
        part = rows[start : start + _DRAWN].to(total.device)
        total += part.sum(0, dtype=torch.float64)
        tables.release(start, start + len(part))
    return total


def draw_normal(values: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fills a tensor from N(0, std^2), drawn on the generator's device."""
    if values.is_meta:
        return
    if generator is None or generator.device.type == values.device.type:
        values.normal_(std=std, generator=generator)
        return
    drawn = torch.empty(values.shape, dtype=values.dtype, device=generator.device)
    values.copy_(drawn.normal_(std=std, generator=generator))


def held(rows: Tensor, columns: slice) -> Tensor:
    """The same rows [N, W], of whose `columns` autograd brings back zeros."""
    if not (rows.requires_grad and torch.is_grad_enabled()):
        return rows

    def without(grad: Tensor) -> Tensor:
        grad = grad.coalesce() if grad.is_sparse else grad.clone()
        (grad.values() if grad.is_sparse else grad)[:, columns] = 0.0
        return grad

    # a view whose backward takes sparse gradients as they are
    same: Tensor = torch.ops.aten.alias(rows)
    same.register_hook(without)
    return same


def check_shard(shard: range | None, num_data: int) -> range:
    if shard is None:
        return range(num_data)
    if not isinstance(shard, range):
        raise TypeError(f"shard: expected a range of rows, got {type(shard).__name__}")
    if shard.step != 1 or not 0 <= shard.start < shard.stop <= num_data:
        raise ValueError(f"shard: expected rows between 0 and {num_data} in order, got {shard}")
    return shard


def check_rows_and_relays(rows: Tensor, relays: Tensor, layout: RowLayout) -> None:
    if not isinstance(layout, RowLayout):
        raise TypeError(f"layout: expected a RowLayout, got {type(layout).__name__}")
    if not _checks.check_tensor("rows", rows).is_floating_point():
        raise TypeError(f"rows: expected floating point, got {rows.dtype}")
    if rows.dim() != 2 or not len(rows) or rows.shape[1] != layout.width:
        raise ValueError(
            f"rows: expected shape [N, {layout.width}] with N >= 1, got {_checks.shape_of(rows)}"
        )
    shape = (layout.num_relays, layout.latent_dim)
    _checks.check_shape("relays", _checks.check_tensor("relays", relays), shape)
    if relays.dtype != rows.dtype:
        raise TypeError(f"relays: expected the dtype of rows, {rows.dtype}, got {relays.dtype}")
    hosted = rows.device.type == "cpu" and device_row(relays.device.type).hosts
    if rows.device != relays.device and not hosted:
        raise ValueError(
            f"rows: expected a tensor on {relays.device} or cpu, got one on {rows.device}"
        )
