"""Batches that land on a device while its steps run, in any order that streams allow."""

import random
from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rvi_fast.training.inputs.landing import Landing, lands_on

B, D = 5, 3
CPU = torch.device("cpu")


class Device:
    """Streams whose copies wait till `run`, and are then made in any order that they allow."""

    def __init__(self):
        self.lines = []
        self.current = self.line()

    def line(self, *_):
        self.lines.append(Line())
        return self.lines[-1]

    @contextmanager
    def within(self, line):
        before, self.current = self.current, line
        yield
        self.current = before

    def run(self, chance):
        done = dict.fromkeys(self.lines, 0)
        waiting = {line: deque(line.asked) for line in self.lines}
        while any(waiting.values()):
            ready = [
                line
                for line, asked in waiting.items()
                if asked and (callable(asked[0]) or done[asked[0][0]] >= asked[0][1])
            ]
            line = chance.choice(ready)
            first = waiting[line].popleft()
            if callable(first):
                first()
            done[line] += 1


class Line:
    """A stream: copies, and (another one, how much of that has to be done before)."""

    def __init__(self):
        self.asked = []

    def wait_stream(self, other):
        self.asked.append((other, len(other.asked)))

    def wait_event(self, event):
        if event.mark is not None:
            self.asked.append(event.mark)


class Event:
    def __init__(self):
        self.mark = None

    def record(self, line):
        self.mark = line, len(line.asked)


class Later(TorchDispatchMode):
    """Within it copies are asked of the stream at hand."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name != "aten::copy_":
            return function(*args, **(kwargs or {}))
        self.device.current.asked.append(lambda: function(*args, **(kwargs or {})))
        return args[0]


@pytest.mark.parametrize("masked", [False, True])
def test_each_step_has_its_own_batch_in_any_order_that_streams_allow(monkeypatch, masked):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    sizes = [B, B, 2, B, B, B, 1]
    for seed in range(200):
        device = Device()
        monkeypatch.setattr(torch.cuda, "Stream", device.line)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _, own=device: own.current)
        monkeypatch.setattr(torch.cuda, "stream", device.within)
        batches = [
            (
                torch.full((size, D), number),
                torch.full((size, D), number % 2 > 0) if masked else None,
            )
            for number, size in enumerate(sizes)
        ]
        seen = [torch.full((size, D), -1) for size in sizes]
        flags = [torch.zeros((size, D), dtype=torch.bool) for size in sizes]
        landing, places = Landing(CPU, B, batches[0]), []
        with Later(device):
            for size, batch, x, mask in zip(sizes, batches, seen, flags, strict=True):
                landing.take(landing.prepared(batch, np.arange(size)))
                places.append(landing.place)
                for own, to in zip(landing.tables, (x, mask), strict=True):
                    if own is not None:
                        to.copy_(own[:size])
        device.run(random.Random(seed))
        assert places == [1, 0, 1, 0, 1, 0, 1]
        for (x, mask), own, flag in zip(batches, seen, flags, strict=True):
            assert torch.equal(own, x)
            assert mask is None or torch.equal(flag, mask)


def test_a_copy_does_not_wait_for_the_step_before_it(monkeypatch):
    """What it waits for are the steps on its own place, those before the last."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    device = Device()
    monkeypatch.setattr(torch.cuda, "Stream", device.line)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: device.current)
    monkeypatch.setattr(torch.cuda, "stream", device.within)
    batch, steps = (torch.zeros(B, D), None), []
    landing = Landing(CPU, B, batch)
    with Later(device):
        for _ in range(6):
            landing.take(landing.prepared(batch, np.arange(B)))
            steps.append(len(device.current.asked))
            torch.zeros(1).copy_(landing.tables[0][0, :1])  # the step
    main, copies = device.lines
    waits = [asked[1] for asked in copies.asked if not callable(asked) and asked[0] is main]
    # for whoever had the memory, and for what was asked before the first batch; from the third one on
    # for the step before the last
    assert waits == [0, 0, *(step + 1 for step in steps[:-2])]


def test_batches_land_where_graphs_are_captured():
    assert lands_on(torch.device("cuda:1"))
    assert not any(map(lands_on, map(torch.device, ("cpu", "mps", "xpu", "meta"))))
