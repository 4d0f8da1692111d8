"""The posterior over latents that each datapoint owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from .. import _checks, reference
from ..files import StrPath
from ..functional import RelaySample, relay_sample
from ..layout import Form, RowLayout
from ..memory.room import check_memory
from ..ops import ops
from .base import Drawn
from .rows import OwnedRows, as_they_are, check_rows_and_relays, check_shard, draw_normal, held
from .tables import HostTables, Tables, open_tables


class RelayPosterior(OwnedRows):
    """q(z | x_i) = N(relay_i + e_i, exp(r_i)^2) for every datapoint i, without an encoder.

        relay_i = sum_g sum_{k kept in g} a_ik R_k

    Each datapoint owns one row: coefficients a for the relay vectors, a deviation e and a log
    standard deviation r. The relay vectors R are shared, so that a gradient step for one datapoint
    moves the others. Without groups there is no relay: the posterior of VAD.

    Args:
        num_data: N, datapoints.
        latent_dim: T.
        groups: K_g, relay vectors in each group.
        top: coefficients kept in each group: a share in (0, 1], a count, or one of either per group.
        form: "linear", "cluster" (one kept coefficient per group) or "mixture" (softmax over the
            kept coefficients of a group).
        sparse: the gradient of `rows` is a sparse tensor, as with `nn.Embedding(sparse=True)`: the
            cost of a step does not grow with N. `optim.RowAdam` and `torch.optim.SparseAdam` take
            it. Within `torch.compile` the gradient is dense all the same.
        device, dtype: of the tables.
        storage: "device": rows and moments in the memory of the device; "host": in that of the host;
            else a directory, for tables larger than memory: they lie in files that are mapped, and
            `fit` streams them. A directory that holds the rows of such a posterior is opened as it is
            (`reset_parameters` draws them anew); copies and pickles of it lie in memory. Damage of the
            files is a `CheckpointError` of the method that reads it, not of `rows` itself. With "host"
            or a directory the rows stay in host memory when the module is on a GPU or moved to one:
            `fit` streams them through the GPU, other reads copy the rows they need.
        shard: the rows [start, stop) of the `num_data` that this module holds, where other processes
            hold the rest, in files in a directory of their own within `storage`; all if not given.
        generator: what first values are drawn from, on its own device; torch's default generator if
            not given, so that `torch.manual_seed` holds. Nothing is drawn on the device "meta". Where
            `storage` is a directory that holds the rows already, a generator that stands where it
            stood when they were drawn is moved to where it stood afterwards; torch's own is not
            set, so that as many numbers are drawn from it and thrown away, as slowly as rows are filled.
        initial_log_std: where r starts. From -1 rows learn less of their data than from -2: better to
            fill in rows of which little is observed, worse for others.
        learn_std: false holds r where it starts: no gradient reaches it, in training and in `infer`.

    Attributes:
        num_data: rows held here.
        table_size: rows of the whole table; more than `num_data` in a shard.
        rows: parameter [N, W], the packed rows (`layout` says where each part lies).
        relays: parameter [K, T].
        layout: the `RowLayout`.
        first_row: number of the first row, 0 unless the rows are a part of a larger table, whose noise
            they then draw: row i draws that of row `first_row + i`.
        row_numbers: int64 [N] or None: the same for rows that lie in any order.

    Note:
        While a `RowAdam` in its dense mode drives the rows, rows that were not in recent batches
        are brought up to date when they are read: by a method of this module, those that it names,
        by any torch function on `rows`, all of them. Code that reads memory behind torch's back, and
        functions compiled around `rows` itself, need `RowAdam.flush()` first.
        Under `DistributedDataParallel`, which sums dense gradients alone here, the gradient of `rows`
        is dense.

    Source:
        Paper sections 3 and 4; `rvi_fast.reference.relay_sample`.

    Example:
        >>> import torch, rvi_fast
        >>> posterior = rvi_fast.RelayPosterior(1000, 8, groups=(4, 6), top=0.5)
        >>> z, kl = posterior(torch.tensor([3, 1, 4]))
        >>> z.shape, kl.shape
        (torch.Size([3, 8]), torch.Size([3]))
        >>> (kl.mean() + z.square().mean()).backward()
        >>> posterior.relays.grad.shape
        torch.Size([10, 8])
    """

    def __init__(
        self,
        num_data: int,
        latent_dim: int,
        *,
        groups: Sequence[int] = (25, 50, 100),
        top: float | int | Sequence[float | int] = 0.5,
        form: Form = "linear",
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        storage: StrPath = "device",
        shard: range | None = None,
        generator: torch.Generator | None = None,
        initial_log_std: float = -2.0,
        learn_std: bool = True,
    ) -> None:
        super().__init__()
        self.table_size = _checks.check_positive_int("num_data", num_data)
        own = check_shard(shard, num_data)
        self.sharded = shard is not None
        self.first_row, self.num_data = own.start, len(own)
        self.layout = RowLayout.resolve(latent_dim, groups, top, form)
        self.sparse = sparse
        self._row_optimizer = None
        # not saved as a buffer: loaders that know parameters and buffers alone, as accelerate's do, look
        # for a place of every key of a state_dict
        self.register_buffer("_extra_state", self.get_extra_state(), persistent=False)
        entries = self.layout.num_relays * latent_dim
        size = torch.empty(0, dtype=dtype, device="meta").element_size()
        wanted = torch.get_default_device() if device is None else torch.device(device)
        check_memory(wanted, "posterior.relays", entries * size, "lower groups or latent_dim")
        self.relays = nn.Parameter(
            torch.empty((self.layout.num_relays, latent_dim), device=device, dtype=dtype)
        )
        if not self.relays.is_floating_point():
            raise TypeError(f"dtype: expected floating point, got {self.relays.dtype}")
        self._make_rows(open_tables(storage, device, shard), generator, initial_log_std, learn_std)

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions T."""
        return self.layout.latent_dim

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws a and e from N(0, 0.01^2) and R from N(0, 1); sets r to `initial_log_std`.

        Args:
            generator: what they are drawn from, torch's default generator if not given.
        """
        self._draw_rows(generator)
        self._draw_relays(generator)

    @torch.no_grad()
    def _draw_relays(self, generator: torch.Generator | None) -> None:
        draw_normal(self.relays, 1.0, generator)

    def forward(
        self,
        index: Tensor,
        *,
        num_samples: int | None = None,
        noise: Tensor | None = None,
        noise_index: Tensor | None = None,
        seed: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> RelaySample:
        """Samples z and computes the KL divergence for the rows of a batch.

        Args:
            index: rows [B], int32 or int64.
            num_samples: S; z is then [S, B, T].
            noise: standard normal draws of z's shape, instead of drawn ones.
            noise_index: row numbers [B] that key the noise, int32 or int64; those that `first_row` or
                `row_numbers` say if not given.
            seed: int64 [1] or an int, key of the noise: the same seed gives a row the same noise in
                whatever batch. Drawn from `generator` if not given.
            generator: source of the seed; torch's default generator if not given, as for torch's own
                functions, so that `torch.manual_seed` holds.

        Returns:
            `RelaySample`: z [B, T] or [S, B, T], kl [B] in nats.

        Raises:
            IndexError: a row number outside [0, N).
        """
        _checks.check_index(index, self.relays.device)
        self._before_read(index)
        if noise_index is None:
            noise_index = self.noise_index(index)
        if noise_index is None and self.staged:
            noise_index = index
        if noise is not None:
            seed = 0
        elif seed is None:
            seed = torch.randint(
                2**63 - 1, (1,), dtype=torch.int64, device=self.relays.device, generator=generator
            )
        with as_they_are():
            rows, place = self._lent(index)
            sample = relay_sample(
                rows if self.learn_std else held(rows, self.layout.log_std_slice),
                self.relays,
                place,
                seed,
                layout=self.layout,
                num_samples=num_samples,
                noise=noise,
                noise_index=noise_index,
                sparse=self.sparse and not self.staged and not self._summed_by_ddp(),
            )
        if self._row_optimizer is not None:
            self._row_optimizer.after_forward(index)
        return sample

    def draw(
        self,
        index: Tensor,
        seed: Tensor,
        keys: Tensor | None = None,
        *,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        learn: bool = True,
    ) -> Drawn:
        """Samples z [B, T] for rows `index` [B] of a step, without autograd; see `Posterior.draw`.

        The rows are brought up to date. Those in files are not compared with their checksums: `fit` does
        that for a block at a time.

        Returns:
            `Drawn`, whose `pullback` gives the gradient of the rows [B, W], in the order of `index`.
        """
        self._bring_up_to_date(index)
        with as_they_are():
            rows = self.rows.data
        relays, layout = self.relays, self.layout
        constants = (layout.groups, layout.kept, layout.form)
        keys = self.noise_index(index) if keys is None else keys
        batch = (rows, relays.data, index, seed, noise)
        z, kl, *saved = ops.relay_sample_fwd(*batch, *constants, 1, keys)
        learn = learn and relays.requires_grad

        def pullback(grad_z: Tensor, grad_kl: Tensor) -> Tensor:
            grad_rows, grad_relays = ops.relay_sample_bwd(
                grad_z[None], grad_kl, *batch, *saved, *constants, True, learn, keys
            )
            if learn:
                relays.grad = grad_relays
            return self._learned(grad_rows)

        return Drawn(z[0], kl, pullback)

    def mean(
        self, index: Tensor | None = None, *, groups: int | None = None, deviation: bool = True
    ) -> Tensor:
        """Posterior means [B, T] of rows `index`, or of all rows.

        Args:
            index: rows [B].
            groups: use the first `groups` relay groups only (paper Figure 7).
            deviation: false leaves e out.
        """
        num_groups = len(self.layout.groups)
        if groups is not None and not 0 <= groups <= num_groups:
            raise ValueError(f"groups: expected 0 to {num_groups}, got {groups!r}")
        used = num_groups if groups is None else groups
        relays: Tensor = self.relays
        if used < num_groups:
            first_unused = self.layout.relay_offsets[used]
            relays = torch.cat((relays[:first_unused], torch.zeros_like(relays[first_unused:])))
        return torch.cat([self._mean(part, relays, deviation) for part in self._parts(index)])

    def _mean(self, index: Tensor, relays: Tensor, deviation: bool) -> Tensor:
        with as_they_are():
            rows, index = self._lent(index)
            if not deviation:
                keep = torch.ones(self.layout.width, dtype=torch.bool, device=rows.device)
                keep[self.layout.deviation_slice] = False
                rows = torch.where(keep, rows[index], 0.0)
                index = torch.arange(len(index), device=rows.device)
            zeros = rows.new_zeros((len(index), self.latent_dim))
            sparse = self.sparse and deviation and not self.staged
            sample = relay_sample(
                rows, relays, index, layout=self.layout, noise=zeros, sparse=sparse
            )
        return sample.z

    def std(self, index: Tensor | None = None) -> Tensor:
        """Posterior standard deviations [B, T] of rows `index`, or of all rows."""
        log_std, limit = self._read(index, self.layout.log_std_slice), reference.LOG_STD_LIMIT
        return log_std.clamp(-limit, limit).exp()

    def distribution(self, index: Tensor | None = None) -> Independent:
        """The posteriors of rows `index`, or of all rows: batch shape [B], event shape [T]."""
        return Independent(Normal(self.mean(index), self.std(index)), 1)

    def coefficients(self, index: Tensor | None = None) -> Tensor:
        """All relay coefficients [B, K] of rows `index`, or of all rows; kept or not."""
        rows = self._read(index, slice(self.layout.deviation_offset))
        parts = [rows[:, columns] for columns in self.layout.group_slices]
        return torch.cat([*parts, rows[:, :0]], dim=-1)

    def selected(self, index: Tensor | None = None) -> list[Tensor]:
        """Which coefficients are kept: for each group int64 [B, m_g], ascending within the group."""
        rows = self._read(index, slice(self.layout.deviation_offset)).detach()
        return [
            marks.nonzero()[:, 1].reshape(len(rows), kept)
            for marks, kept in zip(
                reference.selected(rows, self.layout), self.layout.kept, strict=True
            )
        ]

    def for_new_data(
        self, num_data: int, *, generator: torch.Generator | None = None
    ) -> RelayPosterior:
        """A posterior for new datapoints: fresh rows and a frozen copy of the relays.

        Args:
            num_data: their number.
            generator: what the rows are drawn from, torch's default generator if not given.

        Source: paper section 4.
        """
        _checks.check_positive_int("num_data", num_data)
        layout, relays = self.layout, self.relays
        place = torch.device("cpu") if self.staged else relays.device
        size = num_data * layout.width * self.rows.element_size()
        check_memory(place, "posterior.rows", size)
        rows = torch.empty((num_data, layout.width), dtype=self.rows.dtype, device=place)
        posterior = RelayPosterior.from_rows(
            rows, relays.detach().clone(), layout, sparse=self.sparse
        )
        if self.staged:  # there as here
            posterior.tables = HostTables()
        posterior._start_at(self.initial_log_std, self.learn_std)
        posterior._draw_rows(generator)
        return posterior

    @classmethod
    def from_rows(
        cls, rows: Tensor, relays: Tensor, layout: RowLayout, *, sparse: bool = False
    ) -> RelayPosterior:
        """A posterior around packed rows that are there: nothing is drawn, nothing is copied.

        Args:
            rows: [N, W], laid out by `layout`: the whole of a table, whose memory is used as it is. A
                parameter stays the same parameter, a tensor becomes one. They may lie in host memory
                where the relays are on a GPU, as with `storage="host"`.
            relays: [K, T] in the dtype of `rows`. A parameter stays the same parameter; a tensor becomes
                one that is frozen.
            layout: where the parts of a row lie.
            sparse: as in `RelayPosterior`.

        Raises:
            ValueError, TypeError: shapes, dtypes or devices that do not fit.

        Example:
            >>> import torch, rvi_fast
            >>> layout = rvi_fast.RowLayout.resolve(latent_dim=2, groups=())
            >>> rows = torch.zeros(5, layout.width)
            >>> posterior = rvi_fast.RelayPosterior.from_rows(rows, torch.zeros(0, 2), layout)
            >>> posterior.num_data, posterior.std().shape
            (5, torch.Size([5, 2]))
        """
        check_rows_and_relays(rows, relays, layout)
        posterior = cls.__new__(cls)
        nn.Module.__init__(posterior)
        posterior.layout, posterior.sparse = layout, sparse
        posterior._hold(rows, relays)
        return posterior

    def over(self, rows: Tensor) -> RelayPosterior:
        """This posterior, hooks and all, over other packed rows [n, W] where the relays are.

        The relays are the same parameter, and the memory of `rows` is used as it is. Who writes to
        `rows` itself says that no backward to come needs what was there.
        """
        # `copy.copy` would bring all rows up to date
        posterior = object.__new__(type(self))
        posterior.__dict__.update(self.__dict__)
        # .data: what is written to `rows` itself between a forward and its backward are other rows
        own = nn.Parameter(rows.data, requires_grad=self.rows.requires_grad)
        posterior._hold(own, self.relays)
        return posterior

    def _hold(self, rows: Tensor, relays: Tensor) -> None:
        """Takes these rows for all of a table of this posterior's own."""
        if not isinstance(relays, nn.Parameter):
            relays = nn.Parameter(relays, requires_grad=False)
        if not isinstance(rows, nn.Parameter):
            rows = nn.Parameter(rows)
        self._parameters = {**self._parameters, "relays": relays, "rows": rows}
        self.num_data = self.table_size = len(rows)
        self.tables = Tables() if rows.device == relays.device else HostTables()
        self.sharded = False
        self.first_row, self.row_numbers = 0, None
        self._row_optimizer = None

    def extra_repr(self) -> str:
        layout = self.layout
        text = f"num_data={self.num_data}, latent_dim={layout.latent_dim}, groups={layout.groups}"
        if layout.groups:
            text += f", kept={layout.kept}, form={layout.form!r}"
        if self.num_data < self.table_size:
            text += f", first_row={self.first_row}, table_size={self.table_size}"
        return text + (", sparse=True" if self.sparse else "")
