"""The numerical tables of the layers: ``python -m app.tables``.

Approximation error of Taylor and Padé, bounds of the gradients, and forward and gradient error of every layer against
references in extended precision, beside the numbers of Song et al., ICCV 2021, where there are any.

Shapes: d channels, N positions, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import skimage.data
import torch
from torch import Tensor, nn
from tqdm import tqdm

from app.console.arguments import OneLineParser
from app.console.table import Table
from app.spectral import METHODS, covariance_sqrt
from app.spectral.newton_schulz import Coefficients, classic, minimax
from app.spectral.pade import pade_maximum, pade_value, taylor_value

DIGITS = 50
"""Decimal digits of the references: three times those of a double."""

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
DEGREES = (50, 100, 200, 300)

PUBLISHED_TAYLOR = {  # table 8; its row 100 is the Taylor row of table 6
    50: ("9e-19", "7e-18", "9e-16", "4e-8", "5e-2", "60", "950"),
    100: ("9e-19", "7e-18", "2e-21", "8e-16", "2e-4", "36", "904"),
    200: ("9e-19", "7e-18", "2e-21", "4e-17", "6e-9", "13", "817"),
    300: ("9e-19", "7e-18", "1e-21", "4e-17", "1e-13", "5", "740"),
}
PUBLISHED_PADE = {  # table 9; its row 100 is the Padé row of table 6
    50: ("2e-18", "3e-17", "2e-20", "6e-17", "3e-16", "1e-13", "1e-12"),
    100: ("9e-19", "5e-18", "1e-21", "5e-17", "3e-16", "8e-13", "3e-10"),
    200: ("2e-18", "1e-17", "6e-21", "6e-18", "1e-15", "1e-13", "2e-10"),
    300: ("1e-18", "8e-18", "6e-21", "5e-17", "2e-15", "1e-13", "5e-10"),
}

PHOTOGRAPHS = ("brick", "grass", "gravel", "moon", "immunohistochemistry", "hubble_deep_field")
"""Pictures inside the wheel of scikit-image: nothing is downloaded."""

SIDES = (5, 7, 14)
"""Side lengths of the maps: N = 25 < d, where the covariance lacks full rank (as 14x14 of 256 channels), 49 and 196."""

LAYER_NOTE = (
    "Relative errors in the Frobenius norm, the largest of all photographs, of Q and of dL/dX for a random dL/dQ, with "
    "the spectral part in float64 and in float32. First against the exact square root and its exact gradient: what the "
    "method leaves out, and what rounding adds. Then ('own'), for the layers with a Newton-Schulz iteration, against "
    "the same iteration in extended precision: rounding alone."
)

TOPN = 25
"""svd-topn keeps 25 of the 32 channels here, the share of the 200 of 256 in appendix D."""

ITERATIONS: dict[str, Coefficients] = {"isqrt-cov": classic(5), "ns-minimax": minimax(5), "svd-newton": classic(10)}
"""The layers with a Newton-Schulz iteration in them, by their default options."""


def number(x: float, digits: int = 1) -> str:
    """A positive number as the paper prints them: 904, 36, 2e-4, and with three digits 4.55e17."""
    if x == 0 or 1 <= x < 1e3:
        return f"{x:.0f}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def approximation_tables() -> list[Table]:
    """Error of Taylor and Padé to 1/(1 - x) (Song et al., ICCV 2021, tables 6, 8 and 9)."""
    note = (
        "Absolute error of the approximation to 1/(1 - x), x the eigenvalue ratio, evaluated in float64. The reference "
        f"has {DIGITS} digits, at the same x (the double nearest to the decimal). Neighbouring doubles near 1/(1 - x) "
        "lie 2e-16 (x = 0.1) to 1e-13 (x = 0.999) apart, so that a result correct to the last bit shows an error of up "
        "to half of that. Published errors far below are finer than a double can be: read them as 'correct to the "
        "last bit'."
    )
    pade_note = (
        "As above. The rows are alike because the approximant of a geometric series is 1/(1 - x) itself, but for a "
        "regularisation that shows only where 1 - x comes near 1e-20: the degree plays no part."
    )
    return [
        _approximation_table("Taylor", "6 and 8", note, taylor_value, PUBLISHED_TAYLOR),
        _approximation_table("Padé", "6 and 9", pade_note, pade_value, PUBLISHED_PADE),
    ]


def _approximation_table(
    approximant: str,
    published_as: str,
    note: str,
    value: Callable[[Tensor, int], Tensor],
    published: dict[int, tuple[str, ...]],
) -> Table:
    rows = []
    for degree in DEGREES:
        rows.append([str(degree), "here", *(number(approximation_error(value, x, degree)) for x in RATIOS)])
        rows.append([str(degree), "published", *published[degree]])
    title = f"Approximation error of {approximant} (Song et al., ICCV 2021, tables {published_as})"
    name = f"approximation_{approximant.lower().replace('é', 'e')}"
    return Table(name, title, note, ["degree", "", *(f"x = {x}" for x in RATIOS)], rows)


def approximation_error(value: Callable[[Tensor, int], Tensor], x: float, degree: int) -> float:
    """``|value(x) - 1/(1 - x)|`` for a float64 x in [0, 1), against extended precision."""
    approximate = value(torch.tensor(x, dtype=torch.float64), degree).item()
    with mpmath.workdps(DIGITS):
        return float(abs(approximate - 1 / (1 - mpmath.mpf(x))))


def bounds_table() -> Table:
    """Upper bounds of the gradient factors (Song et al., ICCV 2021, tables 7 and 10, appendix F)."""
    eps = torch.finfo(torch.float64).eps
    pade = pade_maximum(100)
    diagonal = 0.5 * eps**-0.5
    pi = mpmath.nstr(mpmath.fsum(mpmath.mpf(eps) ** -k for k in range(1, 102)), 1)
    D, equal = number(diagonal, 2), "l_i = l_j = EPS"
    newton = "1.5^10 / sqrt(tr P)"
    rows = [
        ["svd-pade", "sum p_m / (1 + sum q_n) / l_i", number(pade / eps, 3), "6.00e36", equal, D],
        ["svd-taylor", "(K + 1) / l_i", number(101 / eps, 3), "4.55e17", equal, D],
        ["svd-trunc", "T", "1e10", "1e10", "abs(l_i - l_j) <= 1 / T", D],
        ["svd-topn", "1 / l_N", number(1 / eps, 3), "4.50e15", "l_N = EPS, l_N+1 set to 0", number(2 * diagonal, 2)],
        ["svd-newton", "no K", "/", "/", "", f"{newton} = {1.5**10:.1f} / sqrt(tr P)"],
        ["mpn-cov", "1 / (l_i - l_j)", "infinite", "infinite", "l_i = l_j", D],
        [
            "svd-pi",
            "sum (l_j / l_i)^k / l_i",
            f"{pi.replace('.0e+', 'e')}: overflow",
            "",
            "l_i = EPS, l_j = 1",
            "overflow",
        ],
        ["svd-exact", "no K", "/", "", "", D],
    ]
    note = (
        f"EPS = {number(eps, 3)}, K = 100, T = 1e10, eigenvalues of EPS or more as in the paper. K_ij is the layer's "
        "stand-in for 1/(l_i - l_j), which the paper bounds. What the gradient is multiplied with is D_ij = K_ij "
        "(sqrt(l_i) - sqrt(l_j)), with D_ii = 1 / (2 sqrt(l_i)); the last column has its largest value: where K is "
        "largest, the difference behind it is zero. The published Padé numbers do not agree with each other: the value "
        f"at x = 1, 6.48e20, divided by EPS is {number(6.48e20 / eps, 3)} and not 6.00e36. Ours at x = 1, (n + 1) "
        f"(1 + delta) / (2 delta) = {number(pade, 3)}, is set by the regularisation delta = 1e-20; as the approximant "
        "is degenerate, neither number is a property of 1/(1 - x). The paper has no bound for svd-newton; the one here "
        "is the slope of the iteration at 0."
    )
    header = ["layer", "max abs(K_ij)", "here", "published", "reached when", "max abs(D_ij)"]
    return Table("gradient_bounds", "Gradient bounds (Song et al., ICCV 2021, tables 7 and 10)", note, header, rows)


def feature_maps(side: int) -> Tensor:
    """ReLU feature maps of the photographs, ``(6, 32, side, side)`` float64.

    A network of three convolutions with fixed random weights on the centre of each photograph, in grey.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        features: Tensor = network(torch.stack([_photograph(name, 16 * side) for name in PHOTOGRAPHS]))
    return features.double()


def _photograph(name: str, size: int) -> Tensor:
    """The centre of a photograph in grey, standardised, ``(1, size, size)`` float32."""
    image = np.asarray(getattr(skimage.data, name)(), dtype=np.float32)
    image = image if image.ndim == 2 else image.mean(-1)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    crop = torch.from_numpy(image[top : top + size, left : left + size])
    return ((crop - crop.mean()) / crop.std()).unsqueeze(0)


@dataclass(frozen=True)
class Reference:
    """Square root of a covariance and its gradient in extended precision, from features of any rank.

    With Y the centred features over sqrt(N), ``Y = U diag(s) W^T`` on its range and ``M = U^T G U``, the gradient is

        2 [U (D * M) + (G U - U M) diag(D_0)] diag(s) W^T / sqrt(N)

    Attributes:
        X: features ``(d, N)``, float64.
        G: upstream gradient ``(d, d)``, float64, symmetric.
    """

    X: np.ndarray
    G: np.ndarray

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """The exact square root ``(d, d)`` and its gradient ``(d, N)``, rounded to float64."""
        s = self.factors[0]
        return self._root(s), self._gradient(1 / (s[:, None] + s), 1 / s)

    def iteration(self, steps: Coefficients) -> tuple[np.ndarray, np.ndarray]:
        """The same for the Newton-Schulz iteration, with the coefficients that the layer has."""
        s, M = self.factors[0], self._rotated[0]
        trace = (s * s).sum()
        x = s * s / trace
        # divided differences as plain quotients; arguments are spread so that equal ones have one too: that costs
        # half of the digits, and the error is about h times the second derivative
        h = mpmath.mpf(10) ** -(DIGITS // 2)
        phi, above, below = (_scalar_iteration(steps, a) for a in (x, x + h, x - h))
        D = (above[:, None] - below) / (x[:, None] - x + 2 * h) / mpmath.sqrt(trace)
        # Q = tr^(1/2) phi(P / tr): the part that moves with the trace adds a multiple of the identity to dL/dP
        in_trace = M.diagonal() @ (phi / (2 * mpmath.sqrt(trace)) - D.diagonal() * x)
        gradient = self._gradient(D, phi / x / mpmath.sqrt(trace), in_trace)
        return self._root(mpmath.sqrt(trace) * phi), gradient

    def _root(self, values: np.ndarray) -> np.ndarray:
        U = self.factors[1]
        return _rounded(U * values @ U.T)

    def _gradient(self, D: np.ndarray, D_null: np.ndarray, in_trace: Any = 0) -> np.ndarray:
        s, U, W = self.factors
        M, rest = self._rotated
        core = U @ (D * M) + rest * D_null + U * in_trace
        # W has orthonormal columns, so the last product is safe in float64
        return 2 * _rounded(core * s) @ _rounded(W).T * self.X.shape[1] ** -0.5

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The singular values s ``(r,)``, ascending, U ``(d, r)`` and W ``(N, r)``: arrays of mpmath numbers."""
        X = _extended(self.X)
        d, N = X.shape
        Y = (X - X.sum(1, keepdims=True) / N) / mpmath.sqrt(N)
        Y = Y if d <= N else Y.T  # the smaller side is decomposed
        eigenvalues, V = (np.array(a.tolist(), dtype=object) for a in mpmath.eigsy(mpmath.matrix((Y @ Y.T).tolist())))
        eigenvalues = eigenvalues.ravel()
        in_range = eigenvalues > eigenvalues[-1] * mpmath.mpf(10) ** (15 - DIGITS)  # the others are round-off
        s, V = np.vectorize(mpmath.sqrt, otypes=[object])(eigenvalues[in_range]), V[:, in_range]
        other = Y.T @ V / s
        return (s, V, other) if d <= N else (s, other, V)

    @cached_property
    def _rotated(self) -> tuple[np.ndarray, np.ndarray]:
        """``M = U^T G U``, ``(r, r)``, and ``G U - U M``, ``(d, r)``: range with range, and null space with range."""
        U = self.factors[1]
        GU = _extended(self.G) @ U
        M = U.T @ GU
        return M, GU - U @ M


def _extended(a: np.ndarray) -> np.ndarray:
    return np.vectorize(mpmath.mpf, otypes=[object])(a)


def _scalar_iteration(steps: Coefficients, x: np.ndarray) -> np.ndarray:
    y, z = x, x * 0 + 1
    for a, b in steps:
        w = a - b * z * y
        y, z = y * w, w * z
    return y


def _rounded(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float64)


def layer_tables() -> list[Table]:
    """Error of every layer, forward and backward, on real feature maps: the precision question of sec. 3.2."""
    maps = [feature_maps(side).flatten(2) for side in SIDES]
    with (
        mpmath.workdps(DIGITS),
        tqdm(total=len(maps) * len(PHOTOGRAPHS), desc="references", leave=False, disable=None) as bar,
    ):
        return [_layer_table(X, bar) for X in maps]


def _layer_table(X: Tensor, bar: tqdm[Any]) -> Table:
    B, d, N = X.shape
    G = torch.randn(B, d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G = (G + G.mT) / 2
    references: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in ("exact", *ITERATIONS)}
    spans = []
    for x, g in zip(X.numpy(), G.numpy(), strict=True):
        reference = Reference(x, g)
        references["exact"].append(reference.exact())
        for name, steps in ITERATIONS.items():
            references[name].append(reference.iteration(steps))
        s = reference.factors[0]
        spans.append(float((s[-1] / s[0]) ** 2))
        bar.update()
    note = (
        f"ReLU feature maps of {B} photographs, d = {d} channels, N = {N} positions; the rank is at most "
        f"{min(d, N - 1)}, the nonzero eigenvalues of a covariance span a factor of {number(min(spans))} to "
        f"{number(max(spans))}. {LAYER_NOTE} svd-topn keeps {TOPN} eigenvalues."
    )
    parts = ["Q f64", "dX f64", "Q f32", "dX f32"]
    header = ["layer", *parts, *(f"own {part}" for part in parts)]
    rows = [_layer_row(name, X, G, references) for name in METHODS]
    return Table(f"layer_errors_{N}", f"Errors of the layers, N = {N}", note, header, rows)


def _layer_row(
    name: str, X: Tensor, G: Tensor, references: dict[str, list[tuple[np.ndarray, np.ndarray]]]
) -> list[str]:
    results = [layer_result(X, G, name, dtype) for dtype in (torch.float64, torch.float32)]
    cells = [cell for result in results for cell in _errors(result, references["exact"])]
    own = [cell for result in results for cell in _errors(result, references[name])] if name in ITERATIONS else [""] * 4
    if name == "svd-newton":  # the iteration is in its backward pass only
        own[0] = own[2] = ""
    return [name, *cells, *own]


def layer_result(X: Tensor, G: Tensor, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Q ``(B, d, d)`` and dL/dX ``(B, d, N)`` of a layer for dL/dQ = G, both float64."""
    X = X.clone().requires_grad_()
    Q = covariance_sqrt(X, name, dtype=dtype, **({"topn": TOPN} if name == "svd-topn" else {}))
    (gradient,) = torch.autograd.grad(Q, X, G)
    return Q.detach(), gradient


def _errors(result: tuple[Tensor, Tensor], references: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Largest relative error of the batch, of Q and of dL/dX, as text."""
    cells = []
    for k, batch in enumerate(result):
        with np.errstate(over="ignore", invalid="ignore"):
            errors = [
                np.linalg.norm(value - reference[k]) / np.linalg.norm(reference[k])
                for value, reference in zip(batch.numpy(), references, strict=True)
            ]
        cells.append(number(max(errors)) if np.isfinite(errors).all() else "overflow")
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write them where ``--csv`` says."""
    parser = OneLineParser(
        "python -m app.tables",
        usage="python -m app.tables [--csv FOLDER]",
        description="Print approximation errors, gradient bounds and errors of the layers as Markdown (half a minute).",
    )
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="also write one CSV file per table there")
    folder: Path | None = parser.parse_args(arguments).csv
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--csv: cannot use {folder} as a folder: {error.strerror}")
    for make in (approximation_tables, lambda: [bounds_table()], layer_tables):
        for table in make():
            print(table.markdown(), flush=True)
            if folder is not None:
                table.write_csv(folder)


if __name__ == "__main__":
    main()
