"""The six launches of a step give what the step of today gives."""

import pytest
import torch

import rvi_fast
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.reference import fused_step
from rvi_fast.training.loop.step import LinearChain, make_step

N, D, T, B = 60, 21, 6, 16
GROUPS = (5, 9)


def make(law, dtype=torch.float64):
    torch.manual_seed(3)
    model = rvi_fast.models.rvi(
        N, D, latent_dim=T, hidden=(7, 8), groups=GROUPS, likelihood=law
    ).to(dtype)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior, lr=3e-2)
    others = [p for n, p in model.named_parameters() if not n.startswith("posterior")]
    groups = [{"params": [model.posterior.relays], "lr": 2e-2}, {"params": others, "lr": 1e-2}]
    return model, rows, shared_adam(groups)


class SixLaunches:
    """A step of what is in one buffer already: [P] of both groups, made by hand."""

    def __init__(self, model, rows, shared):
        self.model, self.rows = model, rows
        linear = [m for m in model.decoder if isinstance(m, torch.nn.Linear)]
        self.hidden, self.last = linear[:-1], linear[-1]
        self.tensors = [p for group in shared.param_groups for p in group["params"]]
        sizes = [-(-p.numel() // 32) * 32 for p in self.tensors]
        self.places, total = {}, sum(sizes)
        like = self.tensors[0].detach()
        self.values, self.exp_avg, self.exp_avg_sq = (like.new_zeros(total) for _ in range(3))
        self.group = torch.zeros(total // 32, dtype=torch.int32)
        start = 0
        for number, group in enumerate(shared.param_groups):
            for parameter in group["params"]:
                self.places[parameter] = start
                own = self.values[start : start + parameter.numel()]
                own.copy_(parameter.detach().reshape(-1))
                parameter.data = own.view(parameter.shape)
                size = -(-parameter.numel() // 32) * 32
                self.group[start // 32 : (start + size) // 32] = number
                start += size
        self.lr = torch.tensor([g["lr"] for g in shared.param_groups], dtype=torch.float64)
        self.step = torch.zeros(1, dtype=torch.int64)
        self.grads = like.new_full((2, total), torch.nan)
        self.parts = torch.ones(total // 32, dtype=torch.int32)

    @torch.no_grad()
    def __call__(self, index, x, mask, seed, kl_weight):
        model, rows, posterior = self.model, self.rows, self.model.posterior
        layout, law = posterior.layout, model.likelihood
        groups, kept = list(layout.groups), list(layout.kept)
        tables = (posterior.rows.data, rows._exp_avg, rows._exp_avg_sq, rows._row_step)
        betas = (0.9, 0.999, 1e-8)
        relays = posterior.relays.data
        weights = [layer.weight.data for layer in self.hidden]
        biases = [layer.bias.data for layer in self.hidden]
        log_scale = getattr(law, "log_scale", None)
        name = "bernoulli" if log_scale is None else "gaussian"
        place = self.places.get
        clock, history = rows._clock, rows._history
        bits = fused_step.catch_up_and_select(
            *tables, index, clock, history, *betas, T, groups, kept
        )
        z, kl, mean, hidden = fused_step.relay_decode(
            tables[0], relays, index, seed, None, bits, weights, biases, groups, kept, "linear"
        )
        last = (hidden[-1], self.last.weight.data, self.last.bias.data, x, index)
        data = (log_scale, mask, name, -1.0 / len(index))
        log_prob, grad_hidden = fused_step.likelihood_rows(*last, *data)
        own = (place(self.last.weight), place(self.last.bias), place(log_scale))
        fused_step.likelihood_features(*last, *data, self.grads, own)
        layers = [place(p) for layer in self.hidden for p in (layer.weight, layer.bias)]
        lr = torch.tensor(rows.param_groups[0]["lr"], dtype=torch.float64)
        fused_step.backward_to_rows(
            grad_hidden, hidden, z, mean, bits, *tables, relays, index, seed, None, weights,
            kl_weight, len(index), clock, lr, *betas, 0.0, groups, kept, "linear", self.grads,
            [place(posterior.relays), *layers],
        )  # fmt: skip
        result = torch.zeros(3, dtype=kl.dtype)
        fused_step.finish_step(
            self.values, self.exp_avg, self.exp_avg_sq, self.grads, self.parts, self.group,
            self.step, self.lr, *betas, clock, history, lr, 0.9, 0.999, 0.0, log_prob, kl,
            kl_weight, result,
        )  # fmt: skip
        rows._num_steps += 1
        return result


@pytest.mark.parametrize("law", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_references_compose_to_the_step_by_hand(law, masked):
    x = torch.rand(N, D, dtype=torch.float64).round(decimals=0 if law == "bernoulli" else 3)
    mask = torch.rand(N, D) < 0.6 if masked else None
    plain, six = make(law), make(law)
    step = make_step(*plain)
    assert isinstance(step.decoder, LinearChain)
    launches = SixLaunches(*six)
    for number in range(7):
        index = torch.randperm(N, generator=torch.Generator().manual_seed(number))[:B]
        seed, kl_weight = torch.tensor([number]), torch.tensor(0.3, dtype=torch.float64)
        own = None if mask is None else mask[index]
        expected = torch.stack(step(index, x[index], own, seed, kl_weight, B))
        got = launches(index, x, mask, seed, kl_weight)
        torch.testing.assert_close(got, expected)
    for (name, expected), got in zip(plain[0].named_parameters(), six[0].parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)
