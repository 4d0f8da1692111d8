"""catch_up_and_select: the steps that the rows of a batch have missed, and the coefficients they keep.

Math:
    Row i = index[b]: parameters and both moments become those that `row_adam_catch_up` makes of them.
    Then, in each group, the m_g coefficients of largest |a| are marked (bits). With an order, index is
    first set to the beginning of row `position` of it.

Shapes:
    rows [N, W] float32; exp_avg, exp_avg_sq [N, W] float32 or bfloat16; row_step [N] int32; index [B];
    key_index [B] or None, see `row_adam`; clock [2] int64; history [steps, HISTORY_COLUMNS] float64;
    bits [B, words] int32. K_g <= 1024. order [R, B or more] and position [1] int64, or neither.

Saved:
    The kept bits.

Traffic:
    Three rows of W numbers read and written for each row of the batch, and its bits written: 24 B W + 4
    B words bytes, with bfloat16 moments 16 B W. A row that is up to date is read and not written.

Limits:
    Each row stands once in the batch: no program waits for another that is at work on the same row. Ties
    go to the lowest index, -0 equals 0, NaN ranks above every number. -1 stands for no row, which gets
    bits of 0 and changes nothing; so do other row numbers outside [0, N), which raise `row_error`.

Source:
    `rvi_fast.reference.fused_step.catch_up_and_select`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import layout_of
from ..layout import BITS_PER_WORD, RowLayout
from ._adam import logarithm
from ._common import launch, magnitude_key, row_error
from .row_adam import (
    catch_up,
    load_moment,
    missed_steps,
    moment_keys,
    moment_table,
    owned_row,
    row_key,
    store_moments,
)

# words of bits that a tile of several groups has at most
TILE_WORDS = 8
# quads of the largest tile, and the warps that hold it without spills
WARPS = {8: 1, 16: 1, 32: 1, 64: 1, 128: 2, 256: 4}
# the first threshold lies four octaves below the largest key, the next ones ever farther
FIRST_STEP, LARGEST_STEP = tl.constexpr(1 << 25), tl.constexpr(1 << 30)


# A tile is a part of a row, [quads, 4]: columns four at a time, as one load of 16 bytes brings them. In
# a tile of groups the quads lie in the order of the bits, eight to a word; what the last word of a group
# has beyond its coefficients is empty. GROUPS holds for each group of a tile (first quad, size, kept,
# what is added to a position in the tile for the column in the row, column behind the group).


@triton.jit
def _of_group(quad, GROUPS: tl.constexpr, TILE: tl.constexpr, ENTRY: tl.constexpr):
    """An entry of the group of each quad; those behind the last group are its own as well."""
    FIRST: tl.constexpr = TILE[0]
    END: tl.constexpr = TILE[1]
    result = tl.zeros_like(quad) + GROUPS[FIRST][ENTRY]
    for g in tl.static_range(FIRST + 1, END):
        result = tl.where(quad >= GROUPS[g][0], GROUPS[g][ENTRY], result)
    return result


@triton.jit
def _columns(GROUPS: tl.constexpr, TILE: tl.constexpr):
    """Quads [quads, 1] of a tile, the columns at which they begin, and those that end their groups."""
    QUADS: tl.constexpr = TILE[2]
    quad = tl.arange(0, QUADS)[:, None]
    return quad, 4 * quad + _of_group(quad, GROUPS, TILE, 3), _of_group(quad, GROUPS, TILE, 4)


@triton.jit
def _load_tile(rows, exp_avg, exp_avg_sq, start, first, exists):
    """Parameters and moments of the quads that begin at the columns `first` of a row."""
    place = start + first + tl.arange(0, 4)[None, :]
    return (
        tl.load(rows + place, mask=exists, other=0.0),
        load_moment(exp_avg + place, exists),
        load_moment(exp_avg_sq + place, exists),
    )


@triton.jit
def _store_tile(rows, exp_avg, exp_avg_sq, start, first, tile, key, now, exists):
    place = start + first + tl.arange(0, 4)[None, :]
    tl.store(rows + place, tile[0], mask=exists)
    store_moments(exp_avg + place, exp_avg_sq + place, tile[1], tile[2], key, first, now, exists)


@triton.jit
def _count_above(key, bound, field, FIELD: tl.constexpr):
    """How many keys of the group of each quad exceed `bound`.

    One sum over all quads has the counts of the groups in its fields. A key that exceeds the bound
    turns the sign of their difference, which is added up without a comparison.
    """
    signs = (bound - key).to(tl.uint32, bitcast=True) >> 31
    own = tl.sum(signs.to(tl.int32, bitcast=True), 1, keep_dims=True)
    total = tl.sum(own << field, 0, keep_dims=True)
    return (total >> field) & ((1 << FIELD) - 1)


@triton.jit
def _mark_largest(key, quad, GROUPS: tl.constexpr, TILE: tl.constexpr):
    """Marks the largest keys of each group, [quads, 4]; ties go to the lowest index.

    What `_common.mark_largest` does for rows is done for all groups at once, with bounds that begin
    near the largest key: there are the keys of coefficients of about one size.
    """
    FIRST: tl.constexpr = TILE[0]
    END: tl.constexpr = TILE[1]
    FIELD: tl.constexpr = TILE[3]
    kept = _of_group(quad, GROUPS, TILE, 2)
    field, low, size = tl.zeros_like(quad), tl.zeros_like(quad) - 1, tl.zeros_like(quad) + 1
    largest_of_quad = tl.max(key, 1, keep_dims=True)
    for g in tl.static_range(FIRST, END):
        own = quad >= GROUPS[g][0]
        field = tl.where(own, FIELD * (g - FIRST), field)
        # of a group that keeps all its coefficients every key exceeds the bound
        if GROUPS[g][2] < GROUPS[g][1]:
            if g + 1 < END:
                own &= quad < GROUPS[g + 1][0]
            largest = tl.max(tl.where(own, largest_of_quad, 0), 0, keep_dims=True)
            if GROUPS[g][2] == 1:
                low = tl.where(own, largest - 1, low)
            else:
                size = tl.where(own, largest + 1, size)
    # at least `kept` keys exceed `low`, and fewer `low + size`, or just as many where that is 1
    step = tl.full((), FIRST_STEP, tl.int32)
    while tl.max(size) > 1:
        upper = tl.minimum(size >> 1, step)
        lower = size - upper
        count = _count_above(key, low + lower, field, FIELD)
        enough = count >= kept
        low = tl.where(enough, low + lower, low)
        size = tl.where(count == kept, 1, tl.where(enough, upper, lower))
        step = tl.minimum(step, LARGEST_STEP // 2) * 2

    # of the keys just above `low`, which are tied, those before the position `end` are kept
    position = 4 * quad + tl.arange(0, 4)[None, :]
    end = tl.zeros_like(low) + 4 * key.shape[0]
    begin = tl.where(_count_above(key, low, field, FIELD) > kept, 0, end - 1)
    while tl.max(end - begin) > 1:
        middle = begin + ((end - begin) >> 1)
        bound = tl.where(position < middle, low, low + 1)
        enough = _count_above(key, bound, field, FIELD) >= kept
        end = tl.where(enough, middle, end)
        begin = tl.where(enough, begin, middle)
    return key > tl.where(position < end, low, low + 1)


@triton.jit
def _store_bits(bits, marks, quad, FIRST: tl.constexpr, END: tl.constexpr):
    """Writes the words FIRST to END of a row of bits."""
    QUADS: tl.constexpr = marks.shape[0]
    nibbles = marks.to(tl.int32) << (4 * (quad & 7) + tl.arange(0, 4)[None, :])
    words = tl.sum(tl.reshape(tl.sum(nibbles, 1), [QUADS // 8, 8]), 1)
    word = FIRST + tl.arange(0, QUADS // 8)
    tl.store(bits + word, words, mask=word < END)


@triton.jit(do_not_specialize=["num_data", "order_width"])
def _catch_up_and_select_kernel(
    rows_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    row_step_ptr,
    index_ptr,
    clock_ptr,
    history_ptr,
    bits_ptr,
    error_ptr,
    order_ptr,
    position_ptr,
    key_index_ptr,
    order_width,
    num_data,
    log2_beta1: tl.float64,
    log2_beta2: tl.float64,
    eps,
    GROUPS: tl.constexpr,
    TILES: tl.constexpr,
    DEVIATION: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    numbers = index_ptr
    if order_ptr is not None:
        numbers = order_ptr + tl.load(position_ptr) * order_width
        tl.store(index_ptr + place, tl.load(numbers + place))
    row, inside = owned_row(numbers, place, num_data, error_ptr, True)
    own_key, start = row_key(key_index_ptr, place, row, inside), row * WIDTH
    rest_first = DEVIATION + 4 * tl.arange(0, BLOCK_REST)[:, None]
    rest_exists = inside & (rest_first < WIDTH)
    # all of a row of usual size is on its way before any of it is waited for
    rest = _load_tile(rows_ptr, exp_avg_ptr, exp_avg_sq_ptr, start, rest_first, rest_exists)
    if len(TILES) > 0:
        quad, first, end = _columns(GROUPS, tl.constexpr(TILES[0]))
        exists = inside & (first < end)
        tile = _load_tile(rows_ptr, exp_avg_ptr, exp_avg_sq_ptr, start, first, exists)

    # the assembler would wait for what decides first, and ask for the rest of the row after that
    tl.debug_barrier()
    now, begun = tl.load(clock_ptr), tl.load(clock_ptr + 1)
    last = tl.load(row_step_ptr + row, mask=inside, other=0).to(tl.int64)
    last = tl.where(inside, last, now)
    stale = last < now
    missed = missed_steps(
        history_ptr,
        last,
        now,
        begun,
        tl.full((), log2_beta1, tl.float64),
        tl.full((), log2_beta2, tl.float64),
    )
    rest_exists &= stale
    rest = catch_up(rest[0], rest[1], rest[2], missed, eps)
    for i in tl.static_range(len(TILES)):
        if i > 0:
            quad, first, end = _columns(GROUPS, tl.constexpr(TILES[i]))
            exists = inside & (first < end)
            tile = _load_tile(rows_ptr, exp_avg_ptr, exp_avg_sq_ptr, start, first, exists)
        caught = catch_up(tile[0], tile[1], tile[2], missed, eps)
        # not before: what is read of the history between two stores is read once
        if i == 0:
            _store_tile(
                rows_ptr,
                exp_avg_ptr,
                exp_avg_sq_ptr,
                start,
                rest_first,
                rest,
                own_key,
                now,
                rest_exists,
            )
        exists &= stale
        _store_tile(
            rows_ptr, exp_avg_ptr, exp_avg_sq_ptr, start, first, caught, own_key, now, exists
        )
        theta = tl.where(stale, caught[0], tile[0])
        key = tl.where(first + tl.arange(0, 4)[None, :] < end, magnitude_key(theta), -1)
        marks = _mark_largest(key, quad, GROUPS, tl.constexpr(TILES[i])) & inside
        bits = bits_ptr + tl.program_id(0).to(tl.int64) * WORDS
        _store_bits(bits, marks, quad, TILES[i][4], TILES[i][5])
    if len(TILES) == 0:
        _store_tile(
            rows_ptr,
            exp_avg_ptr,
            exp_avg_sq_ptr,
            start,
            rest_first,
            rest,
            own_key,
            now,
            rest_exists,
        )
    # all threads have read it
    tl.debug_barrier()
    tl.store(row_step_ptr + row, now.to(tl.int32), mask=stale)


# Launcher


def _field(sizes: list[int]) -> int:
    """Bits for each of so many counts in one number of 32."""
    return min(16, 32 // len(sizes))


def _tiles_of(layout: RowLayout) -> list[list[int]]:
    """The groups of each tile: as many as its words and its fields hold, one at least."""
    tiles: list[list[int]] = []
    for g, words in enumerate(layout.word_counts):
        together = [*(tiles[-1] if tiles else []), g]
        sizes = [layout.groups[other] for other in together]
        held = words + sum(layout.word_counts[other] for other in together[:-1]) <= TILE_WORDS
        if tiles and held and max(sizes) < 1 << _field(sizes):
            tiles[-1].append(g)
        else:
            tiles.append([g])
    return tiles


@functools.lru_cache(maxsize=256)
def _constants_of(layout: RowLayout) -> dict[str, Any]:
    """Layout, tiles and launch options."""
    groups: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    word = 0
    for members in _tiles_of(layout):
        begin = word
        for g in members:
            position, column = BITS_PER_WORD * (word - begin), layout.group_offsets[g]
            size = layout.groups[g]
            own = position // 4, size, layout.kept[g], column - position, column + size
            groups.append(own)
            word += layout.word_counts[g]
        quads = BITS_PER_WORD // 4 * triton.next_power_of_2(word - begin)
        range_ = len(groups) - len(members), len(groups)
        tiles.append((*range_, quads, _field(members), begin, word))
    return {
        "GROUPS": tuple(groups),
        "TILES": tuple(tiles),
        "DEVIATION": layout.deviation_offset,
        "WIDTH": layout.width,
        "WORDS": layout.num_words,
        "BLOCK_REST": triton.next_power_of_2((layout.width - layout.deviation_offset) // 4),
        "num_warps": WARPS[max([tile[2] for tile in tiles], default=8)],
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def catch_up_and_select(
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
    latent_dim: int,
    groups: list[int],
    kept: list[int],
    order: Tensor | None = None,
    position: Tensor | None = None,
    key_index: Tensor | None = None,
) -> Tensor:
    """`reference.fused_step.catch_up_and_select`."""
    layout = layout_of(latent_dim, tuple(groups), tuple(kept), "linear")
    bits = rows.new_empty((index.shape[0], layout.num_words), dtype=torch.int32)
    launch(_catch_up_and_select_kernel, (index.shape[0],))(
        rows_ptr=rows,
        exp_avg_ptr=moment_table(exp_avg),
        exp_avg_sq_ptr=moment_table(exp_avg_sq),
        row_step_ptr=row_step,
        index_ptr=index,
        clock_ptr=clock,
        history_ptr=history,
        bits_ptr=bits,
        error_ptr=row_error(rows.device),
        order_ptr=order,
        position_ptr=position,
        key_index_ptr=moment_keys(exp_avg, key_index),
        order_width=0 if order is None else order.shape[1],
        num_data=rows.shape[0],
        log2_beta1=logarithm(beta1) / math.log(2.0),
        log2_beta2=logarithm(beta2) / math.log(2.0),
        eps=eps,
        **_constants_of(layout),
    )
    return bits
