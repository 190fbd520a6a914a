"""A LightningModule and data as a user of plain Lightning writes them: nothing of this program but a pooling layer."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from app.layers import GlobalCovariancePooling

CLASSES = 3


class OwnModule(pl.LightningModule):
    """A network with covariance pooling, trained without any of our models."""

    def __init__(self, meta_layer="svd-exact"):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.pooling = GlobalCovariancePooling(6, 4, meta_layer)
        self.head = nn.Linear(self.pooling.out_features, CLASSES)

    def forward(self, images):
        return self.head(self.pooling(self.backbone(images)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    def predict_step(self, batch, batch_idx):
        return self(batch["image"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Treated(OwnModule):
    """The same with all that the callbacks may ask for."""

    @property
    def pre_svd_layer(self):
        return self.pooling.pre_svd_layer

    def loss(self, batch):
        return self.training_step(batch, 0)

    def configure_optimizers(self):
        weight = self.pre_svd_layer.weight
        rest = [parameter for parameter in self.parameters() if parameter is not weight]
        return torch.optim.SGD([{"params": rest}, {"params": [weight]}], lr=0.1)


class Samples(TensorDataset):
    """Dictionaries instead of pairs."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return {"image": image, "label": label}


def loader(images=12):
    generator = torch.Generator().manual_seed(1)
    samples = Samples(torch.randn(images, 3, 8, 8, generator=generator), torch.arange(images) % CLASSES)
    return DataLoader(samples, batch_size=4)


def trainer(folder, *callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    defaults = {"enable_checkpointing": False, "max_epochs": 2, "log_every_n_steps": 1, **quiet}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **options})
