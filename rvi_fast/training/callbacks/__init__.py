"""What `fit(callbacks=[...])` calls after each epoch: stopping, learning rates, records, files.

    from rvi_fast.training import callbacks

    history = rvi_fast.fit(
        model, x, epochs=1000, held_out=0.1, callbacks=[
            callbacks.EarlyStopping(20, quantity="held_out", restore_best=True),
            callbacks.LearningRate.cosine(1000, warmup=10),
            callbacks.TensorBoard("runs/a/tensorboard"),
            callbacks.CSVLogger("runs/a/history.csv"),
            callbacks.Checkpoint("runs/a/best.safetensors", best="held_out"),
        ],
        run_dir="runs/a", resume=True,
    )

A run that is interrupted and resumed with the same callbacks ends bit for bit where one that was not
would have: they read what they need from the history, and the rest of what they remember lies in the
checkpoints. Write one of your own as a function of model and history, or on top of `Callback`.
`fit_many` takes them too, each run its own. Where several processes train one model, they are called in
the first.
"""

from ..loop.callback import Callback
from .files import Checkpoint, CSVLogger
from .learning_rate import LearningRate, ReduceOnPlateau
from .stopping import EarlyStopping
from .tensorboard import TensorBoard

__all__ = [
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "LearningRate",
    "ReduceOnPlateau",
    "TensorBoard",
]
