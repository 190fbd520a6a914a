import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from app.layers import DecorrelatedBatchNorm2d
from app.spectral import METHODS, ISqrtCov

ROOT = Path(__file__).parents[3]
EXACT = ("mpn-cov", "svd-exact", "svd-trunc", "svd-taylor", "svd-pade", "svd-pi", "svd-newton")
"""Methods whose forward pass is the inverse square root itself."""

TRUE_GRADIENTS = ("svd-exact", "mpn-cov", "svd-pade", "isqrt-cov", "ns-minimax", "svd-halley")
"""Of matrices with well separated eigenvalues."""


def features(batch=5, channels=6, side=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, side, side, dtype=dtype, generator=generator)
    mix = torch.randn(channels, channels, dtype=dtype, generator=generator)
    return torch.einsum("cd,bdhw->bchw", mix, x) + 3


def channel_covariance(y, groups):
    Y = y.transpose(0, 1).reshape(groups, y.shape[1] // groups, -1)
    Y = Y - Y.mean(-1, keepdim=True)
    return Y @ Y.mT / Y.shape[-1]


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("method", EXACT)
def test_output_is_white_up_to_eps(method, groups):
    x = features()
    eps = 1e-4
    layer = DecorrelatedBatchNorm2d(6, groups, eps=eps, method=method).double()
    y = layer(x)
    # P (P + eps I)^-1 = I - eps (P + eps I)^-1
    smallest = torch.linalg.eigvalsh(channel_covariance(x, groups)).min().item()
    torch.testing.assert_close(
        channel_covariance(y, groups), torch.eye(6 // groups).double().repeat(groups, 1, 1), rtol=0, atol=eps / smallest
    )
    assert y.mean((0, 2, 3)).abs().max() < 1e-12


def test_is_the_formula_with_weight_and_bias():
    x = features()
    layer = DecorrelatedBatchNorm2d(6, eps=0.1).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    X = x.transpose(0, 1).flatten(1).numpy()
    P = np.cov(X, bias=True) + 0.1 * np.eye(6)
    expected = np.linalg.inv(scipy.linalg.sqrtm(P)) @ (X - X.mean(1, keepdims=True))
    expected = layer.weight.detach().numpy()[:, None] * expected + layer.bias.detach().numpy()[:, None]
    np.testing.assert_allclose(layer(x).detach().transpose(0, 1).flatten(1).numpy(), expected, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_of_one_channel_are_batch_norm(dtype):
    torch.manual_seed(0)
    ours, norm = DecorrelatedBatchNorm2d(6, groups=6, eps=1e-5).to(dtype), nn.BatchNorm2d(6).to(dtype)
    for layer in (ours, norm):
        nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        x = features(dtype=dtype, seed=seed)
        torch.testing.assert_close(ours(x), norm(x))
    torch.testing.assert_close(ours.running_mean, norm.running_mean)
    torch.testing.assert_close(ours.running_covariance.flatten(), norm.running_var)
    torch.testing.assert_close(ours.eval()(x), norm.eval()(x))


def test_evaluation_uses_the_running_statistics_and_a_state_dict_carries_them():
    layer = DecorrelatedBatchNorm2d(6, 2, eps=1e-5, momentum=1.0).double()
    y = layer(features())
    again = DecorrelatedBatchNorm2d(6, 2, eps=1e-5).double()
    again.load_state_dict(layer.state_dict())
    # the running covariance is the unbiased one, 80/79 of the batch's
    torch.testing.assert_close(again.eval()(features()) * (80 / 79) ** 0.5, y, rtol=1e-4, atol=1e-4)
    assert torch.equal(again(features()), layer.eval()(features()))
    assert torch.allclose(again(features()[:1]), again(features())[:1], atol=1e-12)
    assert set(layer.state_dict()) == {"weight", "bias", "running_mean", "running_covariance"}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", TRUE_GRADIENTS)
def test_gradcheck_through_the_statistics(method, groups):
    layer = DecorrelatedBatchNorm2d(4, groups, eps=1e-2, method=method).double()
    x = features(3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_weight_bias_and_features(training):
    layer = DecorrelatedBatchNorm2d(4, 2).double().train(training)
    parameters = [layer.weight, layer.bias]
    x = features(3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, *p: torch.func.functional_call(layer, dict(zip(("weight", "bias"), p, strict=True)), x),
        (x, *parameters),
    )


def test_fewer_samples_than_channels_are_whitened_where_they_vary():
    # 4 samples span 3 directions of 6: the covariance of the output is the projection on them
    layer = DecorrelatedBatchNorm2d(6, eps=1e-8).double()
    x = features(1, 6, 2).requires_grad_()
    y = layer(x)
    eigenvalues = torch.linalg.eigvalsh(channel_covariance(y, 1)[0])
    torch.testing.assert_close(eigenvalues, torch.tensor([0, 0, 0, 1, 1, 1.0]).double(), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(y.square().mean(), x)
    assert gradient.isfinite().all()


def test_one_sample_is_refused_in_training_only():
    layer = DecorrelatedBatchNorm2d(6)
    with pytest.raises(ValueError, match="svd-exact decorrelation of 6 channels: one sample of each channel"):
        layer(torch.zeros(1, 6, 1, 1))
    assert layer.eval()(torch.zeros(1, 6, 1, 1)).shape == (1, 6, 1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_statistics_in_full(dtype):
    # as batch norm: the dtype of the features comes back, statistics see their exact values
    x = features(dtype=torch.float32).to(dtype)
    layer, reference = DecorrelatedBatchNorm2d(6), DecorrelatedBatchNorm2d(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    expected = reference(x.float())
    assert y.dtype == dtype
    assert layer.running_covariance.dtype == torch.float32
    assert torch.equal(layer.running_covariance, reference.running_covariance)
    assert torch.equal(y, expected.to(dtype))


def test_large_mean_costs_no_accuracy():
    x = features(dtype=torch.float64)
    y = DecorrelatedBatchNorm2d(6)((x + 1e4).float())
    # float32 stores x + 1e4 to 5e-4, a relative noise of that size in every whitened direction
    smallest = torch.linalg.eigvalsh(channel_covariance(x, 1)).min().sqrt().item()
    torch.testing.assert_close(y.double(), DecorrelatedBatchNorm2d(6).double()(x), rtol=0, atol=30 * 5e-4 / smallest)


def test_spectrum_is_that_of_the_covariance_without_eps():
    x = features(dtype=torch.float64)
    x[:, 5] = x[:, 4]
    expected = torch.linalg.eigvalsh(channel_covariance(x, 2))
    expected[1, 0] = 0
    for method, options in (("svd-exact", {}), ("isqrt-cov", {"route": "products"})):
        layer = DecorrelatedBatchNorm2d(6, 2, eps=0.1, method=method, options=options).double()
        spectra = []
        handle = layer.observe_spectrum(spectra.append)
        layer(x)
        torch.testing.assert_close(spectra[0], expected)
        assert spectra[0][1, 0] == 0
        handle.remove()
        layer(x)
        assert len(spectra) == 1
        assert layer.covariance_size == 3
    assert DecorrelatedBatchNorm2d(6).counts is not DecorrelatedBatchNorm2d(6).counts


@pytest.mark.parametrize("handled", [True, False])
def test_a_batch_that_is_refused_leaves_the_running_statistics_alone(handled):
    layer, messages = DecorrelatedBatchNorm2d(6).double(), []
    layer(features(dtype=torch.float64))
    before = {name: value.clone() for name, value in layer.named_buffers()}
    bad = features(dtype=torch.float64)
    bad[0, 3, 0, 0] = torch.nan
    if handled:
        layer.non_finite_handler = messages.append
        assert layer(bad).isnan().all()
        assert len(messages) == 1
    else:
        with pytest.raises(FloatingPointError, match=r"svd-exact decorrelation of 6 channels: .* not finite"):
            layer(bad)
    assert all(torch.equal(value, before[name]) for name, value in layer.named_buffers())


def test_non_finite_features_are_refused_in_evaluation_too():
    layer = DecorrelatedBatchNorm2d(6).double().eval()
    bad = features(dtype=torch.float64)
    bad[0, 3, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="features contain non-finite values; the features are not finite"):
        layer(bad)


def test_features_of_small_variance_are_whitened():
    # eps is far larger than the eigenvalues: round-off is relative to eps, not to them
    x = 1e-9 * features(dtype=torch.float32)
    assert DecorrelatedBatchNorm2d(6)(x).isfinite().all()


def test_a_method_object():
    x = features(dtype=torch.float64)
    layer = DecorrelatedBatchNorm2d(6, method=ISqrtCov(iterations=7)).double()
    named = DecorrelatedBatchNorm2d(6, method="isqrt-cov", options={"iterations": 7}).double()
    assert torch.equal(layer(x), named(x))
    assert "ISqrtCov decorrelation of 6 channels" in repr(layer)


def test_options_reach_the_method():
    one, ten = (DecorrelatedBatchNorm2d(6, method="isqrt-cov", options={"iterations": k}).double() for k in (1, 20))
    exact = DecorrelatedBatchNorm2d(6).double()(features())
    assert (ten(features()) - exact).norm() < 1e-2 * (one(features()) - exact).norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 4}, "groups must divide the 6 channels, got 4"),
        ({"eps": 0.0}, "eps of the decorrelation must be positive"),
        ({"momentum": 2}, r"momentum of the decorrelation must lie in \[0, 1\]"),
        ({"method": "zca"}, "unknown method 'zca'"),
        ({"method": "svd-topn"}, "svd-topn"),
        ({"options": {"iterations": 3}}, "svd-exact takes no option 'iterations'"),
        ({"spectral_dtype": "float16"}, "spectral_dtype"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecorrelatedBatchNorm2d(6, **arguments)


def test_bad_features_are_named():
    layer = DecorrelatedBatchNorm2d(6)
    with pytest.raises(ValueError, match=r"features must be \(B, C, H, W\), got \(2, 5, 3, 3\)"):
        layer(torch.zeros(2, 5, 3, 3))
    x = torch.randn(2, 6, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"decorrelation of 6 channels.*features are not finite"):
        layer(x)


def test_every_other_method_is_available():
    for method in set(METHODS) - {"svd-topn"}:
        assert DecorrelatedBatchNorm2d(6, method=method)(features(dtype=torch.float32)).isfinite().all()


PROCESS = """
import os, sys, torch
from torch import nn
from app.layers import DecorrelatedBatchNorm2d
from app.spectral import ISqrtCov

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 6, 3), DecorrelatedBatchNorm2d(6, 2, synchronised=True)).double()
parallel = nn.parallel.DistributedDataParallel(network)
images = torch.load(f"{folder}/images.pt")
# uneven shares: 2 and 4 of 6 images, the loss a sum so that the mean over processes is half of the whole
share = images[:2] if rank == 0 else images[2:]
parallel(share).sin().sum().backward()
torch.save([[p.grad for p in network.parameters()], network.state_dict()], f"{folder}/{rank}.pt")
torch.distributed.barrier()
os._exit(0)  # gloo's threads may abort a process that takes itself apart
"""


def test_two_processes_are_one_on_the_joined_batch(tmp_path):
    images = torch.randn(6, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.save(images, tmp_path / "images.pt")
    commands = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(c, cwd=ROOT, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), DecorrelatedBatchNorm2d(6, 2)).double()
    (network(images).sin().sum() / 2).backward()
    for rank in range(2):
        gradients, state = torch.load(tmp_path / f"{rank}.pt")
        # the same sums in another order
        torch.testing.assert_close(gradients, [p.grad for p in network.parameters()], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state, network.state_dict(), rtol=1e-10, atol=1e-10)
