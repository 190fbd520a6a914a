"""The cost of the treatments of the pre-SVD layer in a training step: ``python -m app.bench --treatments``.

Table 6 of Song et al., ECCV 2022: ResNet-50 with decorrelated batch norm at 32 x 32 pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from app.bench.arguments import add_batch, add_device, add_repeats
from app.bench.rounds import interleave, medians
from app.bench.short_fit import ShortFit
from app.bench.step_timer import PARTS
from app.console.arguments import OneLineParser
from app.console.table import Table
from app.models.classifier import Classifier
from callbacks import NearestOrthogonalGradient, OptimalLearningRate, OrthogonalLoss
from callbacks._pre_svd_treatment import PreSVDTreatment

NOG, OLR, OL = NearestOrthogonalGradient, OptimalLearningRate, OrthogonalLoss

Contestant = tuple[dict[str, Any], tuple[type[PreSVDTreatment], ...]]
"""Arguments of the model, and the classes of its treatments."""

CONTESTANTS: dict[str, Contestant] = {
    "SVD": ({}, ()),
    "SVD + SN": ({"weight_treatment": "spectral"}, ()),
    "SVD + OL": ({}, (OL,)),
    "SVD + OW": ({"weight_treatment": "orthogonal"}, ()),
    "SVD + NOG": ({}, (NOG,)),
    "SVD + OLR": ({}, (OLR,)),
    "SVD + NOG + OLR": ({}, (NOG, OLR)),
    "SVD + NOG + OW + OLR": ({"weight_treatment": "orthogonal"}, (NOG, OLR)),
    "Newton-Schulz": ({"decorrelation": "isqrt-cov"}, ()),
    "vanilla": ({"decorrelation": None}, ()),
}
"""The rows of table 6, and the treatments that the table leaves out."""

PUBLISHED = {
    "SVD": "44 / 95",
    "SVD + NOG": "44 / 97",
    "SVD + OLR": "44 / 96",
    "SVD + OW": "48 / 102",
    "SVD + NOG + OW + OLR": "49 / 106",
    "Newton-Schulz": "43 / 93",
    "vanilla": "42 / 90",
}
"""Milliseconds of forward and backward on an RTX A6000, batch 128."""


def build(name: str, backbone: str, images: torch.Tensor, labels: torch.Tensor) -> ShortFit:
    """The training step of a contestant."""
    arguments, treatments = CONTESTANTS[name]
    torch.manual_seed(0)  # all contestants start with the same weights
    defaults = {"num_classes": 100, "backbone": backbone, "meta_layer": "gap", "decorrelation": "svd-pade"}
    if backbone.startswith("resnet"):
        defaults["stem"] = "cifar"
    model = Classifier(**{**defaults, **arguments})
    return ShortFit(model, images, labels, [treatment() for treatment in treatments])


def table(times: dict[str, list[Sequence[float]]]) -> Table:
    """Medians of forward, backward with treatments, the treatments alone, and the whole compared with SVD."""
    plain, rows = 1000 * sum(medians(times["SVD"])), []
    for name, rounds in times.items():
        milliseconds = dict.fromkeys(("forward", "backward", "treatments", "optimizer"), 0.0)
        for part, seconds in zip(PARTS, medians(rounds), strict=True):
            milliseconds[part.split()[-1]] += 1000 * seconds  # "pooling forward" and the like
        treatments, whole = milliseconds["treatments"], sum(milliseconds.values())
        row = [name, f"{milliseconds['forward']:.1f}", f"{milliseconds['backward'] + treatments:.1f}"]
        row += [f"{treatments:.2f}", f"{treatments / plain:.2%}", f"{whole / plain - 1:+.1%}", PUBLISHED.get(name, "")]
        rows.append(row)
    header = [
        "",
        "forward ms",
        "backward ms",
        "treatments ms",
        "of SVD's step",
        "whole step",
        "published forward / backward",
    ]
    note = (
        "Backward includes the treatments of the gradient. Their share, with what they log, is measured separately. "
        "The last difference also includes the treatments of the weight, in forward and backward (SN, OW), and the "
        "noise of the machine."
    )
    return Table("treatments", "Cost of the treatments (ECCV 2022, table 6)", note, header, rows)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print the table."""
    parser = OneLineParser("python -m app.bench --treatments", description="Cost of the treatments per training step.")
    add_batch(parser, default=32)
    add_repeats(parser, default=5)
    parser.add_argument("--backbone", default="resnet50", help="backbone (default: %(default)s)")
    add_device(parser)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message=".*its rate then tends to zero.*")  # the rows are the paper's
    try:
        images = torch.randn(options.batch, 3, 32, 32, device=options.device)
        labels = torch.randint(100, (options.batch,), device=options.device)
        steps = {name: build(name, options.backbone, images, labels) for name in CONTESTANTS}
    except (RuntimeError, AssertionError, ValueError) as error:
        parser.error(str(error))
    print(f"{options.backbone}, {options.device}, batch {options.batch}, medians of {options.repeats}\n", flush=True)
    with tqdm(total=len(steps) * options.repeats, leave=False, disable=None) as bar:
        # The fits warm up by themselves.
        times = interleave(steps, options.repeats, bar, warm_up=0)
    print(table(times).markdown())
