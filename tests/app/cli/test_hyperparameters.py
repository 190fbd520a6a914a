"""Hyper-parameters of a checkpoint, of the configuration and of the command line: which of them counts."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from app.cli.hyperparameters import merge_run, names_a_class
from tests.app.cli.parts import SHORT, meta_layer, only_error


def test_the_checkpoint_wins_over_the_file_and_the_command_line_over_both(main, demo, capsys):
    assert main("fit", "--config", demo, "--model.meta_layer", "mpn-cov", "--trainer.max_epochs", 1, *SHORT) == 0
    test = ("test", "--config", demo, "--ckpt_path", "last", "--trainer.limit_test_batches", 1)
    capsys.readouterr()

    assert main(*test) == 0
    assert meta_layer("runs/demo/version_0/config_test.yaml") == "mpn-cov"

    assert main(*test, "--model.meta_layer", "svd-exact") == 0
    assert meta_layer("runs/demo/version_0/config_test.yaml") == "svd-exact"
    # fit's own record is not overwritten by tests
    assert meta_layer("runs/demo/version_0/config.yaml") == "mpn-cov"


def test_a_checkpoint_of_another_shape_is_one_line(main, demo, capsys, trained):
    assert main("test", "--config", demo, "--ckpt_path", "last", "--model.dim", 16) == 1
    error = only_error(capsys)
    assert "does not fit the configured model: pooling.reduction.0.weight is [32, 64, 1, 1] there" in error


def test_a_checkpoint_of_another_model(main, demo, capsys, trained):
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["_class_path"] = "somewhere.Detector"
    torch.save(checkpoint, "other.ckpt")
    assert main("test", "--config", demo, "--ckpt_path", "other.ckpt") == 1
    assert "holds a somewhere.Detector" in only_error(capsys)


def test_options_of_the_layer_follow_the_layer(main, demo):
    seven = ("--model.meta_options.iterations", 7, "--trainer.max_epochs", 1)
    assert main("fit", "--config", demo, *seven, *SHORT) == 0
    test = ("test", "--config", demo, "--ckpt_path", "last", "--trainer.limit_test_batches", 2)
    assert main(*test) == 0
    config = yaml.safe_load(Path("runs/demo/version_0/config_test.yaml").read_text())
    assert config["model"]["init_args"]["meta_options"] == {"iterations": 7}
    assert main(*test, "--model.meta_layer", "svd-pade") == 0


def test_a_whole_model_beside_a_checkpoint_is_refused(main, demo, capsys, trained):
    assert main("test", "--config", demo, "--ckpt_path", "last", "--model", '{"class_path": "Classifier"}') == 1
    assert "give single values of the model" in only_error(capsys)


def test_a_value_on_the_command_line_that_equals_the_file_wins_too(main, demo, trained, capsys):
    """The file says isqrt-cov, and the checkpoint is made to say svd-pade."""
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["meta_layer"] = "svd-pade"
    torch.save(checkpoint, "other.ckpt")
    test = ("test", "--config", demo, "--ckpt_path", "other.ckpt", "--trainer.limit_test_batches", 1)
    test += ("--trainer.logger.version", 7)
    assert main(*test) == 0
    assert meta_layer("runs/demo/version_7/config_test.yaml") == "svd-pade"
    assert main(*test, "--model.meta_layer", "isqrt-cov") == 0
    assert meta_layer("runs/demo/version_7/config_test.yaml") == "isqrt-cov"


def command(folder):
    """The description of an object that runs a command when it is made."""
    return {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(folder / "executed")]}}


@pytest.mark.parametrize("form", ["value", "text"])
@pytest.mark.parametrize("use", ["test", "init_from"])
def test_a_checkpoint_runs_no_command(main, demo, trained, capsys, tmp_path, form, use):
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    value = command(tmp_path) if form == "value" else yaml.safe_dump(command(tmp_path))
    checkpoint["hyper_parameters"]["meta_options"] = {"iterations": value}
    torch.save(checkpoint, "hostile.ckpt")
    arguments = ("test", "--config", demo, "--ckpt_path", "hostile.ckpt", "--trainer.limit_test_batches", 1)
    if use == "init_from":
        arguments = ("fit", "--config", demo, "--model.init_from", "hostile.ckpt", "--trainer.fast_dev_run", "true")
    assert main(*arguments) == 1
    assert "hostile.ckpt was made with an object as model.meta_options" in only_error(capsys)
    assert main(*arguments, "--model.meta_options.iterations", 5) == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, False),
        ("svd-pade", False),
        ("vit_base_patch16_224.augreg_in21k", False),
        ("os.system", True),
        ({"a": ["subprocess.Popen"]}, True),
        ({"taylor_degree": 50}, False),
        ("a: b", False),
        ("{unclosed", False),
        ({"class_path": "os.system"}, True),
        ([{"a": ({"class_path": "os.system"},)}], True),
        ({"a": '{"class\\u005fpath": "os.system"}'}, True),
    ],
)
def test_values_that_name_a_class(value, expected):
    assert names_a_class(value) == expected


def test_lists_that_contain_each_other_come_to_an_end():
    value: list = []
    value.append(value)
    assert not names_a_class(value)


METHOD = {"class_path": "my.Method", "init_args": {"degree": 3}}


def model(value):
    return Namespace(class_path="my.Model", init_args=Namespace(meta_layer=value))


@pytest.mark.parametrize("given", [set(), {"meta_layer"}])
def test_an_object_in_the_configuration_counts_if_it_is_that_of_the_checkpoint_or_given(given):
    configured = Namespace(class_path="my.Method", init_args=Namespace(degree=3))
    merged = model(configured)
    merge_run({"hyper_parameters": {"meta_layer": METHOD}}, merged, "a.ckpt", given)
    assert merged.init_args.meta_layer == configured

    another = model(Namespace(class_path="my.Method", init_args=Namespace(degree=4)))
    if given:
        merge_run({"hyper_parameters": {"meta_layer": METHOD}}, another, "a.ckpt", given)
        assert another.init_args.meta_layer.init_args.degree == 4
    else:
        with pytest.raises(ValueError, match=r"a\.ckpt was made with an object as model\.meta_layer.*--model\.meta_l"):
            merge_run({"hyper_parameters": {"meta_layer": METHOD}}, another, "a.ckpt", given)


def test_a_plain_value_of_the_checkpoint_replaces_an_object_of_the_configuration():
    merged = model(Namespace(class_path="my.Method"))
    merge_run({"hyper_parameters": {"meta_layer": "svd-pade"}}, merged, "a.ckpt", set())
    assert merged.init_args.meta_layer == "svd-pade"


WRONG = {
    "dtype": ({"spectral_dtype": None}, "holds None as model.spectral_dtype, which is not of the type"),
    "classes": ({"num_classes": None}, "are not those of a model: num_classes is missing"),
    "many classes": ({"num_classes": 10**9}, "it asks for a model of 5.3e+11 numbers"),
    "more classes": ({"num_classes": 10**30}, "as model.num_classes, which is not of the type"),
    "backbone": ({"backbone": 5}, "holds 5 as model.backbone, which is not of the type"),
    "dim": ({"dim": "x"}, "holds x as model.dim, which is not of the type"),
    "iterations": ({"meta_options": {"iterations": 10**9}}, "iterations must be at most 1000"),
    "option": ({"meta_options": {"nothing": 1}}, "takes no option 'nothing'"),
    "escape": ({"meta_layer": "\x1b[2J"}, "unknown meta_layer"),
    "tensor": ({"dim": torch.zeros(2)}, "as model.dim, which is not of the type"),
    "option tensor": ({"meta_options": {"iterations": torch.zeros(2)}}, "as model.meta_options, which is not of the"),
    "key": ({3: 4}, "3 is not the name of a hyper-parameter"),
    "path": ({"feature_normalisation": "os.system"}, "was made with an object as model.feature_normalisation"),
}


@pytest.mark.parametrize("case", WRONG)
def test_hyperparameters_of_other_kinds_name_the_file(main, demo, trained, capsys, case):
    changes, message = WRONG[case]
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"].update(changes)
    torch.save(checkpoint, "edited.ckpt")
    assert main("test", "--config", demo, "--ckpt_path", "edited.ckpt", "--trainer.limit_test_batches", 1) == 1
    error = only_error(capsys)
    assert "edited.ckpt" in error
    assert message in error
    assert "\x1b" not in error


@pytest.mark.parametrize("stored", [{"dim": 10**9}, {"meta_options": {"iterations": 10**9}}, {"backbone": ["x"]}])
def test_init_from_takes_no_architecture_that_is_none(main, demo, trained, capsys, stored):
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"].update(stored)
    torch.save(checkpoint, "edited.ckpt")
    status = main("fit", "--config", demo, "--model.init_from", "edited.ckpt", "--trainer.fast_dev_run", "true")
    if "backbone" in stored:  # that of another program: its weights may still fit
        assert status == 0
    else:
        assert status == 1
        assert "the hyper-parameters of edited.ckpt are not those of a model" in only_error(capsys)
