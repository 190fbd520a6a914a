import pytest
import torch

from tests.flags import flags

MODEL = ("--model", "Classifier", "--model.num_classes", 3, "--model.backbone", "compact", "--model.dim", 4)
TRAINER = {
    "accelerator": "cpu", "devices": 1, "enable_progress_bar": "false", "enable_model_summary": "false",
    "num_sanity_val_steps": 0, "log_every_n_steps": 1, "max_epochs": 3,
}  # fmt: skip


class Small:
    """Runs of 3 epochs of 4 steps on 9 augmented images; `start` is the command line without the fault."""

    STEPS = 4
    PARTS = "tests.faults.parts"

    def __init__(self, root):
        data = {"root": root, "batch_size": 2, "num_workers": 0, "check_counts": "false"}
        self.start = ("fit", *MODEL, "--data", "CIFAR10", *flags("--data.", data), *flags("--trainer.", TRAINER))
        self.two = (
            "--trainer.devices",
            2,
            "--trainer.strategy",
            "DDPStrategy",
            "--trainer.strategy.timeout",
            "0:01:00",  # also of their start, which takes long where cores are contended
        )

    def fault(self, name, **arguments):
        """A callback of `parts` for the command line."""
        return ("--trainer.callbacks+", f"{self.PARTS}.{name}", *flags("--trainer.callbacks.", arguments))

    @staticmethod
    def last(folder, version=0):
        return folder / f"runs/run/version_{version}/checkpoints/last.ckpt"

    def read(self, folder, version=0):
        return torch.load(self.last(folder, version), weights_only=True)


def equal(a, b):
    """Bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture(scope="session")
def same():
    """Whether two checkpoints hold the same training, bit by bit."""
    keys = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return lambda a, b: [key for key in keys if not equal(a[key], b[key])] == []


@pytest.fixture(scope="session")
def small(mini, tmp_path_factory):
    return Small(mini.class_folders(tmp_path_factory.mktemp("data")))


@pytest.fixture
def error(capsys):
    """The only error line, without any traceback beside it."""

    def read():
        text = capsys.readouterr().err
        assert "Traceback" not in text
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    return read
