"""The launches that `kernel_budget` compiles: cases of the ops' contracts, at sizes worth a budget.

Each function of a contract is launched for each of its cases, with every dtype and branch that makes
other machine code somewhere among them.
"""

import torch

from rvi_fast import testing
from rvi_fast.testing import (
    AdamStepCase,
    FinishStepCase,
    LikelihoodRowsCase,
    LinearLogLikelihoodCase,
    LogLikelihoodCase,
    RelaySampleCase,
    RowAdamCase,
)

# the first two cases of these are compiled for the other float32 matmul precisions too
PRECISIONS = {
    testing.RelaySampleContract: ("high", "medium"),
    testing.LinearLogLikelihoodContract: ("high", "medium"),
    testing.LikelihoodRowsContract: ("high", "medium"),
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
        LinearLogLikelihoodCase(256, 784, scale="none", hidden_dim=64, law="bernoulli"),
    ),
    testing.LogLikelihoodContract: (
        LogLikelihoodCase(256, 784),
        LogLikelihoodCase(4096, 784, 1, "feature", True, torch.uint8, packed=True),
        LogLikelihoodCase(1000, 63, 3, "entry", True, torch.bfloat16),
        LogLikelihoodCase(4096, 300, 1, "feature"),
        LogLikelihoodCase(256, 784, 1, "none", True, torch.uint8, packed=True, law="bernoulli"),
    ),
    testing.AdamStepContract: (AdamStepCase(71_000), AdamStepCase(71_000, 128)),
    testing.RowAdamContract: (
        RowAdamCase(512, 256, 308),
        RowAdamCase(512, 256, 308, mode="lazy"),
        RowAdamCase(512, 256, 308, mode="row"),
        RowAdamCase(512, 256, 308, bfloat16=True),
        RowAdamCase(512, 256, 308, mode="lazy", bfloat16=True),
        RowAdamCase(512, 256, 308, mode="row", bfloat16=True),
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
        LikelihoodRowsCase(512, 256, 784, 64, "none", law="bernoulli"),
        LikelihoodRowsCase(512, 256, 784, 64, "none", True, torch.uint8, law="bernoulli"),
    ),
    testing.FinishStepContract: (
        FinishStepCase(2219, 8, 2, 256, 25),
        FinishStepCase(2219, 25, 2, 256, 25),
        FinishStepCase(2219, 1, 1, 4096, 2),
    ),
}
