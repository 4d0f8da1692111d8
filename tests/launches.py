"""Stand-ins for the six launches of a step, and for the CUDA graph that they are captured in."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from rvi_fast.optim import row_adam, shared_adam
from rvi_fast.training.inputs import feed
from rvi_fast.training.loop import capture as capture_module
from rvi_fast.training.loop import inference_step
from rvi_fast.training.loop.fused_step import LAUNCHES, ROOM, SUM


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

    def sum_gradients(*arguments):
        nodes.append("sum_gradients")

    own = locals()
    room = {name: lambda *_: 2 for name in ROOM}
    return SimpleNamespace(**room, **{name: own[name] for name in (*LAUNCHES, SUM)})


class Graph:
    """Calls that are captured instead of made, and made on the same tensors whenever it is replayed."""

    at_work = None
    made: ClassVar[list] = []

    def __init__(self):
        self.calls = []
        Graph.made.append(self)

    def add(self, function, arguments, options=None):
        """Nothing changes, but where results will lie is known."""
        options = options or {}
        own = tree_map_only(torch.Tensor, torch.clone, (arguments, options))
        given = function(*own[0], **own[1])
        self.calls.append((function, arguments, options, given))
        return given

    @torch.no_grad()
    def replay(self):
        for function, arguments, options, given in self.calls:
            found = function(*arguments, **options)
            for to, values in zip(tree_leaves(given), tree_leaves(found), strict=True):
                if isinstance(to, torch.Tensor) and to.is_sparse:
                    to._indices().copy_(values._indices())
                    to._values().copy_(values._values())
                elif isinstance(to, torch.Tensor):
                    to.copy_(values)


class Captured(TorchDispatchMode):
    """Within it, functions of torch and ops are captured; to ask for a value is an error."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returns, kwargs = function._schema.returns, kwargs or {}
        assert function._schema.name != "aten::_local_scalar_dense", "waits for the device"
        # a sparse tensor holds the indices and values that it is made of
        sparse = function._schema.name.startswith("aten::_sparse_coo_tensor")
        if sparse or any(r.alias_info and not r.alias_info.is_write for r in returns):
            return function(*args, **kwargs)  # a view
        given = self.graph.add(function, args, kwargs)
        if returns and returns[0].alias_info:  # what was written to
            self.graph.calls[-1] = (*self.graph.calls[-1][:3], None)
            return kwargs.get("out", args[0])
        return given


@contextmanager
def capture(graph, **_):
    Graph.at_work = graph
    try:
        yield
    finally:
        Graph.at_work = None


@contextmanager
def capture_functions(graph, **_):
    with capture(graph), Captured(graph):
        yield


def taken_down(function):
    """The same function, which a `Graph` that captures takes down whole."""

    def call(*arguments):
        if Graph.at_work is None:
            return function(*arguments)
        with _disable_current_modes():
            return Graph.at_work.add(function, arguments)

    return call


def capturable(launches):
    """The launches, which a `Graph` that captures takes down."""
    own = {name: taken_down(getattr(launches, name)) for name in (*LAUNCHES, SUM)}
    return SimpleNamespace(**{name: getattr(launches, name) for name in ROOM}, **own)


class Stream:
    """A stream of a GPU, which is waited for by those that run one thing after another anyway."""

    def __init__(self, *_):
        pass

    def wait_stream(self, _):
        pass

    wait_event = wait_stream

    def record_event(self):
        return Event()


class Event:
    """What has been asked of such a stream, which is done."""

    def record(self, _):
        pass

    def synchronize(self):
        pass


def stand_in_for_cuda(monkeypatch, capture=capture):
    """Graphs and streams of CUDA are those of this file.

    Args:
        monkeypatch: as the fixture.
        capture: `capture` for what is `capturable`, `capture_functions` for all that torch runs.
    """
    monkeypatch.setattr(Graph, "made", [])
    cuda = {"Stream": Stream, "current_stream": Stream, "Event": Event, "CUDAGraph": Graph}
    for name, own in cuda.items():
        monkeypatch.setattr(torch.cuda, name, own)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(feed, "lands_on", lambda _: True)
    for module in (capture_module, inference_step):
        monkeypatch.setattr(module, "graphs_on", lambda _: True)
    for module in (row_adam, shared_adam):
        monkeypatch.setattr(module, "capturing", lambda _: Graph.at_work is not None)
