"""The launches that `kernel_budget` compiles: cases of the ops' contracts, at sizes worth a budget.

Each function of a contract is launched for each of its cases, with every dtype and branch that makes
other machine code somewhere among them.
"""

import torch

from rvi_fast import testing
from rvi_fast.testing import (
    AdamStepCase,
    BackwardToRowsCase,
    CatchUpAndSelectCase,
    FinishStepCase,
    LikelihoodRowsCase,
    LinearLogLikelihoodCase,
    LogLikelihoodCase,
    RelayDecodeCase,
    RelaySampleCase,
    RowAdamCase,
)
from rvi_fast.testing.log_likelihood import OTHER_LAWS

# the first two cases of these are compiled for the other float32 matmul precisions too
PRECISIONS = {
    testing.RelaySampleContract: ("high", "medium"),
    testing.LinearLogLikelihoodContract: ("high", "medium"),
    testing.LikelihoodRowsContract: ("high", "medium"),
    testing.BackwardToRowsContract: ("high", "medium"),
    testing.RelayDecodeContract: ("high", "medium"),
}
LAUNCHES = {
    testing.RelaySampleContract: (
        RelaySampleCase(512, 256, 64, (25, 50, 100)),
        RelaySampleCase(
            512, 256, 64, (25, 50, 100), 0.3, "mixture", num_samples=2, given_noise=True
        ),
        RelaySampleCase(512, 256, 20, (10,)),
        RelaySampleCase(512, 256, 256, (1024,)),
        RelaySampleCase(512, 256, 64, (), keyed=torch.int32),
    ),
    testing.LinearLogLikelihoodContract: (
        LinearLogLikelihoodCase(256, 784, hidden_dim=64),
        # pixels and a mask, as `fit` trains on them
        LinearLogLikelihoodCase(256, 784, 1, "scalar", True, torch.uint8, hidden_dim=64),
        LinearLogLikelihoodCase(256, 784, 1, "feature", True, torch.uint8, hidden_dim=64),
        LinearLogLikelihoodCase(256, 300, 3, "entry", hidden_dim=128, bias=False),
        LinearLogLikelihoodCase(256, 273, hidden_dim=256),
        *(
            LinearLogLikelihoodCase(256, 784, scale=scale, hidden_dim=64, law=law)
            for law, (scale, *_) in OTHER_LAWS.items()
        ),
    ),
    testing.LogLikelihoodContract: (
        LogLikelihoodCase(256, 784),
        LogLikelihoodCase(4096, 784, 1, "feature", True, torch.uint8, packed=True),
        LogLikelihoodCase(1000, 63, 3, "entry", True, torch.bfloat16),
        LogLikelihoodCase(4096, 300, 1, "feature"),
        *(
            LogLikelihoodCase(256, 784, 1, scale, True, torch.uint8, packed=True, law=law)
            for law, (scale, *_) in OTHER_LAWS.items()
        ),
    ),
    testing.AdamStepContract: (AdamStepCase(71_000), AdamStepCase(71_000, 128)),
    testing.RowAdamContract: (
        RowAdamCase(512, 256, 308),
        RowAdamCase(512, 256, 308, mode="lazy"),
        RowAdamCase(512, 256, 308, mode="row"),
        RowAdamCase(512, 256, 308, bfloat16=True),
        RowAdamCase(512, 256, 308, mode="lazy", bfloat16=True),
        RowAdamCase(512, 256, 308, mode="row", bfloat16=True),
        RowAdamCase(512, 256, 308, repeats=True),
        RowAdamCase(512, 256, 308, bfloat16=True, keyed=True),
    ),
    testing.LikelihoodRowsContract: (
        LikelihoodRowsCase(512, 256, 784, 64),
        # pixels and a mask, as `fit` trains on them
        LikelihoodRowsCase(512, 256, 784, 64, "scalar", True, torch.uint8),
        LikelihoodRowsCase(512, 256, 784, 64, "scalar", True, torch.uint8, packed=True),
        LikelihoodRowsCase(512, 256, 784, 64, "feature", True, torch.uint8),
        LikelihoodRowsCase(512, 256, 784, 64, "feature", True, torch.uint8, packed=True),
        LikelihoodRowsCase(512, 256, 300, 128, "feature", bias=False),
        LikelihoodRowsCase(512, 256, 300, 128, "scalar", True, torch.uint8),
        LikelihoodRowsCase(512, 256, 300, 128, "scalar", True, torch.uint8, packed=True),
        LikelihoodRowsCase(512, 256, 300, 128, "scalar", True, torch.float64, frozen=(0,)),
        *(
            case
            for law, (scale, *_) in OTHER_LAWS.items()
            for case in (
                LikelihoodRowsCase(512, 256, 784, 64, scale, law=law),
                LikelihoodRowsCase(512, 256, 784, 64, scale, True, torch.uint8, law=law),
            )
        ),
    ),
    testing.FinishStepContract: (
        FinishStepCase(2219, 8, 2, 256, 25),
        FinishStepCase(2219, 25, 2, 256, 25),
        FinishStepCase(2219, 1, 1, 4096, 2),
        # as `fit` launches it
        FinishStepCase(2219, 16, 2, 256, 25, position=2),
        FinishStepCase(2219, 16, 3, 256, 25, position=2, decays=True),
    ),
    testing.SumGradientsContract: (
        FinishStepCase(2219, 16, 2, 256, 25),
        FinishStepCase(2219, 256, 2, 256, 25),
    ),
    testing.BackwardToRowsContract: (
        BackwardToRowsCase(512, 256, 64, (25, 50, 100), (64, 64), pieces=25),
        BackwardToRowsCase(512, 256, 64, (25, 50, 100), (64, 64), pieces=25, bfloat16=True),
        BackwardToRowsCase(512, 256, 20, (10,), ()),
        BackwardToRowsCase(512, 256, 128, (1024,), (128, 128, 128), bfloat16=True),
        BackwardToRowsCase(512, 256, 64, (), (100,), keyed=True, bias=False),
        BackwardToRowsCase(
            512, 256, 64, (25, 50, 100), (64, 64), pieces=25, bfloat16=True, keyed=True
        ),
        BackwardToRowsCase(512, 256, 128, (1024,), (128, 128, 128), bfloat16=True, keyed=True),
    ),
    testing.CatchUpAndSelectContract: (
        CatchUpAndSelectCase(512, 256, 64, (25, 50, 100)),
        CatchUpAndSelectCase(512, 256, 64, (25, 50, 100), bfloat16=True),
        CatchUpAndSelectCase(512, 256, 64, (25, 50, 100), form="cluster"),
        CatchUpAndSelectCase(512, 256, 20, (10,)),
        CatchUpAndSelectCase(512, 256, 128, (200, 250, 7), bfloat16=True),
        CatchUpAndSelectCase(512, 256, 128, (512, 300), bfloat16=True),
        CatchUpAndSelectCase(512, 256, 128, (1024,), bfloat16=True),
        CatchUpAndSelectCase(512, 256, 64, ()),
        # as `fit` launches them
        CatchUpAndSelectCase(512, 256, 64, (25, 50, 100), ring=True),
        CatchUpAndSelectCase(512, 256, 64, (25, 50, 100), bfloat16=True, ring=True),
        CatchUpAndSelectCase(512, 256, 64, (25, 50, 100), bfloat16=True, ring=True, keyed=True),
    ),
    testing.RelayDecodeContract: (
        RelayDecodeCase(512, 256, 64, (25, 50, 100), (64, 64)),
        RelayDecodeCase(512, 256, 128, (1024,), (128, 128, 128)),
        RelayDecodeCase(512, 256, 20, (10,), (20, 30), bias=False),
        RelayDecodeCase(512, 256, 16, (25, 50, 100), (16,), form="cluster"),
        RelayDecodeCase(512, 256, 100, (), (7, 128), keyed=True),
        RelayDecodeCase(512, 256, 64, (25, 50, 100)),
    ),
}
