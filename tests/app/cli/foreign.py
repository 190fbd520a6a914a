"""A model and a data module as another project has them: they know nothing of this program."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Regression(pl.LightningModule):
    """A model without arguments, without hyper-parameters and with a metric of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def training_step(self, batch, batch_index):
        return self._loss(batch, "train_loss")

    def validation_step(self, batch, batch_index):
        self._loss(batch, "val_loss")

    def test_step(self, batch, batch_index):
        self._loss(batch, "test_loss")

    def predict_step(self, batch, batch_index):
        return self.linear(batch[0])

    def _loss(self, batch, name):
        loss = (self.linear(batch[0]) - batch[1]).square().mean()
        self.log(name, loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SavedRegression(Regression):
    """The same with an argument and hyper-parameters."""

    def __init__(self, scale: float = 1.0, optimizer: dict | None = None):
        super().__init__()
        self.save_hyperparameters()


class Brightness(Regression):
    """A model of pictures: three numbers from the mean color."""

    def _loss(self, batch, name):
        images, labels = batch
        colors = images.mean((-2, -1))
        loss = nn.functional.cross_entropy(self.linear(nn.functional.pad(colors, (0, 1))), labels % 3)
        self.log(name, loss)
        return loss


class Points(pl.LightningDataModule):
    def train_dataloader(self):
        return self._loader()

    def val_dataloader(self):
        return self._loader()

    def test_dataloader(self):
        return self._loader()

    def predict_dataloader(self):
        return self._loader()

    def _loader(self):
        points = torch.linspace(0, 1, 32).reshape(8, 4)
        return DataLoader(TensorDataset(points, points[:, :3]), batch_size=4)


class Pictures(Points):
    """Six classes of noise, without `class_names`."""

    def _loader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(12, 3, 32, 32, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(12) % 6), batch_size=6)
