"""Adam for the rows of a posterior, at the cost of a batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._devices import beside, capturing
from ..memory.room import check_memory
from ..ops import ops
from ..posteriors.relay import RelayPosterior
from ..posteriors.tables import MappedTables
from ..reference import HISTORY_COLUMNS, widened_history
from . import live_rows
from .row_state import (
    MAX_STEPS,
    OPTIONS,
    Loaded,
    Mode,
    Stepped,
    check_lr,
    check_options,
    check_state_dict,
    refused,
)

# rows of `_history` to begin with; it doubles when steps since the last flush outgrow it
_HISTORY = 1024
# rows brought up to date at once when all are
_CHUNK = 65536
# the same where they are copied to the device for it, or mapped: all of their tables are read then
_STAGED = 8192
# a learning rate that lies elsewhere is not read back in a step
_READABLE = ("cpu",)
# within it the rows are looked at as they are: their class need not bring all up to date, nor be asked
_as_they_are = torch._C.DisableTorchFunctionSubclass


class RowAdam(torch.optim.Optimizer):
    """Adam over `posterior.rows`; a step touches the rows of the batch only.

    Args:
        posterior: the posterior whose rows are optimised. Everything else (relays, decoder, scale)
            goes to any other torch optimiser.
        lr: learning rate >= 0, a number or a tensor of one element; may change from step to step
            (`torch.optim.lr_scheduler` works) and is checked in each. One on a GPU is not waited for:
            where it is out of its range the step is taken with 0, and the next read of all rows raises.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay (AdamW), dense mode only.
        mode: what happens to rows outside the batch.
            "dense": the result equals `torch.optim.Adam` (with weight decay `AdamW`) on the whole
            table, to rounding: rows outside the batch coast on their momentum. The steps that a row
            has missed are applied in closed form when it is next read. What it moves in them has a
            relative error of at most 1e-6 for betas (0.9, 0.999), and 1e-5 up to (0.99, 0.999) and
            (0.9, 0.95), whatever the size of its gradients; where beta1 is beta2 up to 3e-2 for
            gradients of about eps.
            "lazy": `torch.optim.SparseAdam`: rows outside the batch rest, bias correction by the
            global step count.
            "row": as lazy, bias correction by the row's own visit count.
        moment_dtype: of the two moments; None is the dtype of the rows. `torch.bfloat16` with float32
            rows takes a third off rows and moments. They are then rounded at random, up or down so
            that the mean is right (with the nearest number a second moment would never fall); the
            random bits depend on row number, element and step count alone, and the number is that in
            the whole table: for a shard `first_row + i`, see `RelayPosterior`.

    Memory:
        Two moments of the table's size (of half of it in bfloat16), 4 bytes per row, 128 bytes per step
        taken since all rows were last read (dense mode).

    Raises:
        ValueError, TypeError: an argument is out of its range.

    Note:
        A posterior has one RowAdam: a new one takes over from the one before. Copies and pickles of
        both together step on as they do. Gradients that are sparse are clipped by
        `optim.clip_grad_norm_`. In dense mode any torch function that reads `posterior.rows` brings all
        rows up to date first, averages and exporters of parameters included; `flush` does it for others.
        A run has 2^31 - 1 steps at most. Use
        `RelayPosterior(sparse=True)`, otherwise backward makes a dense gradient of the whole table.
        With a dense gradient the modes "lazy" and "row" step the rows that were in a forward pass
        with gradients enabled since the last step, and those whose gradient is not zero.

    CUDA graphs:
        A step with sparse gradients can be captured, `loss.backward()` and all; nothing in it waits for
        the device. Index and data then lie in tensors that are copied to; one step goes before the
        capture, and `before_replay` before each replay::

            rows = rvi_fast.optim.RowAdam(posterior)  # of RelayPosterior(..., sparse=True)
            shared = torch.optim.Adam(others, capturable=True)
            rows.reserve(10_000)  # steps; all rows are brought up to date as often as that

            def step():
                z, kl = posterior(index)
                loss = (kl - likelihood(x, decoder(z))).mean()
                rows.zero_grad()
                shared.zero_grad()
                loss.backward()
                rows.step()
                shared.step()
                return loss

            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = step()
            for batch in order.split(len(index)):
                index.copy_(batch)
                torch.index_select(data, 0, index, out=x)
                rows.before_replay()
                graph.replay()

    Source:
        Kingma and Ba 2015; `rvi_fast.reference.row_adam_step`.

    Example:
        >>> import torch, rvi_fast
        >>> posterior = rvi_fast.RelayPosterior(100, 4, groups=(3,), sparse=True)
        >>> optimizer = rvi_fast.optim.RowAdam(posterior, lr=1e-2)
        >>> z, kl = posterior(torch.tensor([3, 1]))
        >>> kl.mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        posterior: RelayPosterior,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        mode: Mode = "dense",
        decoupled_weight_decay: bool = True,
        moment_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(posterior, RelayPosterior):
            raise TypeError(f"posterior: expected a RelayPosterior, got {type(posterior).__name__}")
        posterior.check_rows()
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "mode": mode,
        }
        check_options(options)
        if weight_decay > 0 and not decoupled_weight_decay:
            raise ValueError(
                "decoupled_weight_decay: expected True, got False: coupled (L2) decay changes "
                "the moments of every row at every step"
            )
        rows, tables = posterior.rows, posterior.tables
        moment_dtype = _checks.check_moment_dtype(moment_dtype, rows.dtype)
        super().__init__([rows], options)
        if not isinstance(tables, MappedTables):
            size = 2 * rows.numel() * moment_dtype.itemsize + 4 * len(rows)
            check_memory(rows.device, "moments of posterior.rows", size)
        # dense: the step a row is up to date with; row: its visits
        self._row_step = tables.make("row_step", (len(rows),), torch.int32, rows.device)
        self._exp_avg = tables.make("exp_avg", rows.shape, moment_dtype, rows.device)
        self._exp_avg_sq = tables.make("exp_avg_sq", rows.shape, moment_dtype, rows.device)
        self._set_up(posterior, 0)
        self._take_over()

    def _set_up(self, posterior: RelayPosterior, num_steps: int) -> None:
        """All but options and tables of an optimiser that has taken so many steps."""
        self.posterior = posterior
        # the parameter itself: torch.func.functional_call lends the posterior another one
        self._rows = rows = posterior.rows
        self._dtype = rows.dtype
        self.mode: str = self.param_groups[0]["mode"]
        # steps taken, and steps taken when all rows were last up to date: the start of `_history`
        self._device = posterior.relays.device
        device = beside(self._device)
        self._clock = torch.full((2,), num_steps, dtype=torch.int64, device=device)
        self._history = torch.zeros((_HISTORY, HISTORY_COLUMNS), dtype=torch.float64, device=device)
        self._lr = torch.zeros((), dtype=torch.float64, device=device)
        # the number that is in `_lr`, and the weight decay that it was checked with
        self._lr_set: tuple[float, float] | None = None
        # whether a learning rate that has not been read back was out of its range
        self._lr_refused: Tensor | None = None
        # asked before rows of these numbers, or all rows, are written to
        self.before_write: Callable[[Tensor], None] | None = None
        # the clock as the host knows it, so that nothing has to be read back from a GPU
        self._num_steps, self._flushed_at = num_steps, num_steps
        self._checked = self._options()
        self._applied = self._checked[:3]
        # rows in forward passes that still await their backward, and rows that are in rows.grad
        self._forwarded: list[Tensor] = []
        self._present: list[Tensor] = []
        self._hook: Any = None
        self.state[rows] = self._entries()

    def _entries(self) -> dict[str, Tensor]:
        """What `state` shows: views of the tables, not what somebody has since put in their places."""
        entries = {
            "step": self._clock[0],
            "exp_avg": self._exp_avg,
            "exp_avg_sq": self._exp_avg_sq,
        }
        return {**entries, "row_step": self._row_step} if self.mode == "row" else entries

    def _take_over(self) -> None:
        """The last thing that is done: until then the posterior is as it was."""
        if isinstance(self.posterior._row_optimizer, RowAdam):
            self.posterior._row_optimizer.detach()
        if self.mode == "dense":
            live_rows.watch(self.posterior)
        else:
            self._hook = self._rows.register_post_accumulate_grad_hook(self.after_backward)
        self.posterior._row_optimizer = self

    # Copies and pickles step on as this one does, with the posterior that is copied beside it.

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        tables = {name: getattr(self, name) for name in ("_row_step", "_exp_avg", "_exp_avg_sq")}
        return {
            "defaults": self.defaults,
            "param_groups": self.param_groups,
            "posterior": self.posterior,
            "num_steps": self._num_steps,
            "drives": self.posterior._row_optimizer is self,
            **tables,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {**state, "state": defaultdict(dict)}
        posterior, num_steps = state.pop("posterior"), state.pop("num_steps")
        drives = state.pop("drives")
        super().__setstate__(state)
        self._set_up(posterior, num_steps)
        if drives:
            self._take_over()

    def before_read(self, index: Tensor | None) -> None:
        """The posterior calls it before it reads rows `index` [B], or all rows."""
        if index is None:
            self._check_lr_read()
            self.flush()
        elif self.mode == "dense":
            self._catch_up(index)

    def after_forward(self, index: Tensor) -> None:
        """The posterior calls it after a forward pass for rows `index` [B]."""
        if self.mode != "dense" and torch.is_grad_enabled():
            self._forwarded.append(index)

    def after_backward(self, _: Tensor) -> None:
        """The rows call it after a backward pass has reached them."""
        self._present += self._forwarded
        self._forwarded.clear()

    # also where the caller is in inference mode: what is made here is written to in training
    @torch.inference_mode(False)
    @torch.no_grad()
    def flush(self) -> None:
        """Brings all rows to the state dense Adam has now; nothing to do in the other modes."""
        if self.mode != "dense" or self._flushed_at == self._num_steps:
            return
        mapped = isinstance(self.posterior.tables, MappedTables)
        few = mapped or self.posterior.staged
        num_data, chunk = len(self._row_step), _STAGED if few else _CHUNK
        for start in range(0, num_data, chunk):
            end = min(start + chunk, num_data)
            self._catch_up(torch.arange(start, end, device=self._row_step.device))
            self.posterior.tables.release(start, end)
        self._start_history(self._num_steps)

    @torch.no_grad()
    def _catch_up(self, index: Tensor) -> None:
        if self.posterior.staged:  # a row that is copied twice would be written back twice
            index = index.unique()
        # rows that a pending backward needs do not change, so autograd need not object
        self._work(ops.row_adam_catch_up, index, self._clock, self._history, *self._applied)

    def _work(self, op: Callable[..., None], index: Tensor, *arguments: Any) -> None:
        """Calls an op for rows `index`, where the relays are; what it writes stays."""
        own = [self.table(), self._exp_avg, self._exp_avg_sq, self._row_step]
        self.posterior.tables.before_write(index)
        if not self.posterior.staged:
            if self.before_write is not None:
                self.before_write(index)
            op(*own, index, *arguments, key_index=self._keys(index))
            return
        _checks.check_row_numbers(index, len(self._row_step))
        index = index.to(own[0].device)
        if self.before_write is not None:
            self.before_write(index)
        device = self._device
        copies = [table[index].to(device) for table in own]
        keys = self._keys(index)
        keys = index.to(device) if keys is None else keys.to(device)
        op(*copies, torch.arange(len(index), device=device), *arguments, key_index=keys)
        for table, copied in zip(own, copies, strict=True):
            table[index] = copied.to(table.device)

    def _keys(self, index: Tensor) -> Tensor | None:
        """What keys the random bits of rows `index`; None where that is `index`, or none are drawn."""
        drawn = self._exp_avg.dtype is not self._dtype
        return self.posterior.noise_index(index) if drawn else None

    @contextmanager
    def lent(self, posterior: RelayPosterior, tables: dict[str, Tensor]) -> Iterator[None]:
        """Within it the optimiser works on the rows of another posterior, a part of its own.

        Args:
            posterior: its rows are `tables["rows"]`.
            tables: as `raw_tables` names them.
        """
        rows = posterior.rows
        group, hook = self.param_groups[0], None
        own = {
            name: getattr(self, name)
            for name in (
                "posterior",
                "_rows",
                "_exp_avg",
                "_exp_avg_sq",
                "_row_step",
                "before_write",
            )
        }
        self.posterior, self._rows, self.before_write = posterior, rows, None
        self._exp_avg, self._exp_avg_sq = tables["exp_avg"], tables["exp_avg_sq"]
        self._row_step, group["params"] = tables["row_step"], [rows]
        posterior._row_optimizer = self
        if self._hook is not None:
            hook = rows.register_post_accumulate_grad_hook(self.after_backward)
        try:
            yield
        finally:
            for name, value in own.items():
                setattr(self, name, value)
            group["params"] = [self._rows]
            posterior._row_optimizer = None
            if hook is not None:
                hook.remove()

    def table(self) -> Tensor:
        """The rows [N, W] as they are, up to date or not, out of autograd's sight."""
        device = self._exp_avg.device
        with _as_they_are():
            rows = self._rows.data
        if rows.dtype != self._dtype or rows.device != device:
            raise ValueError(
                f"posterior: expected rows in {self._dtype} on {device}, got {rows.dtype} on "
                f"{rows.device}; make the RowAdam after moving or converting the posterior"
            )
        relays = self.posterior.relays.device
        if self._device != relays:
            raise ValueError(
                f"posterior: expected relays on {self._device}, got {relays}; make the RowAdam after "
                "moving or converting the posterior"
            )
        return rows

    def _start_history(self, num_steps: int) -> None:
        self._flushed_at = num_steps
        self._clock[1] = num_steps
        self._history.zero_()

    # What follows serves runs that are resumed to the last bit although rows lag behind.

    @property
    def num_steps(self) -> int:
        """Number of steps that the optimizer has taken."""
        return self._num_steps

    @contextmanager
    def as_they_are(self) -> Iterator[None]:
        """Within it the posterior reads rows that may not be up to date."""
        self.posterior._row_optimizer = None
        try:
            with self.posterior.tables.unread():
                yield
        finally:
            self.posterior._row_optimizer = self

    def forget_before(self, step: int) -> None:
        """All rows are up to date with that step at least: what came before it is not needed."""
        if self.mode != "dense" or step <= self._flushed_at:
            return
        gone, used = step - self._flushed_at, self._num_steps - self._flushed_at + 1
        left = self._history[gone:used].clone()
        self._history.zero_()
        self._history[: len(left)] = left
        self._flushed_at = step
        self._clock[1] = step

    def raw_tables(self) -> dict[str, Tensor]:
        """Rows, moments and steps [N, ...] as they are."""
        return {
            "rows": self.table(),
            "exp_avg": self._exp_avg,
            "exp_avg_sq": self._exp_avg_sq,
            "row_step": self._row_step,
        }

    def raw_state(self) -> dict[str, Tensor]:
        """All that the next step depends on beside rows and moments."""
        used = self._num_steps - self._flushed_at + 1
        return {"clock": self._clock, "history": self._history[:used]}

    @torch.no_grad()
    def load_raw_state(self, state: dict[str, Tensor]) -> None:
        """Takes back `raw_state`, with the tables as they were then."""
        self._clock.copy_(state["clock"])
        self._num_steps, self._flushed_at = self._clock.tolist()
        history = widened_history(state["history"])
        self.reserve(len(history))
        self._history.zero_()
        self._history[: len(history)] = history

    def _options(self) -> tuple[Any, ...]:
        """Beta 1 and 2, eps, weight decay and mode, as they stand in the group."""
        group = self.param_groups[0]
        return (*group["betas"], group["eps"], group["weight_decay"], group["mode"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from `posterior.rows.grad`, sparse or dense; without a gradient nothing happens.

        A sparse one need not be coalesced: a row that stands in it more than once is stepped from the
        sum of its gradients. Nothing waits for a GPU.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_owner()
        with _as_they_are():
            grad = self._rows.grad
        if grad is not None:
            self._step(*self._touched(grad))
        return loss

    @torch.no_grad()
    def step_batch(self, index: Tensor, grad: Tensor) -> None:
        """One step from the gradients of some rows, for loops that do without `rows.grad`.

        Args:
            index: rows [B], each once.
            grad: gradients [B, W].
        """
        self._check_owner()
        self._step(index, grad)

    def _step(self, index: Tensor, grad: Tensor, repeats: bool = False) -> None:
        captured = self._begin_step()
        self._work(
            ops.row_adam_step,
            index,
            grad.to(self._device),
            self._clock,
            self._history,
            self._lr,
            *self._applied,
            self._checked[3],
            self.mode,
            repeats,
        )
        self._end_step(captured)

    def _begin_step(self) -> bool:
        """What the host does before a step; whether the step is captured in a CUDA graph."""
        captured = capturing(self._clock)
        self._check_count()
        self._follow_options()
        if not captured:  # a graph would keep the learning rate of its capture
            self._set_lr()
        used = self._num_steps - self._flushed_at + 2
        if self.mode == "dense" and used > self._history.shape[0]:
            self._history = torch.cat((self._history, torch.zeros_like(self._history)))
        return captured

    def _end_step(self, captured: bool) -> None:
        # what autograd has saved of the rows before is no longer theirs
        torch.autograd.graph.increment_version(self._rows)
        self._num_steps += not captured
        self._present.clear()

    @contextmanager
    def stepping(self) -> Iterator[Stepped]:
        """Within it other code takes one step of dense mode, of rows that are on the device.

        It brings the rows of the batch up to date, steps them, counts up the clock and extends the
        history; all else that a step changes is seen to here.
        """
        self._check_owner()
        captured = self._begin_step()
        tables = self.table(), self._exp_avg, self._exp_avg_sq, self._row_step
        options, weight_decay = self._applied, self._checked[3]
        yield Stepped(tables, self._clock, self._history, self._lr, options, weight_decay)
        self._end_step(captured)

    def reserve(self, num_steps: int) -> None:
        """Makes room for that many steps between two flushes: a CUDA graph needs it beforehand."""
        missing = num_steps + 2 - len(self._history)
        if self.mode == "dense" and missing > 0:
            self._history = torch.cat(
                (self._history, self._history.new_zeros((missing, HISTORY_COLUMNS)))
            )

    def before_replay(self) -> None:
        """To be called before a CUDA graph that holds one step is replayed.

        Sets the learning rate, and counts the step. Where the room that `reserve` has made is used up,
        it brings all rows up to date.
        """
        self._check_count()
        self._set_lr()
        if self._num_steps - self._flushed_at + 2 > len(self._history):
            self.flush()
        self._num_steps += 1

    def _check_count(self) -> None:
        if self._num_steps >= MAX_STEPS:
            raise RuntimeError(f"RowAdam: expected at most {MAX_STEPS} steps, got one more")

    def _follow_options(self) -> None:
        """Takes over what has been changed in the group, once it is checked."""
        options = self._options()
        if options == self._checked:
            return
        check_options({**self.param_groups[0], "mode": self.mode})
        if options[4] != self.mode:
            raise ValueError(f"mode: expected {self.mode!r}, got {options[4]!r}")
        if options[:3] != self._applied:  # the closed form holds for constant betas and eps
            self.flush()
            self._applied = options[:3]
        self._checked = options

    def _set_lr(self) -> None:
        lr, weight_decay = self.param_groups[0]["lr"], self._checked[3]
        if isinstance(lr, Tensor):
            if beside(lr.device).type not in _READABLE:
                wrong = refused(lr, weight_decay)
                seen = self._lr_refused
                self._lr_refused = wrong if seen is None else seen | wrong
                self._lr.copy_(torch.where(wrong, 0.0, lr))
                self._lr_set = None
                return
            lr = lr.item()
        if (lr, weight_decay) == self._lr_set:
            return
        if not 0.0 <= lr < math.inf or lr * weight_decay >= 1.0:
            check_lr(lr, weight_decay)
        self._lr.fill_(lr)
        self._lr_set = lr, weight_decay

    def _check_lr_read(self) -> None:
        """Reads back whether a learning rate on a device was out of its range, where one was used."""
        if self._lr_refused is None:
            return
        wrong, self._lr_refused = bool(self._lr_refused), None
        if wrong:
            raise ValueError(
                "lr: expected a finite number >= 0 and < 1 / weight_decay, got another one in a step "
                "since all rows were last read; that step was taken with lr = 0"
            )

    def _check_owner(self) -> None:
        if self.posterior._row_optimizer is not self:
            raise RuntimeError("RowAdam: another RowAdam has taken over this posterior's rows")

    def _touched(self, grad: Tensor) -> tuple[Tensor, Tensor, bool]:
        """The rows to step, their gradients, and whether a row may stand there more than once."""
        if grad.is_sparse and not self.posterior.staged:
            return grad._indices()[0], grad._values(), not grad.is_coalesced()
        if grad.is_sparse:
            grad = grad.coalesce()
            return grad.indices()[0], grad.values(), False
        if self.mode == "dense":
            return torch.arange(len(grad), device=grad.device), grad, False
        # a row that was in the batch is stepped even where its gradient happens to be zero
        touched = (grad != 0).any(-1)
        for part in self._present:
            touched[part.to(grad.device)] = True
        index = touched.nonzero()[:, 0]
        return index, grad[index], False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets go of all gradients, as `torch.optim.Optimizer.zero_grad` does."""
        self._present.clear()
        with _as_they_are():
            if set_to_none:
                self._rows.grad = None
            else:
                super().zero_grad(set_to_none)

    def detach(self) -> None:
        """Flushes and lets go of the posterior; the optimiser is of no use afterwards."""
        try:
            self.flush()
        finally:  # a disk that is full must not leave the posterior in our hands
            if self._hook is not None:
                self._hook.remove()
            if self.posterior._row_optimizer is self:
                self.posterior._row_optimizer = None
                live_rows.let_go(self._rows)
            self.posterior.tables.seal()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused beyond the first: a RowAdam drives the rows of one posterior."""
        if self.param_groups:
            raise ValueError(
                "param_group: RowAdam takes the rows of one posterior and nothing else"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Flushes first; torch's Adam loads that of dense mode, SparseAdam that of lazy, and back."""
        self._check_lr_read()
        self.flush()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads in place, after everything in it has been looked at.

        Args:
            state_dict: of a RowAdam of this mode; of torch's Adam or AdamW where the mode is dense, of
                SparseAdam where it is lazy; as `torch.distributed.checkpoint` gives it back, too.

        Raises:
            ValueError: another mode, shapes, keys or number of parameters; bfloat16 moments where
                others are expected or the other way round; options or step counts out of their range.
                Nothing is changed then.
        """
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self._load(self.check_state_dict(state_dict))
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def check_state_dict(self, state_dict: dict[str, Any]) -> Loaded:
        """What `load_state_dict` would take over; raises what it would raise, and changes nothing."""
        self.table()
        options = {name: self.param_groups[0][name] for name in OPTIONS}
        return check_state_dict(state_dict, self._entries(), options)

    def _load(self, loaded: Loaded) -> None:
        self.flush()
        tables = self.posterior.tables
        tables.before_write(torch.arange(len(self._row_step), device=self._row_step.device))
        # a state_dict shares its entries with `state`, where a caller may have replaced one
        self.state[self._rows] = own = self._entries()
        for name, value in own.items():
            if loaded.entries is None:
                value.zero_()
            else:
                value.copy_(loaded.entries[name])
        self.param_groups[0].update(loaded.options)
        self._checked = self._options()
        self._applied = self._checked[:3]
        self._num_steps = loaded.num_steps
        if self.mode == "dense":
            self._row_step.fill_(self._num_steps)
        self._start_history(self._num_steps)
