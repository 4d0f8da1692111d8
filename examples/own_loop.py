"""A training loop of one's own around a DataLoader, which goes on bit for bit where it was stopped.

    python examples/own_loop.py runs/own-loop

Each row of the table owns its posterior, so a batch is (index, x): the numbers of its rows and their
data. `RowAdam` drives the rows, any optimiser of torch the rest. Order and noise come from the number of
the epoch and of the step, not from generators that would have to be saved.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import rvi_fast
from rvi_fast.optim import RowAdam


class Rows(Dataset[tuple[int, Tensor]]):
    """The rows of a table [N, D] with their numbers; NaN where an entry is missing."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[int, Tensor]:
        return row, self.x[row]


def table(num_data: int = 500, num_features: int = 8) -> Tensor:
    """A table of two hidden causes, a third of it missing, columns standardised."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(num_data, 2, generator=draw) @ torch.randn(2, num_features, generator=draw)
    x += 0.1 * torch.randn(x.shape, generator=draw)
    x = (x - x.mean(0)) / x.std(0)
    return x.masked_fill(torch.rand(x.shape, generator=draw) < 0.3, torch.nan)


def make(x: Tensor) -> rvi_fast.models.LatentModel:
    """The model, the same whenever it is made."""
    draw = torch.Generator().manual_seed(1)
    return rvi_fast.models.rvi(*x.shape, latent_dim=4, groups=(8, 16), generator=draw)


def main(run_dir: Path, epochs: int = 20) -> rvi_fast.models.LatentModel:
    """Trains up to so many epochs, those of earlier calls with the same directory included."""
    x = table()
    model = make(x)
    rows = RowAdam(model.posterior, lr=0.02)
    # relays, decoder and scale: all but the rows
    shared = [p for p in model.parameters() if p is not model.posterior.rows]
    others = torch.optim.Adam(shared, lr=0.005)

    checkpoint, done = run_dir / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        rows.load_state_dict(state["rows"])
        others.load_state_dict(state["others"])
        done = state["epochs"]

    for epoch in range(done, epochs):
        order = torch.Generator().manual_seed(epoch)
        loader = DataLoader(Rows(x), batch_size=64, shuffle=True, generator=order)
        total = 0.0
        for step, (index, batch) in enumerate(loader):
            objective = model(index, batch, seed=epoch * len(loader) + step)
            rows.zero_grad()
            others.zero_grad()
            objective.loss.backward()
            rows.step()
            others.step()
            total += objective.loss.item() * len(index)
        print(f"epoch {epoch + 1}: loss {total / len(x):.3f}")
        run_dir.mkdir(parents=True, exist_ok=True)
        state = {"model": model.state_dict(), "rows": rows.state_dict(), "epochs": epoch + 1}
        torch.save({**state, "others": others.state_dict()}, run_dir / "writing.pt")
        # whole or not at all, wherever the process is killed
        (run_dir / "writing.pt").replace(checkpoint)

    rows.detach()
    filled = rvi_fast.impute(model.eval(), x, posterior=model.posterior)
    print(f"{int(filled.isfinite().sum())} of {filled.numel()} entries are known or filled in")
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-loop"))
