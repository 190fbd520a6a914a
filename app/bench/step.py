"""One training step of a configuration, taken apart: ``python -m app.bench --step --config FILE``.

It tells whether the loader or the network is the bottleneck, and where the time of a step goes: what table 1 of the
supplement of Wang et al., CVPR 2020, compares for average and covariance pooling.

Shapes: B batch, C channels, H x W pixels or positions.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from app.cli.main import CLI
from app.cli.main import main as run
from app.models.classifier import Classifier
from callbacks._pre_svd_treatment import PreSVDTreatment

EIGH_MULTIPLY_ADDS = 4.5
"""times n^3: the symmetric QR algorithm with eigenvectors takes 9 n^3 flops (Golub and Van Loan, sec. 8.3)."""

PARTS = (
    "backbone forward",
    "pooling forward",
    "classifier forward",
    "classifier backward",
    "pooling backward",
    "backbone backward",
    "treatments",
    "optimizer",
)
"""The parts of a step, in their order; the loss belongs to the classifier."""

Batch = tuple[Tensor, Tensor]
"""Images ``(B, 3, H, W)`` and labels ``(B,)``."""


class StepCLI(CLI):
    """Builds what ``fit`` would use, and measures instead of training."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--repeats",
            type=PositiveInt,
            default=5,
            help="timed steps, rounded up to a multiple of the loader processes",
        )
        parser.add_argument("--batches", type=PositiveInt, default=20, help="timed batches of the loader")
        parser.add_argument(
            "--synthetic",
            type=PositiveInt | None,
            default=None,
            help="side in pixels of random images: no data set is read",
        )

    def _parse_ckpt_path(self) -> None:
        """Of the weights only the shapes matter; and this is one process with the whole batch."""
        options = self.config[self.config["subcommand"]]
        for part, key, value in (
            ("model.init_args", "weights", None),
            ("model.init_args", "init_from", None),
            ("trainer", "devices", 1),
            ("trainer", "num_nodes", 1),
            ("trainer", "strategy", "auto"),
        ):
            options[f"{part}.{key}"] = value

    def _run_subcommand(self, subcommand: str) -> None:
        report(self.config[subcommand], self.trainer, self.model, self.datamodule)


def loader_rate(loader: DataLoader[Any], batches: int) -> tuple[float, Iterator[Batch]]:
    """Images per second of a loader, epoch after epoch; and the batches that follow.

    What the loader processes prepare before the clock starts is taken out before.
    """
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in itertools.islice(endless, 1 + loader.num_workers * (loader.prefetch_factor or 0)):
        pass
    start = time.perf_counter()
    images = sum(len(labels) for _, labels in itertools.islice(endless, batches))
    return images / (time.perf_counter() - start), endless


class Step:
    """A training step whose parts are timed: forward, backward, treatments and update.

    Args:
        model: the network; it is trained.
        images: ``(B, 3, H, W)``, on the device of the network; those of every step until others are set.
        labels: ``(B,)``.
        treatments: callbacks that act on the gradient before the step.
        context: what the forward pass runs in, such as autocast.
    """

    def __init__(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        treatments: Sequence[PreSVDTreatment] = (),
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.images, self.labels = model.train(), images, labels
        model.log = lambda *_, **__: None  # type: ignore[assignment] # there is no loop to log to
        self.treatments, self.context = treatments, context
        trainer: Any = SimpleNamespace(callbacks=list(treatments), optimizers=[], precision_plugin=None)
        for treatment in treatments:
            treatment.setup(trainer, model, "fit")
        self.optimizer = model.configure_optimizers()["optimizer"]
        trainer.optimizers.append(self.optimizer)
        for treatment in treatments:
            treatment.on_train_start(trainer, model)
        self.trainer = trainer

    def __call__(self) -> list[float]:
        """Seconds of each of `PARTS`."""
        self.optimizer.zero_grad()
        watch = Stopwatch(self.images.device)
        with self.context():
            features = self.model.backbone(self.images)
            watch.split()
            # cut here and below, so that the three backward passes are timed apart
            pooling_input = features.detach().requires_grad_()
            pooled = self.model.pooling(pooling_input)
            watch.split()
            classifier_input = pooled.detach().requires_grad_()
            loss = nn.functional.cross_entropy(self.model.classifier(classifier_input), self.labels)
            watch.split()
        loss.backward()
        watch.split()
        pooled.backward(classifier_input.grad)
        watch.split()
        features.backward(pooling_input.grad)
        watch.split()
        for treatment in self.treatments:
            treatment.on_before_optimizer_step(self.trainer, self.model, self.optimizer)
        watch.split()
        self.optimizer.step()
        watch.split()
        return watch.seconds


def time_step(step: Step, repeats: int, batches: Iterator[Batch] | None = None) -> dict[str, float]:
    """Median seconds of each of `PARTS`, over `repeats` steps after one that is not counted.

    Args:
        step: what to time.
        repeats: how many steps.
        batches: on the device, one for each step. The time that a step waits for its batch is then the first part,
            ``loader``: a mean, because loader processes deliver several batches at once and then none for a while.
    """
    waits: list[float] = []
    rounds: list[list[float]] = []
    for _ in range(repeats + 1):
        if batches is not None:
            watch = Stopwatch(step.images.device)
            step.images, step.labels = next(batches)
            watch.split()
            waits += watch.seconds
        rounds.append(step())
    loader = {"loader": statistics.mean(waits[1:])} if waits else {}
    return loader | dict(zip(PARTS, map(statistics.median, zip(*rounds[1:], strict=True)), strict=True))


class Stopwatch:
    """Seconds between one `split` and the next, with the work on the device done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, list[float]()
        self._wait()
        self._last = time.perf_counter()

    def split(self) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def multiply_adds(model: nn.Module, image: Tensor) -> tuple[float, float]:
    """Multiply-adds of a forward pass of one image ``(1, 3, H, W)``, which the papers call FLOPs.

    Returns:
        all of them, and those of eigendecompositions: they count by formula, `EIGH_MULTIPLY_ADDS`, torch counts them as
        nothing. A Newton-Schulz layer has none where it runs by products.
    """

    def eigh(shape: Sequence[int], *_: Any, **__: Any) -> int:
        *batch, n, _ = shape
        return round(2 * EIGH_MULTIPLY_ADDS * n**3) * int(torch.Size(batch).numel())

    training = model.training
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._linalg_eigh: eigh})
    with torch.no_grad(), counter:
        model.eval()(image)
    model.train(training)
    decompositions = counter.get_flop_counts()["Global"].get(torch.ops.aten._linalg_eigh, 0)
    return counter.get_total_flops() / 2, decompositions / 2


def peak_memory(device: torch.device) -> float:
    """Bytes: on a GPU what the tensors took at most, on a CPU the largest size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def report(options: Any, trainer: Any, model: Classifier, data: Any) -> None:
    """Measure and print."""
    device, precision, loader = trainer.strategy.root_device, trainer.precision_plugin, None
    if side := options["synthetic"]:
        batch = torch.randn(data.batch_size, 3, side, side), torch.randint(model.num_classes, (data.batch_size,))
    else:
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        batch = next(iter(loader))

    def move(batch: Batch) -> Batch:
        images, labels = precision.convert_input(batch)
        return images.to(device), labels.to(device)

    images, labels = move(batch)
    model = precision.convert_module(model).to(device)
    with precision.forward_context():
        operations, decompositions = multiply_adds(model, images[:1])
    treatments = [callback for callback in trainer.callbacks if isinstance(callback, PreSVDTreatment)]
    step, repeats = Step(model, images, labels, treatments, precision.forward_context), options["repeats"]
    if loader is None:
        seconds = time_step(step, repeats)
    else:
        step()  # the first is slow: what the loader would prepare meanwhile would hide how slow it is
        rate, batches = loader_rate(loader, options["batches"])
        repeats += -repeats % max(1, loader.num_workers)  # as many batches of each loader process
        seconds = time_step(step, repeats, map(move, batches))
    total = sum(seconds.values())

    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {trainer.precision}")
    print("one process with the whole batch; no checkpoint, accumulation or clipping")
    print(f"batch {' x '.join(map(str, images.shape))}, medians of {repeats} steps")
    print(f"parameters {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M")
    print(
        f"multiply-adds of a forward pass {operations / 1e9:.2f} G an image, "
        f"{decompositions / 1e9:.2f} G of them in eigendecompositions"
    )
    print(f"peak memory {peak_memory(device) / 1e9:.2f} GB")
    for part, value in seconds.items():
        print(f"  {part:<20} {value * 1000:9.1f} ms  {value / total:6.1%}")
    print(f"step    {len(images) / total:8.1f} images/s")
    if loader is not None:
        print(bottleneck(len(images) / (total - seconds["loader"]), rate, loader.num_workers))


def bottleneck(network: float, loader: float, workers: int) -> str:
    """Images per second of a network that need not wait and of a loader alone, and which holds the other up."""
    slower, faster = sorted((loader, network))
    name, other = ("loader", "network") if loader == slower else ("network", "loader")
    return (
        f"network {network:8.1f} images/s, without waiting for the loader\n"
        f"loader  {loader:8.1f} images/s with {workers} workers, measured without the network\n"
        f"the {name} is the bottleneck: the {other} could do {faster / slower:.1f} times as much"
    )


def main(arguments: Sequence[str]) -> None:
    """The command line: that of ``train.py fit``, and how much to measure."""
    sys.argv = ["app.bench --step", "fit", *arguments]
    run(StepCLI)
