"""bfloat16 training: every layer trains, and no decomposition or spectral product runs in half precision."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.layers import DecorrelatedBatchNorm2d, meta_layers
from app.spectral import autograd, functions, iterations

SHORT = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1,
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--data.batch_size", 16,
         "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", 1)  # fmt: skip
BF16 = ("--trainer.precision", "bf16-mixed")

TREATED = ("--trainer.callbacks+=OrthogonalLoss", "--trainer.callbacks+=NearestOrthogonalGradient",
           "--trainer.callbacks+=OptimalLearningRate")  # fmt: skip
# svd-pi diverges in any precision
POOLINGS = {name: ("--model.meta_layer", name) for name in meta_layers() if name != "svd-pi"}
POOLINGS["products"] = ("--model.meta_layer", "isqrt-cov", "--model.meta_options.route", "products")
WHITENINGS = {name: ("--model.meta_layer", "gap", "--model.decorrelation", name)
              for name in ("svd-exact", "isqrt-cov")}  # fmt: skip
WHITENINGS["products"] = (*WHITENINGS["isqrt-cov"], "--model.decorrelation_options",
                          '{"options": {"route": "products"}}')  # fmt: skip
WHITENINGS["treatments"] = (*WHITENINGS["svd-exact"], *TREATED)
WHITENINGS["orthogonal"] = (*WHITENINGS["svd-exact"], "--model.weight_treatment", "orthogonal")

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "matmul")
DECOMPOSITIONS = ("_linalg_eigh", "linalg_eigh", "_linalg_svd", "linalg_svd", "linalg_qr", "linalg_matrix_exp")


class Dtypes(TorchDispatchMode):
    """Operations of the spectral part, and the dtypes that entered them."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        dtypes = {x.dtype for x in torch.utils._pytree.tree_leaves((arguments, options))
                  if isinstance(x, torch.Tensor) and x.is_floating_point()}  # fmt: skip
        name = function.overloadpacket.__name__
        self.seen |= {(name, dtype) for dtype in dtypes}
        return function(*arguments, **(options or {}))

    def of(self, *names):
        return {dtype for name, dtype in self.seen if name in names}


@pytest.fixture
def watched(monkeypatch):
    """The dtypes inside the spectral functions, forward and backward, and in every decomposition anywhere."""
    record, one_thread = Dtypes(), torch.get_num_threads()
    torch.set_num_threads(1)  # threads of their own would not be seen

    def inside(function):
        def call(*arguments, **options):
            with record:
                return function(*arguments, **options)

        return call

    pooling = "app.layers.global_covariance_pooling.covariance_function"
    monkeypatch.setattr(pooling, inside(functions.covariance_function))
    monkeypatch.setattr(DecorrelatedBatchNorm2d, "forward", inside(DecorrelatedBatchNorm2d.forward))
    for function in (autograd.MatrixFunction, autograd.CovarianceFunction, autograd.Covariance,
                     iterations._IterationOfMatrices):  # fmt: skip
        monkeypatch.setattr(function, "backward", staticmethod(inside(function.backward)))
    for name in ("eigh", "svd", "qr", "matrix_exp"):
        monkeypatch.setattr(torch.linalg, name, inside(getattr(torch.linalg, name)))
    yield record
    torch.set_num_threads(one_thread)


CASES = [*((name, "float64") for name in POOLINGS), *((name, "float32") for name in ("svd-exact", "products"))]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_pooling(name, dtype, main, demo, watched):
    spectral = ("--model.spectral_dtype", dtype)
    assert main("fit", "--config", demo, *BF16, *SHORT, *POOLINGS[name], *spectral) == 0
    if name == "gap":
        assert not watched.seen
        return
    assert torch.bfloat16 in watched.of("_to_copy")  # the features were, and were cast
    assert watched.of(*PRODUCTS) == {getattr(torch, dtype)}
    assert watched.of(*DECOMPOSITIONS) == (set() if name == "products" else {getattr(torch, dtype)})


@pytest.mark.parametrize("name", WHITENINGS)
def test_decorrelation_and_treatments(name, main, demo, watched):
    assert main("fit", "--config", demo, *BF16, *SHORT, *WHITENINGS[name]) == 0
    assert torch.bfloat16 in watched.of("_to_copy")
    # the whitening itself, S X, is a product in float32
    assert watched.of(*PRODUCTS) == {torch.float64, torch.float32}
    expected = {"products": set(), "orthogonal": {torch.float64, torch.float32}}.get(name, {torch.float64})
    assert watched.of(*DECOMPOSITIONS) == expected


def test_half_precision_on_a_cpu_is_bfloat16(main, demo, caplog):
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU"):
        assert main("fit", "--config", demo, "--trainer.precision", "16-mixed", *SHORT) == 0
    assert "bfloat16 Automatic Mixed Precision" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 needs a GPU")
@pytest.mark.parametrize("name", [*POOLINGS, *WHITENINGS])
def test_float16_on_a_gpu(name, main, demo, watched):
    gpu = ("--trainer.accelerator", "gpu", "--trainer.devices", 1, "--trainer.precision", "16-mixed")
    assert main("fit", "--config", demo, *SHORT, *gpu, *{**POOLINGS, **WHITENINGS}[name]) == 0
    assert torch.float16 not in watched.of(*PRODUCTS, *DECOMPOSITIONS)
    if name != "gap":
        assert torch.float16 in watched.of("_to_copy")
