"""Processes that train on GPUs, one each: exchanges by NCCL, within CUDA graphs too."""

import distributed_worker as worker
import pytest
import torch
from distributed_worker import TOLERANCE, alone, assert_close, assert_equal, built, together

from rvi_fast.training import distributed
from rvi_fast.training.distributed import launch
from rvi_fast.training.loop.capture import CapturedStep

pytestmark = pytest.mark.gpu

SIZES = [size for size in (1, 2, 4, 8) if size <= max(1, torch.cuda.device_count())]


def on_the_host(state):
    return {name: value if name == "history" else value.cpu() for name, value in state.items()}


def trained(rank, size, **changes):
    """The state, and how many graphs were captured."""
    graphs, capture = [], CapturedStep._capture

    def counted(self, *arguments):
        graph = capture(self, *arguments)
        graphs.append(graph is not None)  # a process group does not end before its graphs
        return graph

    CapturedStep._capture = counted
    device = torch.device("cuda", rank)
    state = worker.train(rank, size, make_model=built, device=device, **changes)
    return on_the_host(state), sum(graphs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
def test_processes_train_what_one_trains_captured_or_not(tmp_path, size, moment_dtype):
    changes = {"batch_size": 20, "epochs": 6, "moment_dtype": moment_dtype}
    captured, plain = (
        worker.run(
            size, trained, tmp_path / str(capture), device="cuda", capture=capture, **changes
        )
        for capture in (True, False)
    )
    assert all(graphs > 0 for _, graphs in captured)
    assert not any(graphs for _, graphs in plain)
    got, expected = (together([state for state, _ in found]) for found in (captured, plain))
    if size <= 2:
        assert_equal(got, expected)
    else:  # sums within graphs may be made in another order
        assert_close(got, expected, 10 * TOLERANCE)
    if moment_dtype is None:
        own = on_the_host(alone(make=built, device=torch.device("cuda", 0), **changes))
        assert_close(got, own, 10 * TOLERANCE)


def hanging(rank, size):
    """What a process says of a GPU that waits for longer than an exchange may take."""
    device = torch.device("cuda", rank)
    torch.cuda._sleep(int(2e9))  # about a second
    launch._timeout /= 100
    with pytest.raises(distributed.RankError, match=r"has not finished in 0\.2 s") as raised:
        launch.done_in_time(device)
    torch.cuda.synchronize()
    # what a thread of NCCL would do with a group that is abandoned is not this process's concern
    worker.os._exit(0 if "has lost another one" in str(raised.value) else 1)


def test_a_gpu_that_waits_for_ever_is_an_error_in_time(tmp_path):
    processes = worker.start(1, hanging, tmp_path, device="cuda")
    processes[0].join(120)
    assert processes[0].exitcode == 0
