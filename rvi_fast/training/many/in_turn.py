"""Runs that advance a step each in turn, in this process.

On CUDA each has a stream of its own, so that the kernels of one fill the device while those of another
are too small to: the host launches a step of each, a graph where steps are captured, and waits for
none. Each run's random numbers come from generators of its own, and so do threads: what a run sets for
its own steps is set for those alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from ..loop.interrupts import Interrupted, Request
from ..loop.threads import set_threads
from ..opening import SharedInputs
from .call import Call, Count, Outcome, steps_of


def train_in_turn(calls: Sequence[Call], request: Request, count: Count) -> list[Outcome]:
    """Trains the models of all calls; one that fails leaves the others alone.

    Args:
        calls: what to train.
        request: whether a signal has asked for the end; each run then ends as `fit` does.
        count: told of steps that are done.

    Raises:
        KeyboardInterrupt: a second signal has come.
    """
    shared, outcomes = SharedInputs(), [Outcome() for _ in calls]
    with contextlib.ExitStack() as stack:
        # a run that ends takes the mode back to what it was at its own beginning
        stack.enter_context(torch.enable_grad())
        lanes = {}
        for number, call in enumerate(calls):
            lanes[number] = _Lane(call, request, count, shared)
            stack.callback(lanes[number].close)
        while lanes:
            for number, lane in list(lanes.items()):
                if (outcome := lane.advance()) is not None:
                    outcomes[number] = outcome
                    del lanes[number]
    return outcomes


class _Lane:
    """A run, and what of this thread is its own while it is at work: stream, and number of threads."""

    def __init__(self, call: Call, request: Request, count: Count, shared: SharedInputs) -> None:
        self.request, self.device = request, call.device
        self.steps = steps_of(call, request, count, shared)
        self._threads = torch.get_num_threads()
        self._begun = False
        self._stream: Any = None

    def advance(self) -> Outcome | None:
        """Opens the run, or makes its next step; how it ended if it did."""
        if not self._begun and self.request.signum is not None:
            return Outcome(error=Interrupted(self.request.signum, "stopped before it began"))
        try:
            self._begin()
            self._at_work(lambda: next(self.steps))
            return None
        except StopIteration as end:
            outcome = Outcome(history=end.value)
        except (Interrupted, Exception) as error:
            outcome = Outcome(error=error)
        self.close()
        return outcome

    def close(self) -> None:
        """Lets go of the model, wherever the run stands."""
        self._at_work(self.steps.close)
        if self._stream is not None:
            self._stream.synchronize()

    def _begin(self) -> None:
        if not self._begun and self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        self._begun = True

    def _at_work(self, action: Any) -> None:
        before = torch.get_num_threads()
        set_threads(self._threads)
        try:
            own = (
                contextlib.nullcontext()
                if self._stream is None
                else torch.cuda.stream(self._stream)
            )
            with own:
                action()
        finally:
            self._threads = torch.get_num_threads()
            set_threads(before)
