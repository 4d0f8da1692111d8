"""Adam for the rows of a posterior, at the cost of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import _checks
from .ops import ops
from .posterior import RelayPosterior
from .storage import MappedTables, check_memory

MODES = ("dense", "lazy", "row")
# rows of `_history` to begin with; it doubles when steps since the last flush outgrow it
_HISTORY = 1024
# rows brought up to date at once when all are
_CHUNK = 65536
# the same where they are copied to the device for it
_STAGED = 8192


class RowAdam(torch.optim.Optimizer):
    """Adam over `posterior.rows`; a step touches the rows of the batch only.

    Args:
        posterior: the posterior whose rows are optimised. Everything else (relays, decoder, scale)
            goes to any other torch optimiser.
        lr: learning rate; may change from step to step (`torch.optim.lr_scheduler` works).
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay (AdamW), dense mode only.
        mode: what happens to rows outside the batch.
            "dense": the result equals `torch.optim.Adam` (with weight decay `AdamW`) on the whole
            table, to rounding: rows outside the batch coast on their momentum. The steps that a row
            has missed are applied in closed form when it is next read.
            "lazy": `torch.optim.SparseAdam`: rows outside the batch rest, bias correction by the
            global step count.
            "row": as lazy, bias correction by the row's own visit count.
        moment_dtype: of the two moments; None is the dtype of the rows. `torch.bfloat16` with float32
            rows takes a third off rows and moments. They are then rounded at random, up or down so
            that the mean is right (with the nearest number a second moment would never fall); the
            random bits depend on row number, element and step count alone; for a part of a larger
            table the number is that within the part.

    Memory:
        Two moments of the table's size (of half of it in bfloat16), 4 bytes per row, 24 bytes per step
        taken (dense mode).

    Raises:
        ValueError, TypeError: an argument is out of its range.

    Note:
        A posterior has one RowAdam: a new one takes over from the one before. Use
        `RelayPosterior(sparse=True)`, otherwise backward makes a dense gradient of the whole table.
        With a dense gradient the modes "lazy" and "row" step the rows that were in a forward pass
        with gradients enabled since the last step, and those whose gradient is not zero.

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
        mode: str = "dense",
        decoupled_weight_decay: bool = True,
        moment_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(posterior, RelayPosterior):
            raise TypeError(f"posterior: expected a RelayPosterior, got {type(posterior).__name__}")
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if not isinstance(lr, Tensor):
            _checks.check_non_negative("lr", lr)
        _check_betas(betas, mode)
        _checks.check_positive_float("eps", eps)
        if _checks.check_non_negative("weight_decay", weight_decay) > 0:
            if not decoupled_weight_decay:
                raise ValueError(
                    "decoupled_weight_decay: expected True, got False: coupled (L2) decay changes "
                    "the moments of every row at every step"
                )
            if mode != "dense":
                raise ValueError(f"weight_decay: expected 0 in mode {mode!r}, got {weight_decay!r}")
        moment_dtype = _checks.check_moment_dtype(moment_dtype, posterior.rows.dtype)

        super().__init__(
            [posterior.rows],
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "mode": mode},
        )
        self.posterior = posterior
        self.mode = mode
        if isinstance(posterior._row_optimizer, RowAdam):
            posterior._row_optimizer.detach()
        posterior._row_optimizer = self

        # the parameter itself: torch.func.functional_call lends the posterior another one
        self._rows = rows = posterior.rows
        self._dtype = rows.dtype
        # steps taken, and steps taken when all rows were last up to date: the start of `_history`
        device = posterior.relays.device
        self._clock = torch.zeros(2, dtype=torch.int64, device=device)
        self._history = torch.zeros((_HISTORY, 3), dtype=torch.float64, device=device)
        self._lr = torch.zeros((), dtype=torch.float64, device=device)
        # dense: the step a row is up to date with; row: its visits
        tables = posterior.tables
        if not isinstance(tables, MappedTables):
            size = 2 * rows.numel() * moment_dtype.itemsize + 4 * len(rows)
            check_memory(rows.device, "moments of posterior.rows", size)
        self._row_step = tables.make("row_step", (len(rows),), torch.int32, rows.device)
        self._exp_avg = tables.make("exp_avg", rows.shape, moment_dtype, rows.device)
        self._exp_avg_sq = tables.make("exp_avg_sq", rows.shape, moment_dtype, rows.device)
        # asked before rows of these numbers, or all rows, are written to
        self.before_write: Callable[[Tensor], None] | None = None
        # the clock as the host knows it, so that nothing has to be read back from a GPU
        self._num_steps, self._flushed_at = 0, 0
        self._applied = self._constants()
        # rows in forward passes that still await their backward, and rows that are in rows.grad
        self._forwarded: list[Tensor] = []
        self._present: list[Tensor] = []
        self._hook = None
        if mode != "dense":
            self._hook = rows.register_post_accumulate_grad_hook(self.after_backward)
        self.state[rows] = {
            "step": self._clock[0],
            "exp_avg": self._exp_avg,
            "exp_avg_sq": self._exp_avg_sq,
        }
        if mode == "row":
            self.state[rows]["row_step"] = self._row_step

    def before_read(self, index: Tensor | None) -> None:
        """The posterior calls it before it reads rows `index` [B], or all rows."""
        if index is None:
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
        num_data, chunk = len(self._row_step), _STAGED if self.posterior.staged else _CHUNK
        for start in range(0, num_data, chunk):
            end = min(start + chunk, num_data)
            self._catch_up(torch.arange(start, end, device=self._row_step.device))
            self.posterior.tables.release(start, end)
        self._start_history(self._num_steps)

    @torch.no_grad()
    def _catch_up(self, index: Tensor) -> None:
        if self.posterior.staged:  # a row that is copied twice would be written back twice
            index = index.unique()
        with self._at_hand(index) as (tables, index):
            rows, *others = tables
            # .data: rows that a pending backward needs do not change, so autograd need not object
            ops.row_adam_catch_up(
                rows.data, *others, index, self._clock, self._history, *self._applied
            )

    @contextmanager
    def _at_hand(self, index: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Tables where the clock is, and where in them rows `index` lie; what is written stays."""
        own = [self._table(), self._exp_avg, self._exp_avg_sq, self._row_step]
        self.posterior.tables.before_write(index)
        if not self.posterior.staged:
            if self.before_write is not None:
                self.before_write(index)
            yield own, index
            return
        _checks.check_row_numbers(index, len(self._row_step))
        index = index.to(own[0].device)
        if self.before_write is not None:
            self.before_write(index)
        device = self._clock.device
        copies = [table[index].to(device) for table in own]
        yield copies, torch.arange(len(index), device=device)
        for table, copied in zip(own, copies, strict=True):
            table[index] = copied.to(table.device)

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

    def _table(self) -> Tensor:
        rows, device = self._rows, self._exp_avg.device
        if rows.dtype != self._dtype or rows.device != device:
            raise ValueError(
                f"posterior: expected rows in {self._dtype} on {device}, got {rows.dtype} on "
                f"{rows.device}; make the RowAdam after moving or converting the posterior"
            )
        clock, relays = self._clock.device, self.posterior.relays.device
        if clock != relays:
            raise ValueError(
                f"posterior: expected relays on {clock}, got {relays}; make the RowAdam after moving "
                "or converting the posterior"
            )
        return rows

    def _start_history(self, num_steps: int) -> None:
        self._flushed_at = num_steps
        self._clock[1] = num_steps
        self._history.zero_()

    # What follows serves runs that are resumed to the last bit although rows lag behind.

    @property
    def num_steps(self) -> int:
        """Steps taken."""
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
            "rows": self._table().detach(),
            "exp_avg": self._exp_avg,
            "exp_avg_sq": self._exp_avg_sq,
            "row_step": self._row_step,
        }

    def raw_state(self) -> dict[str, Tensor]:
        """All else that the next step depends on."""
        used = self._num_steps - self._flushed_at + 1
        return {"clock": self._clock, "history": self._history[:used]}

    @torch.no_grad()
    def load_raw_state(self, state: dict[str, Tensor]) -> None:
        """Takes back `raw_state`, with the tables as they were then."""
        self._clock.copy_(state["clock"])
        self._num_steps, self._flushed_at = self._clock.tolist()
        self.reserve(len(state["history"]))
        self._history.zero_()
        self._history[: len(state["history"])] = state["history"]

    def _constants(self) -> tuple[float, float, float]:
        group = self.param_groups[0]
        return (*group["betas"], group["eps"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from `posterior.rows.grad`, sparse or dense; without a gradient nothing happens."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_owner()
        if self._rows.grad is not None:
            self.step_batch(*self._touched(self._rows.grad))
        return loss

    @torch.no_grad()
    def step_batch(self, index: Tensor, grad: Tensor) -> None:
        """One step from the gradients of some rows, for loops that do without `rows.grad`.

        Args:
            index: rows [B], each once.
            grad: gradients [B, W].
        """
        self._check_owner()
        weight_decay = self.param_groups[0]["weight_decay"]
        if self._applied != self._constants():  # the closed form holds for constant betas and eps
            _check_betas(self.param_groups[0]["betas"], self.mode)
            self.flush()
            self._applied = self._constants()
        used = self._num_steps - self._flushed_at + 2
        if self.mode == "dense" and used > len(self._history):
            self._history = torch.cat((self._history, torch.zeros_like(self._history)))
        captured = self._clock.is_cuda and torch.cuda.is_current_stream_capturing()
        if not captured:  # a graph would keep the learning rate of its capture
            self._set_lr()
        with self._at_hand(index) as (tables, index):
            ops.row_adam_step(
                *tables,
                index,
                grad.to(self._clock.device),
                self._clock,
                self._history,
                self._lr,
                *self._applied,
                weight_decay,
                self.mode,
            )
        self._num_steps += not captured
        self._present.clear()

    def reserve(self, num_steps: int) -> None:
        """Makes room for that many steps between two flushes: a CUDA graph needs it beforehand."""
        missing = num_steps + 2 - len(self._history)
        if self.mode == "dense" and missing > 0:
            self._history = torch.cat((self._history, self._history.new_zeros((missing, 3))))

    def before_replay(self) -> None:
        """To be called before a CUDA graph that holds one `step_batch` is replayed."""
        self._set_lr()
        self._num_steps += 1

    def _set_lr(self) -> None:
        lr = self.param_groups[0]["lr"]
        if isinstance(lr, Tensor):
            self._lr.copy_(lr)
        else:
            self._lr.fill_(lr)

    def _check_owner(self) -> None:
        if self.posterior._row_optimizer is not self:
            raise RuntimeError("RowAdam: another RowAdam has taken over this posterior's rows")

    def _touched(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The rows to step, each once, and their gradients."""
        if grad.is_sparse:
            grad = grad.coalesce()
            return grad.indices()[0], grad.values()
        if self.mode == "dense":
            return torch.arange(len(grad), device=grad.device), grad
        # a row that was in the batch is stepped even where its gradient happens to be zero
        touched = (grad != 0).any(-1)
        for part in self._present:
            touched[part.to(grad.device)] = True
        index = touched.nonzero()[:, 0]
        return index, grad[index]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `torch.optim.Optimizer.zero_grad`."""
        self._present.clear()
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
            self.posterior.tables.seal()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused beyond the first: a RowAdam drives the rows of one posterior."""
        if self.param_groups:
            raise ValueError(
                "param_group: RowAdam takes the rows of one posterior and nothing else"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Flushes first; in dense mode `torch.optim.Adam` loads the result, and the other way round."""
        self.flush()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads in place.

        Raises:
            ValueError: another mode, other shapes, bfloat16 moments where others are expected or the
                other way round, missing entries; nothing is changed then.
        """
        (group,), entries = state_dict["param_groups"], state_dict["state"].get(0)
        if group.get("mode", "dense") != self.mode:
            raise ValueError(f"mode: expected {self.mode!r}, got {group['mode']!r}")
        for name in ("amsgrad", "maximize"):
            if group.get(name):
                raise ValueError(f"{name}: expected False, got True: RowAdam has no such option")
        if group.get("weight_decay") and not group.get("decoupled_weight_decay", True):
            raise ValueError(
                f"weight_decay: expected decoupled decay, got coupled {group['weight_decay']}"
            )
        if "betas" in group:
            _check_betas(group["betas"], self.mode)
        own = self.state[self._table()]
        if entries is None:  # an optimiser that has not stepped
            entries = {name: torch.zeros_like(value) for name, value in own.items()}
        for name, value in own.items():
            if name not in entries:
                raise ValueError(f"state_dict: expected an entry {name!r}, got {sorted(entries)}")
            if name != "step":
                _checks.check_shape(name, entries[name], tuple(value.shape))
            found = torch.as_tensor(entries[name]).dtype
            if torch.bfloat16 in (found, value.dtype) and found != value.dtype:
                raise ValueError(
                    f"{name}: expected {value.dtype}, got {found}; make the RowAdam with "
                    f"moment_dtype={found}"
                )
        self.flush()
        tables = self.posterior.tables
        tables.before_write(torch.arange(len(self._row_step), device=self._row_step.device))
        for name, value in own.items():
            value.copy_(torch.as_tensor(entries[name]))
        self.param_groups[0].update(
            {name: group[name] for name in (*self.defaults, "initial_lr") if name in group}
        )
        self._applied = self._constants()
        self._num_steps = int(own["step"])
        if self.mode == "dense":
            self._row_step.fill_(self._num_steps)
        self._start_history(self._num_steps)


def _check_betas(betas: tuple[float, float], mode: str) -> None:
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas) or betas[1] == 0.0:
        raise ValueError(f"betas: expected 0 <= beta1 < 1 and 0 < beta2 < 1, got {betas!r}")
    if mode == "dense" and betas[0] > betas[1]:
        # the steps of a resting row go as (b1 / sqrt(b2))^j until sqrt(v) is down at eps, where the
        # closed form fails; what is left then is a share of eps / |g| of the whole at most
        raise ValueError(f"betas: expected beta1 <= beta2 in mode 'dense', got {betas!r}")
