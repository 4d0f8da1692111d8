"""Stand-ins for the six launches of a step, and for the CUDA graph that they are captured in."""

import copy
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch

from rvi_fast.optim import row_adam, shared_adam
from rvi_fast.training.loop.fused_step import LAUNCHES, ROOM


def stand_ins(nodes):
    """The six launches without what they compute: names in a list, and room for what they give."""

    def catch_up_and_select(rows, exp_avg, exp_avg_sq, row_step, index, *others):
        nodes.append("catch_up_and_select")
        return rows.new_empty((len(index), 7), dtype=torch.int32)

    def relay_decode(rows, relays, index, seed, noise_index, bits, weights, *others):
        nodes.append("relay_decode")
        hidden = [rows.new_empty(len(index), len(weight)) for weight in weights]
        z = rows.new_empty(len(index), relays.shape[1])
        return z, rows.new_empty(len(index)), torch.empty_like(z), hidden

    def likelihood_rows(hidden, *others):
        nodes.append("likelihood_rows")
        return hidden.new_empty(2, len(hidden)), hidden.new_empty(2, *hidden.shape)

    def likelihood_features(*arguments):
        nodes.append("likelihood_features")
        return tuple(2 * (place is not None) for place in arguments[-1])

    def backward_to_rows(*arguments):
        nodes.append("backward_to_rows")
        return [int(place is not None) for place in arguments[-1]]

    def finish_step(*arguments):
        nodes.append("finish_step")

    own = locals()
    room = {name: lambda *_: 2 for name in ROOM}
    return SimpleNamespace(**room, **{name: own[name] for name in LAUNCHES})


class Graph:
    """Calls that are captured instead of made, and made on the same tensors whenever it is replayed."""

    at_work = None

    def __init__(self):
        self.calls = []

    def replay(self):
        for function, arguments, given in self.calls:
            _copy_into(given, function(*arguments))


def _copy_into(given, found):
    if isinstance(given, torch.Tensor):
        given.copy_(found)
    elif isinstance(given, list | tuple):
        for pair in zip(given, found, strict=True):
            _copy_into(*pair)


@contextmanager
def capture(graph, **_):
    Graph.at_work = graph
    try:
        yield
    finally:
        Graph.at_work = None


def capturable(launches):
    """The six launches, which a `Graph` that captures takes down."""

    def taken_down(function):
        def call(*arguments):
            if Graph.at_work is None:
                return function(*arguments)
            # nothing changes, but where results will lie is known
            given = function(*copy.deepcopy(arguments))
            Graph.at_work.calls.append((function, arguments, given))
            return given

        return call

    own = {name: taken_down(getattr(launches, name)) for name in LAUNCHES}
    return SimpleNamespace(**{name: getattr(launches, name) for name in ROOM}, **own)


class Stream:
    """A stream of a GPU, which is waited for by those that run one thing after another anyway."""

    def __init__(self, *_):
        pass

    def wait_stream(self, _):
        pass


def stand_in_for_cuda(monkeypatch):
    """Graphs and streams of CUDA are those of this file."""
    for name, own in (("Stream", Stream), ("current_stream", Stream), ("CUDAGraph", Graph)):
        monkeypatch.setattr(torch.cuda, name, own)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    for module in (row_adam, shared_adam):
        monkeypatch.setattr(module, "capturing", lambda _: Graph.at_work is not None)
