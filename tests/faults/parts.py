"""Callbacks that cause faults in a real run, given by class path on the command line."""

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytorch_lightning as pl
import torch


class Poison(pl.Callback):
    """Puts non-finite values into images, weights, activations or the gradient, in some steps of one process."""

    def __init__(self, steps: list[int], what: str = "images", rank: int = 0, first_only: bool = False):
        self.steps, self.what, self.rank, self.first_only = steps, what, rank, first_only

    def due(self, trainer):
        return trainer.global_step in self.steps and trainer.global_rank == self.rank

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if self.due(trainer) and self.what == "images" and (first or not self.first_only):
            batch[0][0, 0, 0, 0] = torch.nan
        if self.due(trainer) and self.what == "huge":  # features are finite, their squares are not
            module.pooling.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1e30,))
        if self.due(trainer) and self.what == "statistics":
            with torch.no_grad():
                next(b for b in module.buffers() if b.is_floating_point())[0] = torch.inf
        if self.due(trainer) and self.what == "gradient":
            module.classifier.weight.register_hook(lambda gradient: gradient * self.factor(trainer))
        if self.what == "activation" and trainer.global_step == 0:
            layer = next(m for m in module.backbone.modules() if isinstance(m, torch.nn.Conv2d))
            layer.register_forward_hook(lambda _, __, output: output * self.factor(trainer))
        if self.due(trainer) and self.what == "weight":
            with torch.no_grad():
                next(module.parameters()).view(-1)[0] = torch.inf

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if self.due(trainer) and self.what == "validation":
            batch[0][0, 0, 0, 0] = torch.nan

    def factor(self, trainer):
        return torch.inf if self.due(trainer) else 1.0


class Signal(pl.Callback):
    """Sends this process and its loader processes a signal: in a step of training, or in validation after an epoch."""

    def __init__(self, step: int, number: int, rank: int = 0, in_validation: bool = False):
        self.step, self.number, self.rank, self.in_validation = step, number, rank, in_validation

    def send(self, trainer):
        if trainer.global_step == self.step and trainer.global_rank == self.rank and not trainer.sanity_checking:
            processes = multiprocessing.active_children() if self.number != signal.SIGKILL else []
            pids = [str(process.pid) for process in processes]
            if pids:
                subprocess.run(["kill", f"-{self.number}", *pids], check=True)  # like a signal from outside
            os.kill(os.getpid(), self.number)

    def on_before_backward(self, trainer, module, loss):
        if not self.in_validation:
            self.send(trainer)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if self.in_validation:
            self.send(trainer)


class KillInSave(pl.Callback):
    """Kills this process when half of the checkpoint of a step is written."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        save = torch.save

        def half(checkpoint, file):
            if checkpoint["global_step"] != self.step:
                save(checkpoint, file)
                return
            buffer = io.BytesIO()
            save(checkpoint, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        if trainer.global_step == self.step - 1:
            torch.save = half


class Fill(pl.Callback):
    """Fills the disk before a step; with `log`, also logs more than fits into the last page of the event file."""

    def __init__(self, step: int, folder: str, log: bool = False):
        self.step, self.folder, self.log = step, Path(folder), log

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            with (self.folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            if self.log:
                trainer.logger.experiment.add_text("note", "x" * 5000)


class KillWorker(pl.Callback):
    """Kills a loader process before a step, as the kernel does when memory runs out."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
