"""What runs under fake CUDA tensors; `test_fake_cuda.py` starts it over a stand-in for the CUDA runtime.

Nothing has values: what is shown is that each way to call the package reaches its end on tensors of a
GPU without one look at a value, and where the results lie.
"""

import sys
import warnings

import torch
from helpers import run_cases
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rvi_fast

CUDA = torch.device("cuda", 0)
N, D, T, B = 100, 12, 8, 16


class Model(nn.Module):
    """A user's own loss over the package's modules."""

    def __init__(self, sparse=False):
        super().__init__()
        self.posterior = rvi_fast.RelayPosterior(N, T, groups=(5, 9), sparse=sparse, device=CUDA)
        first, last = nn.Linear(T, 16, device=CUDA), nn.Linear(16, D, device=CUDA)
        self.decoder = nn.Sequential(first, nn.ReLU(), last)
        self.likelihood = rvi_fast.GaussianLikelihood(D, device=CUDA)

    def forward(self, index, x):
        z, kl = self.posterior(index)
        return (kl - self.likelihood(x, self.decoder(z))).mean()

    def others(self):
        return [p for name, p in self.named_parameters() if name != "posterior.rows"]


def batch():
    return torch.arange(B, device=CUDA), torch.rand(B, D, device=CUDA)


def training_step(mode, sparse):
    model = Model(sparse)
    rows = rvi_fast.optim.RowAdam(model.posterior, mode=mode)
    shared = torch.optim.Adam(model.others(), capturable=True)
    for _ in range(2):
        loss = model(*batch())
        rows.zero_grad()
        shared.zero_grad()
        loss.backward()
        assert model.posterior.rows.grad.is_sparse is sparse
        assert model.posterior.relays.grad.device == CUDA
        if sparse or mode == "dense":  # a dense gradient has to be searched for its rows
            rows.step()
        shared.step()


def likelihoods():
    for shape in ((), (1,), (D,), (B, D)):
        mean = torch.rand(B, D, device=CUDA, requires_grad=True)
        scale = torch.rand(shape, device=CUDA, requires_grad=True)
        x = torch.rand(B, D, device=CUDA)
        for mask in (None, x > 0.5):
            rvi_fast.gaussian_log_likelihood(x, mean, scale, mask).sum().backward()
            assert scale.grad.device == CUDA


def last_layer():
    hidden = torch.rand(B, 5, device=CUDA, requires_grad=True)
    weight = torch.rand(D, 5, device=CUDA, requires_grad=True)
    x, scale = torch.rand(B, D, device=CUDA), torch.tensor(0.5, device=CUDA)
    log_prob = rvi_fast.linear_gaussian_log_likelihood(hidden, weight, None, x, scale)
    log_prob.sum().backward()
    assert weight.grad.shape == (D, 5)


def second_derivative():
    posterior = Model().posterior
    z, kl = posterior(torch.arange(B, device=CUDA))
    (grad,) = torch.autograd.grad(z.sum() + kl.sum(), posterior.relays, create_graph=True)
    torch.autograd.grad(grad.square().sum(), posterior.relays)


def autocast():
    model = Model()
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(*batch())
    loss.backward()
    assert model.posterior.relays.grad.dtype == torch.float32


def grad_scaler():
    model, scaler = Model(sparse=True), torch.amp.GradScaler("cuda")
    rows = rvi_fast.optim.RowAdam(model.posterior)
    scaler.scale(model(*batch())).backward()
    scaler.unscale_(rows)


def functional_gradient():
    posterior = Model().posterior
    index = torch.arange(B, device=CUDA)

    def loss(relays):
        tables = {"rows": posterior.rows.detach(), "relays": relays}
        return torch.func.functional_call(posterior, tables, (index,)).kl.sum()

    relays = posterior.relays.detach()
    assert torch.func.grad(loss)(relays).shape == relays.shape


def new_data():
    posterior = Model().posterior.for_new_data(5)
    assert posterior(torch.arange(5, device=CUDA), num_samples=3).z.shape == (3, 5, T)


def export():
    program = torch.export.export(Model(), batch(), strict=False)
    names = {str(node.target) for node in program.graph.nodes}
    assert "rvi_fast.relay_sample_fwd.default" in names


def compiled():
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module.forward

    torch.compile(Model(), backend=backend, fullgraph=True)(*batch())
    assert len(graphs) == 1


def compiled_backward():
    model = Model()
    torch.compile(model, backend="aot_eager", fullgraph=True)(*batch()).backward()
    assert model.posterior.rows.grad.shape == model.posterior.rows.shape


CASES = {
    **{
        f"step, {mode}, {'sparse' if sparse else 'dense'} gradient": (training_step, mode, sparse)
        for mode in ("dense", "lazy", "row")
        for sparse in (True, False)
    },
    "likelihoods": (likelihoods,),
    "last layer": (last_layer,),
    "second derivative": (second_derivative,),
    "autocast": (autocast,),
    "GradScaler": (grad_scaler,),
    "torch.func.grad": (functional_gradient,),
    "new data": (new_data,),
    "torch.export": (export,),
    "torch.compile": (compiled,),
    "torch.compile, backward": (compiled_backward,),
}


def main():
    warnings.simplefilter("ignore")
    assert torch.version.cuda is not None, "a build of torch without CUDA"
    # fake tensors need a device's name, and nothing of what a device does
    torch.cuda.is_available = lambda: False
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.mem_get_info = lambda *_: (2**40, 2**40)
    return run_cases(CASES, run)


def run(case, *arguments):
    torch.compiler.reset()
    with FakeTensorMode():
        case(*arguments)


if __name__ == "__main__":
    sys.exit(main())
