import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from app.layers import meta_layers
from app.models.classifier import Classifier


def small(**arguments):
    return Classifier(**{"num_classes": 6, "backbone": "compact", "dim": 8, **arguments})


def loader(images=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(images) % 6), batch_size=4)


def trainer(tmp_path, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(default_root_dir=tmp_path, **{"max_epochs": 1, **quiet, **arguments})


def test_down_sampling_follows_the_pooling():
    images = torch.zeros(1, 3, 48, 48)
    sides = {name: small(meta_layer=name).backbone(images).shape[-1] for name in ("gap", "isqrt-cov")}
    assert sides == {"gap": 6, "isqrt-cov": 12}
    assert small(meta_layer="gap", downsampling="removed").backbone(images).shape[-1] == 12


@pytest.mark.parametrize("meta_layer", [name for name in meta_layers() if name != "svd-pi"])
def test_one_step_with_every_layer(meta_layer, tmp_path):
    torch.manual_seed(0)
    model = small(meta_layer=meta_layer)
    before = [p.clone() for p in model.parameters()]
    trainer(tmp_path, max_steps=1).fit(model, loader())
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_two_learning_rates_and_every_parameter_once():
    configuration = small(classifier_learning_rate=0.5).configure_optimizers()
    rest, classifier = configuration["optimizer"].param_groups
    assert (rest["lr"], classifier["lr"]) == (0.1, 0.5)
    assert sum(p.numel() for p in classifier["params"]) == 36 * 6 + 6
    model = small()
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}


def test_default_schedule_is_the_papers():
    configuration = small().configure_optimizers()
    optimizer, scheduler = configuration["optimizer"], configuration["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [rates[epoch] for epoch in (0, 29, 30, 44, 45)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_metrics_are_micro_averages_and_losses_means(tmp_path):
    # class 0 has five of six images: a macro average would differ
    torch.manual_seed(0)
    model = small()
    x, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 0, 0, 0, 0, 1])
    data = DataLoader(TensorDataset(x, labels), batch_size=4)
    (result,) = trainer(tmp_path).validate(model, data, verbose=False)
    with torch.no_grad():
        logits = model.eval()(x)
    assert result["val/top1"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    top5 = (logits.topk(5).indices == labels[:, None]).any(-1).float().mean().item()
    assert result["val/top5"] == pytest.approx(top5)
    assert result["val/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert set(trainer(tmp_path).test(model, data, verbose=False)[0]) == {"test/loss", "test/top1", "test/top5"}


def test_untrained_loss_is_about_the_logarithm_of_the_classes(tmp_path):
    torch.manual_seed(0)
    (result,) = trainer(tmp_path).validate(small(), loader(), verbose=False)
    assert result["val/loss"] == pytest.approx(math.log(6), rel=0.3)


def test_a_checkpoint_is_plain_and_loads_by_itself(tmp_path):
    model = small(meta_layer="svd-taylor", meta_options={"taylor_degree": 7})
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (again.pooling.meta_layer, again.pooling.meta_options) == ("svd-taylor", {"taylor_degree": 7})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_resuming_with_another_optimizer_is_refused(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.fit(small(), loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = small(optimizer=lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.9, weight_decay=1e-4))
    with pytest.raises(ValueError, match=r"another optimizer.*optimizer\.lr\[0\]: 0\.1 in the checkpoint, 0\.2 now"):
        trainer(tmp_path, max_steps=2).fit(other, loader(), ckpt_path=tmp_path / "a.ckpt")
    trainer(tmp_path, max_steps=2).fit(small(), loader(), ckpt_path=tmp_path / "a.ckpt")


def test_divergence_is_named_and_not_trained_on(tmp_path):
    # the gradient of svd-pi grows like a ratio of eigenvalues to the power 100, and overflows
    torch.manual_seed(0)
    with pytest.raises(FloatingPointError, match=r"svd-pi.*are not finite: an earlier update diverged"):
        trainer(tmp_path, max_steps=20, max_epochs=10).fit(small(meta_layer="svd-pi"), loader())


def test_too_few_classes():
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        small(num_classes=1)


def test_pre_svd_layer_is_the_last_convolution_before_the_covariance():
    model = small()
    assert model.pre_svd_layer is model.pooling.reduction[0]
    model = small(dim=None)
    assert model.pre_svd_layer is model.backbone.stage4[0]
    assert small(meta_layer="gap").pre_svd_layer is None


def test_checkpoints_name_the_meta_layer_in_use(tmp_path):
    model = small(meta_layer="isqrt-cov")
    model.use_meta_layer("svd-taylor", {"taylor_degree": 7})
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (again.pooling.meta_layer, again.pooling.meta_options) == ("svd-taylor", {"taylor_degree": 7})


def test_without_a_number_of_classes():
    with pytest.raises(ValueError, match=r"num_classes is missing: give the number of classes \(train.py takes"):
        Classifier(backbone="compact")


def test_top_1_and_top_5_do_not_share_a_state(tmp_path):
    # all right in the first batch, where both accuracies are equal; none of the second among the first ones
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = small(num_classes=10).eval()
    with torch.no_grad():
        order = model(x).argsort(-1, descending=True)
    labels = torch.cat([order[:4, 0], order[4:, 2]])
    (result,) = trainer(tmp_path).validate(model, DataLoader(TensorDataset(x, labels), batch_size=4), verbose=False)
    assert (result["val/top1"], result["val/top5"]) == (0.5, 1.0)


class Counts(pl.Callback):
    """Keeps how many images the metrics have counted at the end of each epoch."""

    def __init__(self):
        self.images = []

    def on_train_epoch_end(self, trainer, module):
        top1 = module.train_metrics["top1"]
        self.images.append(int(top1.tp + top1.fn))


def test_metrics_of_an_epoch_forget_the_epochs_before(tmp_path):
    counts = Counts()
    trainer(tmp_path, max_epochs=2, callbacks=[counts]).fit(small(), loader())
    assert counts.images == [12, 12]


def test_an_optimizer_of_one_group(tmp_path):
    lbfgs = {"optimizer": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=2)}
    model = small(**lbfgs)
    before = [p.clone() for p in model.parameters()]
    trainer(tmp_path, max_steps=1).fit(model, loader())
    (group,) = model.trainer.optimizers[0].param_groups
    assert len(group["params"]) == len(before)
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="LBFGS doesn't support per-parameter options"):
        small(**lbfgs, classifier_learning_rate=0.5).configure_optimizers()


def test_a_wrong_setting_of_the_optimizer_is_its_own_message():
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        small(optimizer=lambda params: torch.optim.SGD(params, lr=-1)).configure_optimizers()


class Noise(pl.Callback):
    """A callback that the model does not know, with a parameter group and an entry of the training setup."""

    def __init__(self, amount):
        self.training_setup = {"Noise": amount}

    def setup(self, trainer, pl_module, stage):
        pl_module.give_own_parameter_group(pl_module.classifier.bias)


def test_callbacks_change_groups_and_setup_for_one_fit(tmp_path):
    run, model = trainer(tmp_path, max_steps=1, callbacks=[Noise("0.1")]), small()
    run.fit(model, loader())
    groups = run.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups[1:]] == [1, 1]
    assert groups[2]["params"][0] is model.classifier.bias
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"Noise: 0.1 in the checkpoint, 0.2 now"):
        trainer(tmp_path, max_steps=2, callbacks=[Noise("0.2")]).fit(small(), loader(), ckpt_path=tmp_path / "a.ckpt")
    trainer(tmp_path, max_steps=2, callbacks=[Noise("0.1")]).fit(small(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert len(model.configure_optimizers()["optimizer"].param_groups) == 2


class Random(pl.Callback):
    def __init__(self):
        self.numbers = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.numbers.append(torch.rand(()).item())


def numbers(tmp_path, seed, data):
    callback = Random()
    pl.seed_everything(seed)
    trainer(tmp_path, max_epochs=2, callbacks=[callback]).fit(small(), data)
    return callback.numbers


class Seeded(pl.LightningDataModule):
    seed = 1

    def train_dataloader(self):
        return loader()


def test_random_numbers_of_a_step_depend_on_the_seed_of_the_run(tmp_path):
    first = numbers(tmp_path, 1, loader())
    assert len(set(first)) == 6
    assert numbers(tmp_path, 1, loader()) == first
    assert numbers(tmp_path, 2, loader()) != first
    # that of a data module wins: it is restored from a checkpoint
    assert numbers(tmp_path, 2, Seeded()) == first


def test_prediction_of_any_loader():
    model, images = small().eval(), torch.randn(2, 3, 32, 32)
    expected = model(images).softmax(-1)
    for batch in (images, [images, torch.zeros(2)], {"images": images, "files": ["a", "b"], "errors": []}):
        output = model.predict_step(batch, 0)
        torch.testing.assert_close(output.pop("probabilities"), expected)
        assert output == ({"files": ["a", "b"], "errors": []} if isinstance(batch, dict) else {})
    assert model.predict_step({"images": images[:0], "files": []}, 0)["probabilities"].shape == (0, 6)


def test_tokens_are_pooled_as_the_map_they_come_from():
    class Patches(torch.nn.Conv2d):
        def forward(self, images):
            return super().forward(images).flatten(2).mT

    convolution = torch.nn.Conv2d(3, 12, 8, stride=8)
    tokens = Patches(3, 12, 8, stride=8)
    tokens.load_state_dict(convolution.state_dict())
    model = small(backbone=convolution).eval()
    again = small(backbone=tokens).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(images), model(images))


def test_a_checkpoint_from_before_the_move_loads():
    path = Path(__file__).parents[1] / "cli" / "run_before_the_move" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    assert stored["hyper_parameters"]["_class_path"] == "app.classifier.Classifier"
    model = Classifier.load_from_checkpoint(path, weights_only=True)
    assert model.pooling.meta_layer == "svd-pade"
    assert all(torch.equal(value, stored["state_dict"][name]) for name, value in model.state_dict().items())
