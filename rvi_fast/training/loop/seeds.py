"""Random streams: a seed for each use."""

from __future__ import annotations

# uses of the seed; MODULES is for what modules draw, dropout for instance
ORDER, NOISE, MODULES = 1, 2, 3
# entries that a training is not shown
WITHHELD = 9


def stream(seed: int, *counters: int) -> int:
    """A seed for each use: SplitMix64 over seed and counters, in [0, 2^63)."""
    state = seed & 0xFFFFFFFFFFFFFFFF
    for counter in (0, *counters):
        state = (state + 0x9E3779B97F4A7C15 * (counter + 1)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
