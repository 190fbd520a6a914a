import pytest
import torch
from torch import nn

from app.layers import (
    META_LAYERS,
    GlobalAveragePooling,
    GlobalCovariancePooling,
    build_pooling,
    meta_layers,
    spectral_layers,
)
from app.spectral import Power, SVDTaylor, covariance, covariance_power, covariance_sqrt, matrix_log, matrix_sqrt

TRUE_GRADIENTS = ("mpn-cov", "isqrt-cov", "ns-minimax", "svd-halley", "svd-exact", "svd-pade", "svd-trunc")


def features(batch=3, channels=8, side=4, dtype=torch.float64):
    return torch.randn(batch, channels, side, side, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("meta_layer", meta_layers())
def test_shapes_and_dtype(meta_layer):
    layer = build_pooling(meta_layer, 8, 5)
    pooled = layer(features(dtype=torch.float32))
    assert pooled.shape == (3, 8 if meta_layer == "gap" else 15) == (3, layer.out_features)
    assert pooled.dtype == torch.float32


def test_built_in_names_are_those_of_covariance_pooling():
    assert set(META_LAYERS) == set(meta_layers()) - {"gap"}
    for name in META_LAYERS:
        assert GlobalCovariancePooling(8, 5, name).meta_layer == name


def test_gap_is_the_mean_and_has_no_parameters():
    layer = build_pooling("gap", 8, 5)
    assert isinstance(layer, GlobalAveragePooling)
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
    assert layer.pre_svd_layer.out_channels == layer.covariance_size == 4
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
        ({"meta_layer": "svd-pad"}, "unknown meta_layer 'svd-pad': did you mean svd-pade"),
        ({"meta_layer": "svd-pade", "meta_options": {"degree": 3}}, "svd-pade takes no option 'degree'"),
        ({"meta_layer": "gap", "meta_options": {"iterations": 3}}, "gap takes no options"),
        ({"meta_options": {"iterations": 0}}, "iterations must be at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_pooling(**{"meta_layer": "isqrt-cov", "in_channels": 8, "dim": 4, **arguments})


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
    with pytest.raises(ValueError, match="route 'products' is for the iterations"):
        GlobalCovariancePooling(8, None, "svd-exact", {"route": "products"})


def test_state_dict_holds_only_the_reduction():
    keys = GlobalCovariancePooling(8, 5).state_dict().keys()
    assert all(key.startswith("reduction.") for key in keys)


@pytest.fixture
def spectra():
    """An observer and what it has seen."""
    seen = []
    return seen.append, seen


@pytest.mark.parametrize("positions", [2, 6])
def test_observers_receive_the_spectrum(positions, spectra):
    observer, seen = spectra
    features = torch.randn(4, 5, positions, 2, dtype=torch.float64, requires_grad=True)
    centred = features.detach().flatten(2) - features.detach().flatten(2).mean(-1, keepdim=True)
    expected = torch.linalg.eigvalsh(centred @ centred.mT / (2 * positions))
    layer = GlobalCovariancePooling(5, None, "svd-pade")
    handle = layer.observe_spectrum(observer)
    layer(features)
    (spectrum,) = seen
    assert spectrum.shape == (4, min(5, 2 * positions))
    assert not spectrum.requires_grad
    torch.testing.assert_close(spectrum, expected[:, -spectrum.shape[-1] :])
    with layer.unobserved():
        layer(features)
    assert (len(seen), layer.counts.calls) == (1, 1)
    handle.remove()
    layer(features)
    assert (len(seen), layer.counts.calls) == (1, 2)


def test_products_decompose_only_for_an_observer(spectra, monkeypatch):
    observer, seen = spectra
    decompositions, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: decompositions.append(A) or eigh(A))
    features = torch.randn(4, 5, 2, 2, dtype=torch.float64)
    layer = GlobalCovariancePooling(5, None, "isqrt-cov", {"route": "products"})
    layer(features)
    assert decompositions == []
    layer.observe_spectrum(observer)
    layer(features)
    reference = GlobalCovariancePooling(5, None, "svd-exact")
    reference.observe_spectrum(observer)
    reference(features)
    assert seen[0].shape == (4, 4)
    assert torch.equal(*seen)


def test_a_handler_takes_the_place_of_the_error():
    layer = GlobalCovariancePooling(8, 5, "svd-exact").eval()
    messages = []
    layer.non_finite_handler = messages.append
    x = features(dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        x[1, 2, 0, 0] = torch.nan
    pooled = layer(x)
    assert pooled.shape == (3, 15)
    assert pooled.isnan().all()
    assert torch.autograd.grad(pooled.sum(), x)[0].isnan().any()
    assert len(messages) == 1
    assert messages[0].startswith("svd-exact pooling of 8 -> 5 channels: 1 of 3 samples have non-finite features")


class HalfSum(nn.Module):
    """A normalisation that is no function of the eigenvalues."""

    def forward(self, P):
        return P / P.abs().sum((-2, -1), keepdim=True)


class UnitColumns(nn.Module):
    def forward(self, X):
        return nn.functional.normalize(X, dim=1)


def upper(Q):
    rows, columns = torch.triu_indices(*Q.shape[-2:])
    return Q[:, rows, columns]


def test_a_method_object_a_function_and_modules_of_your_own():
    x = features(channels=4)
    X = x.flatten(2)
    method = build_pooling(SVDTaylor(degree=3), 4, None)
    assert torch.equal(method(x), upper(covariance_sqrt(X, "svd-taylor", taylor_degree=3)))
    power = build_pooling("svd-exact", 4, None, function=Power(0.3))
    assert torch.equal(power(x), upper(covariance_power(X, 0.3)))
    normalised = build_pooling(HalfSum(), 4, None)
    assert torch.equal(normalised(x), upper(HalfSum()(covariance(X))))
    assert torch.autograd.gradcheck(normalised, x.requires_grad_())
    columns = build_pooling("svd-exact", 4, None, feature_normalisation=UnitColumns())
    assert torch.equal(columns(x), upper(covariance_sqrt(nn.functional.normalize(X, dim=1))))
    assert "HalfSum pooling of 4 channels" in repr(normalised)
    with pytest.raises(ValueError, match="gap takes no covariance"):
        build_pooling("gap", 4, function=Power(0.3))
    with pytest.raises(ValueError, match="defined for the square root and its inverse only"):
        build_pooling("isqrt-cov", 4, None, function=Power(0.3))


@pytest.mark.parametrize("method", ["svd-exact", "svd-pade", "mpn-cov", "svd-taylor"])
def test_power_and_logarithm_by_name(method):
    x = features(channels=4)
    X = x.flatten(2)
    power = build_pooling("power", 4, None, {"alpha": 0.7, "method": method})
    assert torch.equal(power(x), upper(covariance_power(X, 0.7, method)))
    assert torch.equal(build_pooling("power", 4, None)(x), upper(covariance_power(X, 0.5)))
    log = build_pooling("log", 4, None, {"eps": 1e-3, "method": method})
    torch.testing.assert_close(log(x), upper(matrix_log(covariance(X), method, eps=1e-3)), rtol=1e-9, atol=1e-9)
    if method == "svd-exact":
        assert torch.autograd.gradcheck(power, x.requires_grad_())
        assert torch.autograd.gradcheck(log, x.requires_grad_())


def test_the_logarithm_of_fewer_positions_than_channels():
    x = features(channels=8, side=2).requires_grad_()
    layer = build_pooling("log", 8, None, {"eps": 0.1})
    expected = matrix_log(covariance(x.flatten(2)), eps=0.1)
    torch.testing.assert_close(layer(x), upper(expected), rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize(
    ("name", "options", "function", "message"),
    [
        ("power", {"alpha": -1}, None, "alpha must be positive"),
        ("power", {"alpha": 0.7, "method": "isqrt-cov"}, None, "defined for the square root and its inverse only"),
        ("power", {"eps": 1}, None, r"svd-exact takes no option 'eps'"),
        ("log", {"eps": -1}, None, "eps must be a finite number"),
        ("log", {"method": "svd-topn"}, None, "svd-topn sets eigenvalues to zero"),
        ("log", {}, Power(0.3), "names a function itself"),
    ],
)
def test_functions_that_are_not_defined(name, options, function, message):
    with pytest.raises(ValueError, match=message):
        build_pooling(name, 8, 4, options, function=function)


def test_a_module_is_observed_and_switched_like_a_method(spectra):
    observer, seen = spectra
    layer = GlobalCovariancePooling(8, 4, HalfSum()).eval()
    layer.observe_spectrum(observer)
    layer(features(dtype=torch.float32))
    assert seen[0].shape == (3, 4)
    layer.use_meta_layer("svd-exact")
    assert layer.meta_layer == "svd-exact"
    assert not any(isinstance(module, HalfSum) for module in layer.modules())
    normalisation = HalfSum()
    layer.use_meta_layer(normalisation)
    assert layer.meta_layer is normalisation


def test_spectral_layers_are_found_by_their_class():
    model = nn.ModuleDict({"a": build_pooling("gap", 8), "b": build_pooling("svd-exact", 8, 4)})
    assert spectral_layers(model) == {"b": model["b"]}


def test_another_meta_layer_from_now_on():
    features = torch.randn(2, 8, 3, 3)
    layer = GlobalCovariancePooling(8, 4, "isqrt-cov", {"iterations": 3}).eval()
    other = GlobalCovariancePooling(8, 4, "svd-trunc", {"trunc_limit": 5}).eval()
    other.load_state_dict(layer.state_dict())
    layer.use_meta_layer("svd-trunc", {"trunc_limit": 5})
    assert torch.equal(layer(features), other(features))
    assert "svd-trunc" in repr(layer)
    with pytest.raises(ValueError, match="covariance pooling of 8 -> 4 channels cannot become gap"):
        layer.use_meta_layer("gap")
    with pytest.raises(ValueError, match="takes no option 'iterations'"):
        layer.use_meta_layer("svd-exact", {"iterations": 3})
    assert layer.meta_layer == "svd-trunc"


def test_the_layer_names_its_pre_svd_layer():
    layer = GlobalCovariancePooling(8, 4)
    assert layer.pre_svd_layer is layer.reduction[0]
    assert GlobalCovariancePooling(8, None).pre_svd_layer is build_pooling("gap", 8, 4).pre_svd_layer is None
