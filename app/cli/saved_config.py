"""Save the configuration of a run next to its log."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from app.cli.run_lock import main_folder
from app.console.files import write_file


class SavedConfig(SaveConfigCallback):
    """Lightning's callback, which writes ``config.yaml`` whole or not at all, and never over a file of the user's.

    Lightning's log folder is the current folder where there is no logger, or one that keeps its log elsewhere; the
    user's own ``config.yaml`` may lie there. The configuration is then saved in the folder of the checkpoints.

    Raises:
        OSError: on all processes, if the file cannot be written, or is one of the files given by ``--config``.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        self.already_saved = True
        folder = _folder(trainer, trainer.log_dir)  # a broadcast: every process takes part
        reason = None
        if trainer.is_global_zero and folder is not None:
            reason = self._save(folder / self.config_filename)
        reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            raise OSError(reason)

    def _save(self, path: Path) -> str | None:
        """Save the configuration, and return why that is impossible, for the other processes."""
        if self._is_given(path):
            return (
                f"{path} is given by --config, and would be replaced by the configuration of this run: give the run "
                "its own --trainer.logger.name, or rename the file"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, self.parser.dump(self.config, skip_unset=False).encode())
        except OSError as error:
            return str(error)
        return None

    def _is_given(self, path: Path) -> bool:
        if self.config.get("ckpt_path"):  # a run that is resumed by the file that it has saved itself
            return False
        return any(path.resolve() == Path(str(given)).resolve() for given in self.config.get("config") or ())


def _folder(trainer: pl.Trainer, log_dir: str | None) -> Path | None:
    """The folder of the configuration, ``None`` if the run writes nothing else either."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if not trainer.loggers:
        folder = main_folder(trainer)
        saves = any(isinstance(callback, Checkpoint) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or not saves:
            return folder if folder.is_dir() else None
        return folder
    if isinstance(trainer.loggers[0], CSVLogger | TensorBoardLogger):
        return Path(str(log_dir))
    return main_folder(trainer).parent
