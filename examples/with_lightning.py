"""A relay posterior in a LightningModule (`pip install lightning`), resumed bit for bit by the Trainer.

    python examples/with_lightning.py runs/lightning

Two optimisers step at every batch, one for the rows and one for the rest, so the module optimises by
hand. The Trainer's checkpoints hold the states of both; started again, it goes on from the last one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from own_loop import Rows, make, table
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from rvi_fast.optim import RowAdam


class Order(Sampler[int]):
    """A random order that the number of the epoch decides, which the Trainer says."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.epoch)
        yield from torch.randperm(self.size, generator=draw).tolist()


class Relay(lightning.LightningModule):
    """Trains a `LatentModel` on batches of (index, x)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = make(x)

    def configure_optimizers(self) -> Any:
        rows = self.model.posterior.rows
        shared = [parameter for parameter in self.parameters() if parameter is not rows]
        return RowAdam(self.model.posterior, lr=0.02), torch.optim.Adam(shared, lr=0.005)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        index, x = batch
        # the key of the noise: the number of the step
        objective = self.model(index, x, seed=self.global_step)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(objective.loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.log("loss", objective.loss, on_step=False, on_epoch=True, batch_size=len(index))


def main(run_dir: Path, epochs: int = 20) -> Relay:
    """Trains up to so many epochs, those of earlier calls with the same directory included."""
    x = table()
    module = Relay(x)
    loader = DataLoader(Rows(x), batch_size=64, sampler=Order(len(x)))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(run_dir, save_last=True, save_top_k=0)],
    )
    last = run_dir / "last.ckpt"
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None)
    loss = trainer.callback_metrics.get("loss")
    print(f"after {trainer.current_epoch} epochs" + ("" if loss is None else f": loss {loss:.3f}"))
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lightning"))
