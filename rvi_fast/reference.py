"""The definition of every op, in plain torch: what the C++ and Triton kernels are compared with.

For each op there are up to three functions. `<op>` is the formula as one would write it on paper,
differentiable by autograd. `<op>_fwd` and `<op>_bwd` have the signatures that every backend shares
(see `ops.py`); the backward is written by hand. Sums and products are at least float32; float64
inputs are computed in float64 throughout.

Letters: N datapoints, B batch, K relay vectors, T latent dimensions, G groups, S samples, D
features, W elements in a packed row (`RowLayout`).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._checks import check_each_once, check_row_numbers
from ._op_checks import HISTORY_COLUMNS, HISTORY_TERMS, checked, layout_of
from .layout import BITS_PER_WORD, RowLayout

# exp(2 * 30) summed over a thousand dimensions stays finite in float32
LOG_STD_LIMIT = 30.0
# a uint8 entry is a pixel
PIXEL_SCALE = 1.0 / 255.0


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


# Noise: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and
# Box-Muller. The key is the seed; the counter is (t // 4, sample, row), so that a number depends on
# nothing but what it is for.

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox 4x32: four uint32 words from a counter of four and a key of two.

    Args:
        counter: four int64 tensors of broadcastable shapes holding words in [0, 2^32).
        key: two int64 tensors likewise.

    Returns:
        Four int64 tensors of the broadcast shape, words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap as uint64 ones do, so both halves come out right
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        high0, low0 = (product0 >> 32) & _MASK32, product0 & _MASK32
        high1, low1 = (product1 >> 32) & _MASK32, product1 & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def normal_noise(
    seed: Tensor, index: Tensor, num_samples: int, latent_dim: int, dtype: torch.dtype
) -> Tensor:
    """Standard normal noise that depends on (seed, row, sample, latent dimension) alone.

    Uniforms have 24 bits, so that they are the same numbers in float32 and float64:
    u = (word >> 8) / 2^24. Words come in pairs: radius = sqrt(-2 log(u_1 + 2^-24)), angle =
    2 pi u_2, normals radius * cos(angle) and radius * sin(angle). |noise| < 5.77.

    Args:
        seed: int64 [1].
        index: rows [B], int32 or int64.
        num_samples: S.
        latent_dim: T.
        dtype: dtype of the result; Box-Muller is evaluated in it.

    Returns:
        Noise [S, B, T].
    """
    row = index.to(torch.int64)[None, :, None]
    sample = torch.arange(num_samples, device=index.device)[:, None, None]
    quad = torch.arange(-(-latent_dim // 4), device=index.device)[None, None, :]
    seed = seed.reshape(())
    words = philox(
        (quad, sample, row & _MASK32, (row >> 32) & _MASK32),
        (seed & _MASK32, (seed >> 32) & _MASK32),
    )
    uniform = torch.stack(words, dim=-1) >> 8
    pairs = (uniform.to(dtype) * 2.0**-24).unflatten(-1, (2, 2))
    radius = torch.sqrt(-2.0 * torch.log(pairs[..., 0] + 2.0**-24))
    angle = 2.0 * math.pi * pairs[..., 1]
    normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return normals.flatten(-3)[..., :latent_dim]


# Selection


def select(coefficients: Tensor, kept: int) -> Tensor:
    """Marks the `kept` coefficients of largest absolute value (the paper's B_i).

    Ties go to the lowest index, -0 equals +0, NaN ranks above every number.

    Args:
        coefficients: [..., K].
        kept: m, from 1 to K.

    Returns:
        Bool [..., K], true for exactly m entries of each row.
    """
    order = torch.sort(coefficients.abs(), dim=-1, descending=True, stable=True).indices
    marks = torch.zeros_like(coefficients, dtype=torch.bool)
    return marks.scatter(-1, order[..., :kept], True)


def pack_bits(marks: Tensor) -> Tensor:
    """Packs bool [B, K] into int32 words [B, ceil(K / 32)]; entry k is bit k % 32 of word k // 32."""
    words = -(-marks.shape[-1] // BITS_PER_WORD)
    padded = pad(marks, (0, words * BITS_PER_WORD - marks.shape[-1]))
    shifts = torch.arange(BITS_PER_WORD, device=marks.device)
    bits = padded.unflatten(-1, (words, BITS_PER_WORD)).to(torch.int64) << shifts
    return bits.sum(-1).to(torch.int32)


def unpack_bits(words: Tensor, size: int) -> Tensor:
    """Undoes `pack_bits`: int32 [B, words] to bool [B, size]."""
    shifts = torch.arange(BITS_PER_WORD, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & 1).flatten(-2)[..., :size].to(torch.bool)


def group_weights(coefficients: Tensor, marks: Tensor, form: str) -> Tensor:
    """What multiplies each relay vector of a group: 0 where not kept.

    Args:
        coefficients: [B, K_g].
        marks: bool [B, K_g], the kept ones.
        form: "linear" and "cluster": the coefficient itself. "mixture": softmax over the kept
            coefficients; the paper names mixtures without a formula, this is our definition.
    """
    if form == "mixture":
        return coefficients.masked_fill(~marks, -torch.inf).softmax(-1)
    return coefficients.masked_fill(~marks, 0.0)


# relay_sample


def _rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """Rows `index`, each of which must be in the table: torch would count a negative one from its end.

    Within a transform of torch.func the numbers are those of all the calls that it stands for. In a
    trace of the compiler there are none to look at.
    """
    if not torch.compiler.is_compiling():
        values = index
        while torch._C._functorch.is_functorch_wrapped_tensor(values):
            values = torch._C._functorch.get_unwrapped(values)
        if type(values) is Tensor and not values.is_meta:
            check_row_numbers(values, rows.shape[0])
    return rows[index]


def relay_sample(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    *,
    layout: RowLayout,
    num_samples: int | None = None,
    noise: Tensor | None = None,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws z and the KL divergence for a batch of rows (paper eq. 3, 4, 5).

        relay_b = sum_g sum_{k kept in g} a_ik R_k       i = index[b]
        mu_b    = relay_b + e_i,   sigma_b = exp(r_i),   z_b = mu_b + sigma_b * noise_b
        kl_b    = 1/2 sum_t (mu^2 + sigma^2 - 1 - 2 r)

    Args and returns: `rvi_fast.relay_sample`.
    """
    batch = _rows_at(rows, index).to(_compute_dtype(rows))
    if noise is None:
        keys = index if noise_index is None else noise_index
        noise = normal_noise(seed, keys, num_samples or 1, layout.latent_dim, batch.dtype)
    z, kl, _ = _sample(batch, relays, selected(batch, layout), noise, layout)
    return (z if num_samples else z[0]).to(rows.dtype), kl


def selected(batch: Tensor, layout: RowLayout) -> list[Tensor]:
    """The kept coefficients of rows [B, W]: for each group bool [B, K_g]."""
    return [
        select(batch[:, columns], kept)
        for columns, kept in zip(layout.group_slices, layout.kept, strict=True)
    ]


def posterior_mean(
    batch: Tensor, relays: Tensor, marks: list[Tensor], layout: RowLayout
) -> tuple[Tensor, list[Tensor]]:
    """mu [B, T] of rows [B, W] and the weights of each group's relay vectors, [B, K_g] each."""
    weights = [
        group_weights(batch[:, columns], mark, layout.form)
        for columns, mark in zip(layout.group_slices, marks, strict=True)
    ]
    mean = batch[:, layout.deviation_slice]
    for weight, part in zip(weights, layout.relay_slices, strict=True):
        mean = mean + weight @ relays[part].to(batch.dtype)
    return mean, weights


def _sample(
    batch: Tensor, relays: Tensor, marks: list[Tensor], noise: Tensor, layout: RowLayout
) -> tuple[Tensor, Tensor, Tensor]:
    mean, _ = posterior_mean(batch, relays, marks, layout)
    log_std = batch[:, layout.log_std_slice].clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT)
    std = log_std.exp()
    z = mean + std * (noise if noise.dim() == 3 else noise[None]).to(batch.dtype)
    kl = 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * log_std).sum(-1)
    return z, kl, mean


@checked
def relay_sample_fwd(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    num_samples: int,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z [S, B, T], kl [B], kept bits [B, words], mu [B, T].

    `noise` is None or [S, B, T]; drawn noise is keyed by `noise_index` [B], or by `index`.
    """
    layout = layout_of(int(relays.shape[1]), tuple(groups), tuple(kept), form)
    batch = _rows_at(rows, index).to(_compute_dtype(rows))
    if noise is None:
        keys = index if noise_index is None else noise_index
        noise = normal_noise(seed, keys, num_samples, layout.latent_dim, batch.dtype)
    marks = selected(batch, layout)
    z, kl, mean = _sample(batch, relays, marks, noise, layout)
    words = [pack_bits(mark) for mark in marks]
    bits = torch.cat(words, -1) if words else index.new_empty((len(index), 0), dtype=torch.int32)
    # without groups the mean is a view of the rows
    return z.to(rows.dtype), kl, bits, mean.contiguous()


@checked
def relay_sample_bwd(
    grad_z: Tensor,
    grad_kl: Tensor,
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    bits: Tensor,
    mean: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    need_rows: bool,
    need_relays: bool,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the batch's rows [B, W] and of the relays [K, T]; one not needed has 0 elements.

    `mean` is mu as the forward pass returned it; None computes it again, differentiably.
    With grad_mu = sum_s grad_z + grad_kl mu:

        grad_e = grad_mu
        grad_r = sum_s grad_z noise sigma + grad_kl (sigma^2 - 1)
        grad_a = <grad_mu, R_k> for kept k, else 0
        grad_R = sum_b [k kept in b] a_bk grad_mu_b

    The mixture replaces a by w = softmax(a): grad_a = w (<grad_mu, R_k> - sum_j w_j <grad_mu, R_j>).
    """
    layout = layout_of(int(relays.shape[1]), tuple(groups), tuple(kept), form)
    batch = _rows_at(rows, index).to(_compute_dtype(rows))
    grad_z, grad_kl = grad_z.to(batch.dtype), grad_kl.to(batch.dtype)[:, None]
    words = bits.split(layout.word_counts, dim=-1) if groups else ()
    marks = [unpack_bits(word, size) for word, size in zip(words, groups, strict=True)]
    again, weights = posterior_mean(batch, relays, marks, layout)
    mean = again if mean is None else mean.to(batch.dtype)
    grad_mean = grad_z.sum(0) + grad_kl * mean

    grad_batch = rows.new_empty(0)
    if need_rows:
        parts = []
        for part, mark, weight in zip(layout.relay_slices, marks, weights, strict=True):
            products = grad_mean @ relays[part].to(batch.dtype).mT
            if form == "mixture":
                centre = (weight * products).sum(-1, keepdim=True)
                parts.append(weight * (products - centre))
            else:
                parts.append(products.masked_fill(~mark, 0.0))
        log_std = batch[:, layout.log_std_slice]
        inside = (log_std >= -LOG_STD_LIMIT) & (log_std <= LOG_STD_LIMIT)
        std = log_std.clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT).exp()
        if noise is None:
            keys = index if noise_index is None else noise_index
            noise = normal_noise(seed, keys, len(grad_z), layout.latent_dim, batch.dtype)
        grad_log_std = (grad_z * noise.to(batch.dtype)).sum(0) * std + grad_kl * (std.square() - 1)
        parts += [grad_mean, grad_log_std.masked_fill(~inside, 0.0)]
        starts = [*layout.group_offsets, layout.deviation_offset, layout.log_std_offset]
        widths = [end - start for start, end in pairwise([*starts, layout.width])]
        parts = [
            pad(part, (0, width - part.shape[1])) for part, width in zip(parts, widths, strict=True)
        ]
        grad_batch = torch.cat(parts, dim=-1).to(rows.dtype)
    grad_relays = relays.new_empty(0)
    if need_relays:
        combined = torch.cat([*weights, mean.new_empty((len(mean), 0))], -1)
        grad_relays = (combined.mT @ grad_mean).to(relays.dtype)
    return grad_batch, grad_relays


# gaussian_log_likelihood


def gaussian_log_likelihood(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Gaussian log-likelihood of the observed entries of each row, in nats.

        log p(x_b) = sum_{d observed} (-1/2 ((x_bd - mean_bd) / s)^2 - log s - 1/2 log 2 pi)

    Args and returns: `rvi_fast.gaussian_log_likelihood`.
    """
    dtype = _compute_dtype(mean)
    values, observed = _values(x, mask, dtype)
    residual = torch.where(observed, values - mean.to(dtype), 0.0) / scale.to(dtype)
    constant = scale.to(dtype).log() + 0.5 * math.log(2.0 * math.pi)
    return torch.where(observed, -0.5 * residual.square() - constant, 0.0).sum(-1)


def _values(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = x.to(dtype) * PIXEL_SCALE if x.dtype == torch.uint8 else x.to(dtype)
    if mask is None:
        return values, ~torch.isnan(values)
    return values, mask if mask.dtype == torch.bool else unpack_bits(mask, x.shape[-1])


@checked
def gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> Tensor:
    """Log-likelihood [S, B] from x [B, D], mean [S, B, D], scale [], [D] or [B, D].

    `mask` is bool [B, D], or its bits [B, ceil(D / 32)] as `pack_bits` lays them.
    """
    return gaussian_log_likelihood(x, mean, scale, mask)


@checked
def gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_mean: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of mean [S, B, D] and of scale (its own shape); one not needed has 0 elements.

    With u = (x - mean) / s where observed, else 0:
    grad_mean = g u / s and grad_scale = sum g (u^2 - 1) / s over observed entries.
    """
    dtype = _compute_dtype(mean)
    values, observed = _values(x, mask, dtype)
    inverse = scale.to(dtype).reciprocal()
    scaled = torch.where(observed, values - mean.to(dtype), 0.0) * inverse
    grad = grad_log_prob.to(dtype)[..., None]
    grad_mean = mean.new_empty(0)
    if need_mean:
        grad_mean = (grad * scaled * inverse).to(mean.dtype).contiguous()
    grad_scale = scale.new_empty(0)
    if need_scale:
        terms = grad * torch.where(observed, (scaled.square() - 1.0) * inverse, 0.0)
        grad_scale = terms.sum_to_size(scale.shape).to(scale.dtype)
    return grad_mean, grad_scale


# linear_gaussian_log_likelihood


def linear_gaussian_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Gaussian log-likelihood under a linear layer: mean_bd = sum_h hidden_bh W_dh + bias_d.

    Args and returns: `rvi_fast.linear_gaussian_log_likelihood`.
    """
    return gaussian_log_likelihood(x, linear_mean(hidden, weight, bias), scale, mask)


def linear_mean(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden @ weight.T + bias, at least in float32."""
    dtype = _compute_dtype(hidden, weight)
    mean = hidden.to(dtype) @ weight.to(dtype).mT
    return mean if bias is None else mean + bias.to(dtype)


@checked
def linear_gaussian_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Log-likelihood [S, B] from hidden [S, B, H], weight [D, H], bias [D] and x [B, D]."""
    return linear_gaussian_log_likelihood(hidden, weight, bias, x, scale, mask)


@checked
def linear_gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_hidden: bool,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihood [S, B] and gradients of hidden, weight, bias and scale, each in its own shape.

    One not needed, or of a bias that is None, has 0 elements. With grad_mean [S, B, D] and grad_scale
    of `gaussian_log_likelihood_bwd`:

        grad_hidden = grad_mean W,   grad_W = sum_sb grad_mean_sb hidden_sb^T,
        grad_bias = sum_sb grad_mean_sb
    """
    mean = linear_mean(hidden, weight, bias)
    log_prob = gaussian_log_likelihood(x, mean, scale, mask)
    grad_mean, grad_scale = gaussian_log_likelihood_bwd(
        grad_log_prob, x, mean, scale, mask, need_hidden or need_linear, need_scale
    )
    grad_hidden, grad_weight = hidden.new_empty(0), weight.new_empty(0)
    grad_bias = weight.new_empty(0) if bias is None else bias.new_empty(0)
    if need_hidden:
        grad_hidden = (grad_mean @ weight.to(mean.dtype)).to(hidden.dtype)
    if need_linear:
        products = grad_mean.flatten(0, 1).mT @ hidden.to(mean.dtype).flatten(0, 1)
        grad_weight = products.to(weight.dtype)
        if bias is not None:
            grad_bias = grad_mean.sum((0, 1)).to(bias.dtype)
    return log_prob, grad_hidden, grad_weight, grad_bias, grad_scale


# row_adam. `clock` holds the steps taken and the steps taken when all rows were last up to date,
# where `history` [steps, HISTORY_COLUMNS] float64 begins. Its entry for step tau is what a row last
# updated at tau has missed since. In the missed step tau + j such a row moves by

#     w_j m / (q_j sqrt(v) + eps),   w_j = lr_{tau+j} b1^j / (1 - b1^{tau+j}),
#                                    q_j = b2^{j/2} / sqrt(1 - b2^{tau+j})

# where each w_j is divided by the decay between tau and tau + j. With a number Q in the middle of the
# q_j, r_j = q_j / Q and u = eps / (Q sqrt(v) + eps), between 0 and 1, the sum over j is

#     m / (Q sqrt(v) + eps) sum_j w_j / (r_j + u (1 - r_j))

# and each term a straight line between its ends u = 0 and u = 1 less what bends it, a geometric series
# in the Chebyshev polynomials T_k of x = 2 u - 1:

#     1 / (r + u (1 - r)) = (1 - u) / r + u - u (1 - u) (1 - r)^2 r^(-3/2) (1 + 2 sum_k t^k T_k(x)),
#     t = (sqrt(r) - 1) / (sqrt(r) + 1)

# The entry holds the sums over j of w_j and of w_j / q_j, the log of the decay up to tau, Q, and the
# sums over j of the first HISTORY_TERMS coefficients. Cutting the series off there leaves a relative
# error of the displacement of at most 1e-5 for betas up to (0.9, 0.95) and (0.99, 0.999), 1e-6 for
# (0.9, 0.999), whatever sqrt(v), tau and j; where beta1 comes near beta2 up to 3e-2. It is nothing in
# the limits of sqrt(v) far above and far below eps. Q is the geometric mean of the first q_j and one
# farther on.
#
# Moments of float32 rows may be bfloat16: they are computed in the dtype of the rows, and rounded up or
# down at random when they are written, so that their mean is right. With the nearest number instead,
# a second moment would never fall: 0.999 v is less than half a unit in the last place from v. The
# bits are Philox words with the counter (element // 4, steps taken, row): a row is written once for
# each number of steps taken at most, and gets the same bits in every batch and on every backend.

WINDOW_TOLERANCE = 1e-9
# the key of the bits that moments are rounded with
MOMENT_SEED = int.from_bytes(b"moments", "big")


def _check_steps(index: Tensor, last: Tensor, clock: Tensor, history: Tensor, more: int) -> None:
    """Where the history is read and written: at the steps `last` [B] of rows `index`, and at `more`."""
    if type(clock) is not Tensor or clock.device.type != "cpu":  # without values, or dear to read
        return
    room = len(history) - more
    now, start = clock.tolist()
    if not 0 <= start <= now < start + room:
        raise ValueError(
            f"clock: expected 0 <= clock[1] <= clock[0] < clock[1] + {room}, as long as the history "
            f"is, got [{now}, {start}]"
        )
    wrong = (last < start) | (last > now)
    if bool(wrong.any()):
        first = int(wrong.to(torch.uint8).argmax())
        raise ValueError(
            f"row_step: expected {start} to {now}, got {int(last[first])} in row {int(index[first])}"
        )


def row_adam_window(beta1: float, beta2: float) -> int:
    """Missed steps that count: (beta1 / sqrt(beta2))^j falls below `WINDOW_TOLERANCE` after them."""
    rate = beta1 / math.sqrt(beta2)
    return max(1, math.ceil(math.log(WINDOW_TOLERANCE) / math.log(rate))) if rate > 0 else 1


@checked
def row_adam_catch_up(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    clock: Tensor,
    history: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Applies to rows `index` [B] (duplicates allowed) the steps they have missed, in place.

    s steps with zero gradient of dense Adam, with P the weight decay of those steps:

        theta <- P theta - P m sum_j w_j / (q_j sqrt(v) + eps),   m <- m b1^s,   v <- v b2^s

    The sum over the missed steps is taken from `history`: exact in the limits of sqrt(v) far above and
    far below eps, with a relative error of 1e-6 at most for betas (0.9, 0.999) elsewhere.
    """
    values = _caught_up(
        rows, exp_avg, exp_avg_sq, row_step, index, clock, history, beta1, beta2, eps, 0
    )
    _write(rows, exp_avg, exp_avg_sq, index, clock, *values)
    row_step[index] = clock[0].to(row_step.dtype)


def _caught_up(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    clock: Tensor,
    history: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    more: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `index` and their moments with the steps they have missed, in the dtype of the rows.

    The history has room for `more` steps.
    """
    own, last = _rows_at(rows, index), row_step[index].to(torch.int64)
    _check_steps(index, last, clock, history, more)
    missed = (clock[0] - last).to(torch.float64)
    weight, inverse, log_decay, middle, *terms = history[last - clock[1]].unbind(-1)
    decay = torch.exp(history[clock[0] - clock[1], 2] - log_decay)

    def column(values: Tensor) -> Tensor:
        return values.to(rows.dtype)[:, None]

    moment, square = exp_avg[index].to(rows.dtype), exp_avg_sq[index].to(rows.dtype)
    # what has missed nothing has no middle yet, and does not move
    denominator = column(torch.where(middle > 0, middle, 1.0)) * square.sqrt() + eps
    share = eps / denominator
    x = 2.0 * share - 1.0
    near = far = torch.zeros_like(x)  # Clenshaw's recurrence
    for term in terms[:0:-1]:
        near, far = column(decay * term) + 2.0 * x * near - far, near
    bend = column(decay * terms[0]) + x * near - far
    start, end = column(decay * middle * inverse), column(decay * weight)
    moved = start + share * (end - start - (1.0 - share) * bend)
    moved = moment / denominator * moved
    return (
        own * column(decay) - moved,
        _flushed(moment * column(beta1**missed), exp_avg.dtype),
        _flushed(square * column(beta2**missed), exp_avg.dtype),
    )


@checked
def row_adam_step(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    grad: Tensor,
    clock: Tensor,
    history: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    semantics: str,
) -> None:
    """One Adam step for rows `index` [B] (each once) with gradients [B, W], in place.

    `clock[0]` counts up by one. semantics "dense" is torch's Adam on the whole table (rows not in the
    batch are caught up when next read), "lazy" is `SparseAdam`, "row" corrects the bias by the
    row's own visit count.
    """
    theta, lr = _rows_at(rows, index), lr.to(torch.float64).reshape(())
    if not index.is_meta:
        check_each_once(index)
    moment, square = exp_avg[index].to(rows.dtype), exp_avg_sq[index].to(rows.dtype)
    if semantics == "dense":
        theta, moment, square = _caught_up(
            rows, exp_avg, exp_avg_sq, row_step, index, clock, history, beta1, beta2, eps, 1
        )
    clock[0] += 1
    count = clock[0].to(torch.float64)
    if semantics == "dense":
        row_step[index] = clock[0].to(row_step.dtype)
        _extend_history(history, clock, lr, beta1, beta2, weight_decay)
    elif semantics == "row":
        row_step[index] += 1
        count = row_step[index].to(torch.float64)[:, None]

    moment = _flushed(moment + (grad - moment) * (1.0 - beta1), exp_avg.dtype)
    square = _flushed(square * beta2 + grad * grad * (1.0 - beta2), exp_avg.dtype)
    step_size = (lr / (1.0 - beta1**count)).to(rows.dtype)
    root_correction = (1.0 - beta2**count).sqrt().to(rows.dtype)
    if semantics == "lazy":  # SparseAdam adds eps before it corrects the bias
        denominator = (square.sqrt() + eps) / root_correction
    else:
        denominator = square.sqrt() / root_correction + eps
    decay = (1.0 - lr * weight_decay).to(rows.dtype)
    theta = theta * decay - step_size * moment / denominator
    _write(rows, exp_avg, exp_avg_sq, index, clock, theta, moment, square)


def _flushed(moment: Tensor, dtype: torch.dtype) -> Tensor:
    # denormals make CPU arithmetic many times slower and move nothing
    return torch.where(moment.abs() < torch.finfo(dtype).tiny, 0.0, moment)


def _write(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    index: Tensor,
    clock: Tensor,
    theta: Tensor,
    moment: Tensor,
    square: Tensor,
) -> None:
    if exp_avg.dtype != rows.dtype:
        words = moment_words(index, clock[0], rows.shape[1])
        moment = to_bfloat16(moment, words >> 16)
        square = to_bfloat16(square, words & 0xFFFF)
    rows[index], exp_avg[index], exp_avg_sq[index] = theta, moment, square


def moment_words(index: Tensor, count: Tensor, width: int) -> Tensor:
    """32 random bits for each element of rows `index` [B] written at step `count`: int64 [B, W].

    The upper 16 are for the first moment, the lower 16 for the second.
    """
    row = index.to(torch.int64)[:, None]
    quad = torch.arange(-(-width // 4), device=index.device)
    seed = torch.tensor(MOMENT_SEED, device=index.device)
    words = philox(
        (quad, count & _MASK32, row & _MASK32, (row >> 32) & _MASK32),
        (seed & _MASK32, seed >> 32),
    )
    return torch.stack(words, -1).flatten(-2)[..., :width]


def to_bfloat16(values: Tensor, bits: Tensor) -> Tensor:
    """Rounds away from zero with the probability of what is cut off, so that the mean is the value.

    Numbers that bfloat16 holds stay as they are, finite ones finite, NaN NaN.

    Args:
        values: float32 or float64; not below 2^-126 unless 0.
        bits: random integers in [0, 2^16), of the same shape.
    """
    integer, cut = {torch.float32: (torch.int32, 16), torch.float64: (torch.int64, 45)}[
        values.dtype
    ]
    # 16 random bits below those that stay: the sum carries into them as often as it should
    magnitude = values.abs().view(integer) + (bits << (cut - 16)).to(integer)
    rounded = (magnitude >> cut << cut).view(values.dtype)
    largest = torch.finfo(torch.bfloat16).max
    finite = rounded.clamp(max=largest).copysign(values)
    return torch.where(values.isfinite(), finite, values).to(torch.bfloat16)


def _extend_history(
    history: Tensor, clock: Tensor, lr: Tensor, beta1: float, beta2: float, weight_decay: float
) -> None:
    """Adds the step just counted to what the rows last updated at earlier steps have missed."""
    step, now = clock[0].to(torch.float64), clock[0] - clock[1]
    log_decay = history[now - 1, 2] + torch.log1p(-lr * weight_decay)
    window = row_adam_window(beta1, beta2)
    missed = torch.arange(1, window + 1, device=history.device)
    tau = (now - missed).clamp(min=0)
    steps = missed.to(torch.float64)  # a power of integers would be float32
    weight = lr * beta1**steps / (1.0 - beta1**step) * torch.exp(history[tau, 2] - log_decay)
    weight = torch.where(missed <= now, weight, 0.0)
    root = (1.0 - beta2**step).sqrt()
    later = window // 8  # steps from the first missed one to the other in the middle's mean
    spread = root * (1.0 - beta2 ** (step + later)).sqrt()
    history[now - 1, 3] = (beta2 ** (0.5 * later + 1.0) / spread).sqrt()
    ratio = beta2 ** (0.5 * steps) / (root * history[tau, 3])
    quotient = (ratio.sqrt() - 1.0) / (ratio.sqrt() + 1.0)
    bend = weight * (1.0 - ratio) ** 2 * ratio**-1.5
    history[:, 0].index_add_(0, tau, weight)
    history[:, 1].index_add_(0, tau, weight * root * beta2 ** (-0.5 * steps))
    for k in range(HISTORY_TERMS):
        history[:, 4 + k].index_add_(0, tau, bend * quotient**k * (2.0 if k else 1.0))
    history[now, 2] = log_decay


def widened_history(history: Tensor) -> Tensor:
    """A history of version 0.1.0, [steps, 3], with the columns that came later; any other as it is.

    The steps that it holds keep the error they had there: the middle stands for all of them.
    """
    if history.shape[1] == HISTORY_COLUMNS:
        return history
    weight, inverse, _ = history.unbind(-1)
    middle = torch.where(inverse > 0, weight / inverse, 1.0)
    return torch.cat((history, middle[:, None], history.new_zeros(len(history), HISTORY_TERMS)), 1)


# adam_step


@checked
def adam_step(
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grads: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of torch's Adam for parameters [P] that all rows share, in place.

    The gradient is the sum of `grads` [n, P], one part for each piece of the batch. `step` (int64, one
    element) counts up by one; `lr` is float64, one element. Weight decay is decoupled, as in AdamW.
    """
    step += 1
    # one element each, whatever their dimensions
    count, lr = step.to(torch.float64).reshape(()), lr.to(torch.float64).reshape(())
    grad = grads.to(params.dtype).sum(0)
    moment = _flushed(exp_avg + (grad - exp_avg) * (1.0 - beta1), exp_avg.dtype)
    square = _flushed(exp_avg_sq * beta2 + grad * grad * (1.0 - beta2), exp_avg.dtype)
    step_size = (lr / (1.0 - beta1**count)).to(params.dtype)
    root_correction = (1.0 - beta2**count).sqrt().to(params.dtype)
    decay = (1.0 - lr * weight_decay).to(params.dtype)
    denominator = square.sqrt() / root_correction + eps
    params.copy_(params * decay - step_size * moment / denominator)
    exp_avg.copy_(moment)
    exp_avg_sq.copy_(square)
