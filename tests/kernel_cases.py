"""The launches that `kernel_budget` compiles: cases of the ops' contracts, at sizes worth a budget.

Each function of a contract is launched for each of its cases, with every dtype and branch that makes
other machine code somewhere among them.
"""

import torch

from rvi_fast import testing
from rvi_fast.testing import AdamStepCase, GaussianLogLikelihoodCase, RowAdamCase

LAUNCHES = {
    testing.GaussianLogLikelihoodContract: (
        GaussianLogLikelihoodCase(256, 784),
        GaussianLogLikelihoodCase(4096, 784, 1, "feature", True, torch.uint8, packed=True),
        GaussianLogLikelihoodCase(1000, 63, 3, "entry", True, torch.bfloat16),
        GaussianLogLikelihoodCase(4096, 300, 1, "feature"),
    ),
    testing.AdamStepContract: (AdamStepCase(71_000), AdamStepCase(71_000, 128)),
    testing.RowAdamContract: (
        RowAdamCase(512, 256, 304),
        RowAdamCase(512, 256, 304, mode="lazy"),
        RowAdamCase(512, 256, 304, mode="row"),
    ),
}
