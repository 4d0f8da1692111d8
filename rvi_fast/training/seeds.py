"""Random streams: a seed for each use."""

from __future__ import annotations

import torch

# uses of the seed; GLOBAL is for torch's own generators, which dropout draws from
ORDER, NOISE, GLOBAL = 1, 2, 3


def stream(seed: int, *counters: int) -> int:
    """A seed for each use: SplitMix64 over seed and counters, in [0, 2^63)."""
    state = seed & 0xFFFFFFFFFFFFFFFF
    for counter in (0, *counters):
        state = (state + 0x9E3779B97F4A7C15 * (counter + 1)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def generators_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Where torch's own generators stand, as `seed_generators` seeds them."""
    state = {"cpu": torch.default_generator.get_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_generators(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Takes them back there; one that `state` does not name stays as it is."""
    if "cpu" in state:
        torch.default_generator.set_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's own generators: the CPU's and that of a CUDA device."""
    # torch.manual_seed would seed every GPU
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
