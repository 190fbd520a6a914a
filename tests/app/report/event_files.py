"""Real event files of runs, written by TensorBoard's own writer."""

import yaml
from torch.utils.tensorboard import SummaryWriter

from app.report.experiments import group_by_experiment
from app.report.runs import read_run


def write(folder, scalars, config=None, begun=1):
    """A version folder with an event file of ``{tag: {step: value}}``."""
    before = set(folder.glob("events*"))
    writer = SummaryWriter(folder)
    for tag, curve in scalars.items():
        for step, value in curve.items():
            writer.add_scalar(tag, value, step)
    writer.close()
    (file,) = set(folder.glob("events*")) - before
    file = file.rename(folder / f"events.out.tfevents.{begun}.host.1.0")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return file


def trained(folder, seed=0, meta_layer="svd-pade", shift=0.0, **config):
    """A run of three epochs of ten steps: top-1 errors of 50, 40 and 45 percent."""
    ends = (9, 19, 29)
    top1 = dict(zip(ends, (0.5 - shift, 0.6 - shift, 0.55 - shift), strict=True))
    scalars = {
        "train/loss": {0: 2.0, 10: 1.0, 20: 0.5},
        "train/top1": dict.fromkeys(ends, 0.5),
        "epoch": {0: 0, 10: 1, 20: 2, 9: 0, 19: 1, 29: 2},
        "val/top1": top1,
        "val/top5": {step: value + 0.3 for step, value in top1.items()},
        "covariance/condition_number": {0: 1e10, 5: 3e10, 12: 7e6, 22: 10.0, 28: 30.0},
        "hybrid/stage": {9: 0, 19: 1, 29: 2},  # logged at the end of each epoch
        "svd/failures": {0: 0, 28: 4},
    }
    model = {"init_args": {"meta_layer": meta_layer, "dim": 32}}
    write(folder, scalars, {"seed_everything": seed, "model": model, **config})
    return folder


def groups(*folders):
    return group_by_experiment([read_run(folder) for folder in folders])
