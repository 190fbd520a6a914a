"""Treatments of the weight of the convolution before a covariance: spectral normalisation and orthogonal weight.

Shapes: a kernel ``(C_out, C_in, k, k)`` is the matrix W of m = C_out rows and n = C_in k k columns.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

Treatment = Literal["spectral", "orthogonal"]


class OrthogonalWeight(nn.Module):
    """``exp(W - W^T)``, orthogonal for every W (Song et al., ECCV 2022, eq. 13), as a parametrization of a kernel.

    A rectangular W is padded with zeros to a square of side s = max(m, n), and the first m rows and n columns of the
    exponential are the kernel: its columns are orthonormal for m > n, its rows for m < n. Every kernel with orthonormal
    columns (or rows) to which the identity can be rotated is reached this way. W starts as the original kernel.

    The exponential is taken in float32 or better, outside autocast. It costs a dozen products of matrices of side s,
    and about ten times that in the backward pass; if one side is more than twice the other, the matrices only have
    twice the shorter side.
    """

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            W = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
            Q = _first_rows(W) if W.shape[0] <= W.shape[1] else _first_rows(W.mT).mT
        return Q.reshape(weight.shape).to(weight.dtype)


def _first_rows(W: Tensor) -> Tensor:
    """The first m rows of ``exp(P - P^T)``, P being W ``(m, n)``, m <= n, with rows of zeros below.

    With ``W = [W_1, W_2]``, W_1 square, and ``A = W_1 - W_1^T``, the rows ``[E(t), E_2(t)]`` of the exponential at t
    obey ``E' = E A - E_2 W_2^T`` and ``E_2' = E W_2``. So ``E_2 = F W_2`` with ``F' = E``, and ``E' = E A - F W_2
    W_2^T``: for a long W, E and F come from one exponential of side 2m, that of ``[[A, I], [-W_2 W_2^T, 0]]``.
    """
    m, n = W.shape
    if n <= 2 * m:
        P = nn.functional.pad(W, (0, 0, 0, n - m))
        return torch.linalg.matrix_exp(P - P.mT)[:m]
    A, W_2 = W[:, :m] - W[:, :m].mT, W[:, m:]
    # Scaling the blocks to similar size makes the exponential cheap and accurate, and does not change the result.
    unit = torch.linalg.vector_norm(W_2.detach()).clamp_min(1)
    V, one = W_2 / unit, unit * torch.eye(m, dtype=W.dtype, device=W.device)
    E, F = torch.linalg.matrix_exp(_blocks(A, one, -W_2 @ V.mT, torch.zeros_like(one)))[:m].chunk(2, 1)
    return torch.cat([E, F @ V], 1)


def _blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([torch.cat([a, b], 1), torch.cat([c, d], 1)])


class SpectralWeight(nn.Module):
    """``W / sigma_max(W)`` by torch's `spectral_norm` (ECCV 2022, eq. 11), outside autocast.

    In bfloat16 the power method would be off by a percent.

    Args:
        spectral_norm: the parametrization of `torch.nn.utils.parametrizations.spectral_norm`.
    """

    def __init__(self, spectral_norm: nn.Module) -> None:
        super().__init__()
        self.spectral_norm = spectral_norm

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return self.spectral_norm(weight)


def treat_weight(convolution: nn.Module, treatment: Treatment) -> None:
    """Put a parametrization on the weight of a convolution, which keeps its parameter as ``original``.

    Args:
        convolution: the pre-SVD layer.
        treatment: ``spectral``, W over its largest singular value (ECCV 2022, eq. 11), which torch tracks by one step
            of the power method per training batch; or ``orthogonal``, see `OrthogonalWeight`.

    Raises:
        ValueError: for an unknown treatment.
    """
    if treatment == "spectral":
        parametrizations.spectral_norm(convolution, "weight")
        treatments = convolution.parametrizations["weight"]  # type: ignore[union-attr,index]
        treatments[0] = SpectralWeight(treatments[0])
    elif treatment == "orthogonal":
        parametrize.register_parametrization(convolution, "weight", OrthogonalWeight())
    else:
        raise ValueError(f"unknown weight_treatment {treatment!r}: choose spectral or orthogonal")


def treatment_of(convolution: nn.Module) -> Treatment | None:
    """The treatment of a convolution's weight, ``None`` if it has none."""
    if not parametrize.is_parametrized(convolution, "weight"):
        return None
    first = convolution.parametrizations["weight"][0]  # type: ignore[union-attr,index]
    return "orthogonal" if isinstance(first, OrthogonalWeight) else "spectral"


def original_weight(convolution: nn.Module) -> nn.Parameter:
    """The parameter that the optimizer steps: W under a treatment, and the convolution's weight without one."""
    if treatment_of(convolution) is None:
        return convolution.weight  # type: ignore[return-value]
    return convolution.parametrizations["weight"].original  # type: ignore[union-attr,index,return-value]


@torch.no_grad()
def remove_weight_treatment(convolution: nn.Module) -> None:
    """Turn the treated weight into an ordinary parameter, which costs nothing at inference."""
    if treatment_of(convolution) is None:
        return
    training = convolution.training
    convolution.eval()  # reading the weight in training mode takes a step of the power method
    parametrize.remove_parametrizations(convolution, "weight")
    convolution.train(training)


def convert_state(state: dict[str, Any], prefix: str, convolution: nn.Conv2d) -> None:
    """Make the weight of one convolution in a state dict fit a convolution under another treatment, or none.

    The layer computes what it computed when stored, except under ``orthogonal``: a kernel that is not orthogonal can
    only become the initial W.

    Args:
        state: changed in place.
        prefix: name of the convolution there, ending in a dot.
        convolution: the convolution to be loaded into.
    """
    stored = _stored_treatment(state, prefix)
    own = treatment_of(convolution)
    if stored == own or not any(key.startswith(prefix) for key in state):
        return
    bare = {key: state.pop(key) for key in list(state) if key.startswith((prefix + "weight", prefix + "param"))}
    if own == "orthogonal":
        warnings.warn(
            f"{prefix}weight was not trained as an orthogonal weight: it becomes W in exp(W - W^T), which is "
            "another kernel",
            stacklevel=2,
        )
    like = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        groups=convolution.groups,
        bias=False,
        dtype=original_weight(convolution).dtype,
    ).eval()
    if stored is not None:
        treat_weight(like, stored)
    like.load_state_dict({key.removeprefix(prefix): value for key, value in bare.items()})
    remove_weight_treatment(like)
    if own is not None:
        treat_weight(like, own)
    state.update({prefix + key: value for key, value in like.state_dict().items()})


def treated_layers(state: dict[str, Any]) -> list[str]:
    """The prefixes, ending in a dot, of the layers that a state dict stores under a treatment."""
    end = "parametrizations.weight.original"
    return [key.removesuffix(end) for key in state if key.endswith(f".{end}")]


def _stored_treatment(state: dict[str, Any], prefix: str) -> Treatment | None:
    name = f"{prefix}parametrizations.weight"
    if f"{name}.original" not in state:
        return None
    return "spectral" if f"{name}.0.spectral_norm._u" in state else "orthogonal"
