"""A loop under Hugging Face accelerate (`pip install accelerate`), resumed bit for bit.

    python examples/with_accelerate.py runs/accelerate

`save_state` writes the model and both optimisers, `load_state` reads them back. For several processes
that share the rows out use `rvi_fast.training.distributed`: accelerate would give each of them all rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from own_loop import Rows, make, table
from torch.utils.data import DataLoader

import rvi_fast
from rvi_fast.optim import RowAdam


class Progress:
    """How many epochs are over, for `Accelerator.register_for_checkpointing`."""

    epochs = 0

    def state_dict(self) -> dict[str, int]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epochs = state["epochs"]


def main(run_dir: Path, epochs: int = 20) -> rvi_fast.models.LatentModel:
    """Trains up to so many epochs, those of earlier calls with the same directory included."""
    accelerator = Accelerator(cpu=True)
    x = table()
    model = make(x)
    shared = [p for p in model.parameters() if p is not model.posterior.rows]
    model, rows, others = accelerator.prepare(
        model, RowAdam(model.posterior, lr=0.02), torch.optim.Adam(shared, lr=0.005)
    )
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    state = run_dir / "state"
    if state.exists():
        accelerator.load_state(str(state))

    for epoch in range(progress.epochs, epochs):
        order = torch.Generator().manual_seed(epoch)
        loader = DataLoader(Rows(x), batch_size=64, shuffle=True, generator=order)
        total = 0.0
        for step, (index, batch) in enumerate(loader):
            index, batch = index.to(accelerator.device), batch.to(accelerator.device)
            objective = model(index, batch, seed=epoch * len(loader) + step)
            rows.zero_grad()
            others.zero_grad()
            accelerator.backward(objective.loss)
            rows.step()
            others.step()
            total += objective.loss.item() * len(index)
        accelerator.print(f"epoch {epoch + 1}: loss {total / len(x):.3f}")
        progress.epochs = epoch + 1
        accelerator.save_state(str(state))
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/accelerate"))
