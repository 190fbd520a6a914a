"""The cost of covariance pooling in whole networks: ``python -m app.bench --networks``.

Table 1 of the supplement of Wang et al., CVPR 2020: parameters, operations and time per image of average pooling (GAP)
and covariance pooling (GCP), with the dimensions 128 and 256, and the down-sampling of the last stage removed or kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from app.bench.arguments import add_batch, add_device, add_repeats
from app.bench.operations import multiply_adds
from app.bench.rounds import interleave, medians
from app.bench.short_fit import ShortFit
from app.bench.step_timer import PARTS, Stopwatch
from app.console.arguments import OneLineParser, positive
from app.console.errors import fail
from app.console.table import Table
from app.models.classifier import Classifier
from app.spectral import METHODS

NETWORKS = {
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "mobilenet_v2": "MobileNetV2",
}
"""Backbones, and their names in the table."""

POOLINGS: dict[str, dict[str, Any]] = {
    "GAP": {"meta_layer": "gap"},
    "GCP, D = 128": {"dim": [256, 128]},
    "GCP, D = 128, down-sampling kept": {"dim": [256, 128], "downsampling": "kept"},
    "GCP, D = 256": {"dim": 256},
    "GCP, D = 256, down-sampling kept": {"dim": 256, "downsampling": "kept"},
}
"""Arguments of the model. Reductions to 256 and then 128 channels have the published numbers of parameters."""

PUBLISHED = {
    "ResNet18 + GAP": (11.69, 1.81, 0.77, 0.60),
    "ResNet18 + GCP, D = 128": (19.60, 3.11, 1.21, 0.85),
    "ResNet34 + GAP": (21.80, 3.66, 1.17, 0.88),
    "ResNet34 + GCP, D = 128": (29.71, 5.56, 1.61, 1.10),
    "ResNet50 + GAP": (25.56, 3.86, 1.85, 1.29),
    "ResNet50 + GCP, D = 128": (32.32, 6.19, 2.22, 1.49),
    "ResNet101 + GAP": (44.55, 7.57, 2.79, 1.72),
    "ResNet101 + GCP, D = 128": (51.31, 9.90, 3.14, 1.83),
    "ResNet152 + GAP": (60.19, 11.28, 3.54, 2.55),
}
"""Millions of parameters, GFLOPs, and milliseconds per image of training and inference on four Titan Xp."""

HEADER = ("", "parameters M", "multiply-adds G", "training ms", "x GAP", "inference ms", "x GAP", "pooling", "GB")

NOTE = (
    "Times are medians, an image; the published figures stand after the strokes (four Titan Xp). x GAP is the ratio to "
    "average pooling in the same network. Pooling is its share of a training step, forward and backward. GB is the "
    "peak memory of network and training step; it is known on GPUs only. Multiply-adds count eigendecompositions by "
    "formula: the iterations decompose on a CPU, and multiply elsewhere. Those of ResNet-50 and deeper "
    "are 0.23 G above the published ones, as torchvision's networks stride in their 3x3 convolutions."
)


class Network:
    """A network of the table, and its costs.

    Args:
        name: of the row.
        model: the network.
        images: ``(B, 3, H, W)``.
        labels: ``(B,)``.

    Attributes:
        parameters: their number.
        operations: multiply-adds of the forward pass of one image.
        memory: peak bytes of network and training step on a GPU; ``None`` on a CPU.
    """

    def __init__(self, name: str, model: Classifier, images: Tensor, labels: Tensor) -> None:
        self.name, self.images, self.model = name, images, model
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        # The device decides how some layers compute, so they are counted on that of the training.
        self.operations, _ = multiply_adds(model.to(images.device), images[:1])
        model.cpu()
        self.memory: int | None = None
        self._fit = ShortFit(model, images, labels)

    def __call__(self) -> list[float]:
        """Seconds of each of `PARTS` of a training step, and of the inference of the batch."""
        device = self.images.device
        if device.type == "cuda":
            before = _reset_peak(device)
            seconds = self._fit()
            self.memory = torch.cuda.max_memory_allocated(device) - before
        else:
            seconds = self._fit()
        return [*seconds, self._inference()]

    def _inference(self) -> float:
        device = self.images.device
        model = self.model.to(device).eval()  # the fit leaves it on the CPU
        watch = Stopwatch(device)
        with torch.no_grad():
            model(self.images)
        seconds = watch.split()
        model.train().cpu()
        return seconds


def _reset_peak(device: torch.device) -> int:
    """Reset the peak of the allocated memory, and return the bytes that are allocated now."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def build(backbone: str, pooling: str, meta_layer: str, images: Tensor, labels: Tensor) -> Network:
    """A network of `NETWORKS` with one of `POOLINGS`; `meta_layer` is that of covariance pooling."""
    torch.manual_seed(0)
    arguments = {"num_classes": 1000, "backbone": backbone, "meta_layer": meta_layer, **POOLINGS[pooling]}
    return Network(f"{NETWORKS[backbone]} + {pooling}", Classifier(**arguments), images, labels)


def rows(networks: Sequence[Network], times: dict[str, list[Sequence[float]]]) -> list[list[str]]:
    """The rows of one backbone, of which the first is average pooling."""
    lines: list[list[str]] = []
    base: Sequence[float] = ()
    published_base = PUBLISHED.get(networks[0].name, ())
    for network in networks:
        *parts, inference = medians(times[network.name])
        batch, step, seconds = len(network.images), sum(parts), dict(zip(PARTS, parts, strict=True))
        own = (network.parameters / 1e6, network.operations / 1e9, 1e3 * step / batch, 1e3 * inference / batch)
        base, published = base or own, PUBLISHED.get(network.name)
        line = [network.name]
        for k, figure in enumerate(own):
            line.append(_beside(figure, published and published[k]))
            if k >= 2:  # the times, each with its ratio to average pooling
                line.append(_beside(figure / base[k], published and published[k] / published_base[k]))
        share = (seconds["pooling forward"] + seconds["pooling backward"]) / step
        memory = "" if network.memory is None else f"{network.memory / 1e9:.2f}"
        lines.append([*line, f"{share:.1%}", memory])
    return lines


def _beside(own: float, published: float | None) -> str:
    """A figure, and the published one after a stroke if there is one."""
    text = f"{own:.2f}"
    if published:
        text += f" / {published:.2f}"
    return text


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; a wrong flag ends in one line."""
    parser = OneLineParser(
        "python -m app.bench --networks", description="Cost of covariance pooling in whole networks."
    )
    known = list(NETWORKS)
    parser.add_argument("--backbones", nargs="+", choices=known, metavar="NAME", default=known, help=f"of {known}")
    parser.add_argument("--meta_layer", default="isqrt-cov", choices=list(METHODS), metavar="NAME", help="of GCP")
    add_batch(parser, default=4)
    parser.add_argument("--side", type=positive, default=224, help="pixels (default: %(default)s)")
    add_repeats(parser, default=3)
    add_device(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure one backbone after the other, and print the table, after an error with the rows measured so far."""
    options = parse(arguments)
    print(f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, GCP {options.meta_layer}")
    print(f"batch {options.batch}, {options.side} pixels, medians of {options.repeats}\n", flush=True)
    lines: list[list[str]] = []
    try:
        images = torch.randn(options.batch, 3, options.side, options.side, device=options.device)
        labels = torch.randint(1000, (options.batch,), device=options.device)
        total = len(options.backbones) * len(POOLINGS) * options.repeats
        with tqdm(total=total, leave=False, disable=None) as bar:
            for backbone in options.backbones:
                networks = [build(backbone, pooling, options.meta_layer, images, labels) for pooling in POOLINGS]
                runs = {network.name: network for network in networks}
                # The fits warm up by themselves.
                times = interleave(runs, options.repeats, bar, warm_up=0)
                lines += rows(networks, times)
                del networks, runs  # before the next are built
    except (RuntimeError, AssertionError, ValueError) as error:
        fail(f"python -m app.bench --networks: {error}")
    finally:
        title = "Cost of average and covariance pooling (CVPR 2020, supplement, table 1)"
        if lines:
            print(Table("networks", title, NOTE, HEADER, lines).markdown(), end="")
