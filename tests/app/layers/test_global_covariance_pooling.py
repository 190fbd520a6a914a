import pytest
import torch
from torch import nn

from app.layers import META_LAYERS, GlobalCovariancePooling
from app.spectral import matrix_sqrt

TRUE_GRADIENTS = ("mpn-cov", "isqrt-cov", "ns-minimax", "svd-exact", "svd-pade", "svd-trunc")


def features(batch=3, channels=8, side=4, dtype=torch.float64):
    return torch.randn(batch, channels, side, side, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("meta_layer", META_LAYERS)
def test_shapes_and_dtype(meta_layer):
    layer = GlobalCovariancePooling(8, 5, meta_layer)
    pooled = layer(features(dtype=torch.float32))
    assert pooled.shape == (3, 8 if meta_layer == "gap" else 15) == (3, layer.out_features)
    assert pooled.dtype == torch.float32


def test_gap_is_the_mean_and_has_no_parameters():
    layer = GlobalCovariancePooling(8, 5, "gap")
    assert not list(layer.parameters())
    assert torch.equal(layer(features()), features().mean((2, 3)))


def test_upper_triangle_of_the_square_root_of_the_covariance_of_the_reduced_channels():
    layer = GlobalCovariancePooling(8, 5, "svd-exact").double()
    x = layer.reduction(features()).flatten(2)
    x = x - x.mean(-1, keepdim=True)
    Q = matrix_sqrt(x @ x.mT / x.shape[-1])
    rows, columns = torch.triu_indices(5, 5)
    # the layer decomposes in float64 what the formula above does: equal up to the condition of the square root
    torch.testing.assert_close(layer(features()), Q[:, rows, columns], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dim", [5, None])
@pytest.mark.parametrize("meta_layer", TRUE_GRADIENTS)
def test_gradcheck(meta_layer, dim):
    # evaluation mode: batch statistics would couple the samples through gradcheck's perturbations, ReLU has kinks at 0
    layer = GlobalCovariancePooling(6, dim, meta_layer).double().eval()
    x = features(2, 6, 4).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)


def test_result_has_the_dtype_of_the_features_and_autocast_does_not_reach_the_spectral_part(monkeypatch):
    seen = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: seen.append(A.dtype) or eigh(A))
    layer = GlobalCovariancePooling(8, 5, "svd-exact")
    x = features(dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer(x)
    assert set(seen) == {torch.float64}
    assert under_autocast.dtype == torch.bfloat16  # what the convolution hands over
    # the convolution rounds to bfloat16 (eps 2^-7); the square root is 1/2-homogeneous, so errors stay of that order
    torch.testing.assert_close(under_autocast.float(), expected, rtol=0, atol=8 * 2**-7 * expected.abs().max().item())


def test_options_reach_the_method():
    one = GlobalCovariancePooling(8, None, "isqrt-cov", {"iterations": 1})(features())
    ten = GlobalCovariancePooling(8, None, "isqrt-cov", {"iterations": 10})(features())
    exact = GlobalCovariancePooling(8, None, "svd-exact")(features())
    assert (ten - exact).norm() < 0.05 * (one - exact).norm()


def test_spectral_dtype():
    assert GlobalCovariancePooling(8, 5, spectral_dtype="float32").spectral_dtype == torch.float32


def test_counts_decompositions_of_its_own_only():
    first, second = GlobalCovariancePooling(8, 5, "svd-exact"), GlobalCovariancePooling(8, 5, "svd-exact")
    first(features(dtype=torch.float32))
    assert (first.counts.calls, second.counts.calls, first.counts.failures) == (1, 0, 0)


def test_several_reductions():
    layer = GlobalCovariancePooling(8, [6, 4])
    assert [m.out_channels for m in layer.modules() if isinstance(m, nn.Conv2d)] == [6, 4]
    assert layer.pre_svd_layer.out_channels == layer.dim == 4
    assert layer(features(dtype=torch.float32)).shape[-1] == layer.out_features == 10
    assert "8 -> 6 -> 4" in repr(layer)
    # one number in a list is that number, also to a checkpoint
    assert GlobalCovariancePooling(8, [4]).state_dict().keys() == GlobalCovariancePooling(8, 4).state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": [6, 9]}, "between 2 and the 8 channels"),
        ({"dim": 9}, "between 2 and the 8 channels"),
        ({"dim": 1}, "between 2 and the 8 channels"),
        ({"meta_layer": "svd"}, "unknown meta_layer 'svd'"),
        ({"meta_layer": "svd-pade", "meta_options": {"degree": 3}}, "svd-pade takes no option 'degree'"),
        ({"meta_layer": "gap", "meta_options": {"iterations": 3}}, "gap takes no options"),
        ({"meta_options": {"iterations": 0}}, "iterations must be at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalCovariancePooling(8, **{"dim": 4, **arguments})


def test_a_single_position_is_refused():
    with pytest.raises(ValueError, match="more than one position"):
        GlobalCovariancePooling(8, 4)(torch.zeros(2, 8, 1, 1))


def test_non_finite_features_and_weights_are_told_apart():
    layer = GlobalCovariancePooling(8, 5, "svd-exact").eval()
    x = features(dtype=torch.float32)
    x[1, 2, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"1 of 3 samples.*weights of this layer are finite"):
        layer(x)
    with torch.no_grad():
        layer.reduction[0].weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"weights reduction\.0\.weight are not finite"):
        layer(features(dtype=torch.float32))


def test_an_overflowing_covariance_is_told_apart():
    layer = GlobalCovariancePooling(8, None, "svd-exact", spectral_dtype="float32")
    with pytest.raises(FloatingPointError, match="their covariance overflows: use spectral_dtype float64"):
        layer(1e30 * features(dtype=torch.float32))


def test_the_route_is_an_option():
    eigenbasis, products = (
        GlobalCovariancePooling(8, None, "isqrt-cov", {"route": route})(features())
        for route in ("eigenbasis", "products")
    )
    torch.testing.assert_close(eigenbasis, products)
    with pytest.raises(ValueError, match="route 'products' is for the Newton-Schulz methods"):
        GlobalCovariancePooling(8, None, "svd-exact", {"route": "products"})


def test_state_dict_holds_only_the_reduction():
    keys = GlobalCovariancePooling(8, 5).state_dict().keys()
    assert all(key.startswith("reduction.") for key in keys)


@pytest.mark.parametrize("positions", [2, 6])
def test_spectrum_of_the_last_batch(positions):
    features = torch.randn(4, 5, positions, 2, dtype=torch.float64)
    centred = features.flatten(2) - features.flatten(2).mean(-1, keepdim=True)
    expected = torch.linalg.eigvalsh(centred @ centred.mT / (2 * positions))
    layer = GlobalCovariancePooling(5, None, "svd-pade")
    assert layer.spectrum is None
    layer(features)
    rank = layer.spectrum.shape[-1]
    torch.testing.assert_close(layer.spectrum, expected[:, -rank:])
    assert rank == min(5, 2 * positions)


def test_products_decompose_only_where_it_is_wanted():
    features = torch.randn(4, 5, 2, 2, dtype=torch.float64)
    layer = GlobalCovariancePooling(5, None, "isqrt-cov", {"route": "products"})
    layer(features)
    assert layer.spectrum is None
    layer.spectrum_wanted = True
    layer(features)
    reference = GlobalCovariancePooling(5, None, "svd-exact")
    reference(features)
    assert layer.spectrum.shape == (4, 4)
    assert torch.equal(layer.spectrum, reference.spectrum)


def test_another_meta_layer_from_now_on():
    features = torch.randn(2, 8, 3, 3)
    layer = GlobalCovariancePooling(8, 4, "isqrt-cov", {"iterations": 3}).eval()
    other = GlobalCovariancePooling(8, 4, "svd-trunc", {"trunc_limit": 5}).eval()
    other.load_state_dict(layer.state_dict())
    layer.use_meta_layer("svd-trunc", {"trunc_limit": 5})
    assert torch.equal(layer(features), other(features))
    assert "svd-trunc" in repr(layer)
    with pytest.raises(ValueError, match="svd-trunc pooling of 8 -> 4 channels cannot become gap"):
        layer.use_meta_layer("gap")
    with pytest.raises(ValueError, match="takes no option 'iterations'"):
        layer.use_meta_layer("svd-exact", {"iterations": 3})
    assert layer.meta_layer == "svd-trunc"


def test_the_layer_names_its_pre_svd_layer():
    layer = GlobalCovariancePooling(8, 4)
    assert layer.pre_svd_layer is layer.reduction[0]
    assert GlobalCovariancePooling(8, None).pre_svd_layer is GlobalCovariancePooling(8, 4, "gap").pre_svd_layer is None
