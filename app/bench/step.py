"""Times the parts of a training step of a configuration: ``python -m app.bench --step --config FILE``.

It reports whether the loader or the network is the bottleneck, and where the time of a step goes: what table 1 of the
supplement of Wang et al., CVPR 2020, compares for average and covariance pooling.

Shapes: B batch, H x W pixels.
"""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from app.bench.loader import MeasuredLoader, bottleneck
from app.bench.operations import multiply_adds
from app.bench.short_fit import Batch, Repeated, quiet, timed_fit
from app.bench.step_timer import LOADER, PARTS, StepTimer, check_modules
from app.cli.main import CLI
from app.cli.main import main as run
from callbacks._pre_svd_treatment import PreSVDTreatment

WARM_UP = MeasuredLoader.WARM_UP
"""Steps that do not count."""

MEASURING: dict[str, Any] = {
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "fast_dev_run": False,
    "limit_train_batches": None,
    "limit_val_batches": 0,
    "max_time": None,
    "min_epochs": None,
    "min_steps": None,
    "num_sanity_val_steps": 0,
    "overfit_batches": 0.0,
    "val_check_interval": None,
}
"""Settings of the trainer: every batch is a whole training step, and nothing but training steps runs."""


class StepCLI(CLI):
    """Builds the objects of ``fit``, trains a few steps and reports their time."""

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
            type=PositiveInt,
            default=None,
            help="side in pixels of random images: no data set is read",
        )

    def _parse_ckpt_path(self) -> None:
        """Leave out stored weights, because only their shapes matter, and train in one process that logs nothing."""
        options = self.config[self.config["subcommand"]]
        for key, value in (
            ("model.init_args.weights", None),
            ("model.init_args.init_from", None),
            ("trainer.devices", 1),
            ("trainer.num_nodes", 1),
            ("trainer.strategy", "auto"),
            ("trainer.logger", False),
        ):
            if key in options:  # users' models need not have these arguments
                options[key] = value

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = self.config[self.subcommand]
        self.repeats = options["repeats"]
        if not options["synthetic"]:
            # as many batches of each loader process
            self.repeats += -self.repeats % max(1, getattr(self.datamodule, "num_workers", 0))
        self.timer = StepTimer()
        steps = WARM_UP + self.repeats
        trainer = super().instantiate_trainer(**kwargs, **MEASURING, max_steps=steps, profiler=self.timer)
        # Of the callbacks only the treatments are part of a step. The others save, stop, or measure by themselves.
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.treatments = [callback for callback in callbacks if isinstance(callback, PreSVDTreatment)]
        trainer.callbacks = list(self.treatments)  # type: ignore[attr-defined]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        check_modules(self.model)
        if self.datamodule is None:
            raise ValueError("--step needs a data module: --data CLASS")
        options = self.config[subcommand]
        if options["synthetic"]:
            batch = random_batch(self.model, self.datamodule, options["synthetic"])
            seconds = self._measure(Repeated(batch))
            del seconds[LOADER]
            report(self.trainer, self.model, batch, seconds, self.repeats)
        else:
            loader = MeasuredLoader(self.datamodule, options["batches"])
            seconds = self._measure(self.datamodule)
            report(self.trainer, self.model, loader.first, seconds, self.repeats)
            network = len(loader.first[0]) / (sum(seconds.values()) - seconds[LOADER])
            print(bottleneck(network, loader.rate, loader.loader.num_workers))

    def _measure(self, data: Any) -> dict[str, float]:
        with quiet():
            timed_fit(self.trainer, self.model, self.timer, self.treatments, data)
        return medians(self.timer.steps[WARM_UP:])


def random_batch(model: Any, data: Any, side: int) -> Batch:
    """Random images and labels of the configuration's batch size.

    Raises:
        ValueError: if the data module has no batch size, or the model no number of classes.
    """
    for owner, name in ((data, "batch_size"), (model, "num_classes")):
        if not hasattr(owner, name):
            raise ValueError(f"--synthetic: random images need {name}, which {type(owner).__name__} does not have")
    return torch.randn(data.batch_size, 3, side, side), torch.randint(model.num_classes, (data.batch_size,))


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds of each part of a step, medians over the steps.

    The loader's is a mean, because loader processes deliver several batches at once and then none for a while.

    Raises:
        ValueError: if there is no step.
    """
    if not steps:
        raise ValueError("no step was measured: the trainer stopped earlier (max_epochs, or a callback)")
    seconds = {}
    for part in (LOADER, *PARTS):
        times = [step[part] for step in steps]
        seconds[part] = statistics.mean(times) if part == LOADER else statistics.median(times)
    return seconds


def peak_memory(device: torch.device) -> float:
    """Peak memory in bytes: of all tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "darwin":
        size *= 1024  # Linux counts in KiB
    return size


def report(trainer: pl.Trainer, model: Any, batch: Batch, seconds: dict[str, float], repeats: int) -> None:
    """Print the setting, the costs of the network and the time of each part."""
    device, precision, images = trainer.strategy.root_device, trainer.precision_plugin, batch[0]
    memory = peak_memory(device)
    # the fit leaves the model on the CPU
    image: Tensor = precision.convert_input(images[:1]).to(device)
    with precision.forward_context():
        operations, decompositions = multiply_adds(model.to(device), image)
    total = sum(seconds.values())
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {trainer.precision}")
    print("one process with the whole batch; no checkpoint, accumulation or clipping")
    print(f"batch {' x '.join(map(str, images.shape))}, medians of {repeats} steps")
    print(f"parameters {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M")
    print(
        f"multiply-adds of a forward pass {operations / 1e9:.2f} G an image, "
        f"{decompositions / 1e9:.2f} G of them in eigendecompositions"
    )
    print(f"peak memory {memory / 1e9:.2f} GB")
    for part, value in seconds.items():
        print(f"  {part:<20} {value * 1000:9.1f} ms  {value / total:6.1%}")
    print(f"step    {len(images) / total:8.1f} images/s")


def main(arguments: Sequence[str]) -> None:
    """Run the command line of ``train.py fit``, with flags for how much to measure."""
    run(["fit", *arguments], StepCLI)
