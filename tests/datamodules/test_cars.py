import inspect

import pytest
import scipy.io
from numpy.lib.recfunctions import repack_fields

from datamodules import Cars


def cars(root, **options):
    return Cars(str(root), **{"num_workers": 0, "check_counts": False, **options})


LAYOUTS = {
    "torchvision": lambda mini, root: mini.cars_devkit(root),
    "labels in devkit": lambda mini, root: mini.cars_devkit(root, "stanford_cars/devkit"),
    "one list": lambda mini, root: mini.cars_one_list(root),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_layouts(tmp_path, mini, layout):
    data = cars(LAYOUTS[layout](mini, tmp_path))
    mini.check(data, mini.expected)
    assert data.class_names == list(mini.classes)


def test_the_inner_folder_works_too(tmp_path, mini):
    mini.check(cars(mini.cars_devkit(tmp_path) / "stanford_cars"), mini.expected)


def test_torchvision_reads_the_same(tmp_path, mini):
    from torchvision.datasets import StanfordCars

    data = cars(mini.cars_devkit(tmp_path))
    for split, theirs in (("train", "train"), ("val", "test")):
        listed = StanfordCars(str(tmp_path), theirs)._samples
        assert [(str(data.root / file), label) for file, label in data.files(split)] == listed


@pytest.mark.parametrize(
    "name", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"]
)
def test_a_missing_file(tmp_path, mini, name):
    (mini.cars_devkit(tmp_path) / "stanford_cars" / name).unlink()
    message = (
        rf"^Cars: {name.split('/')[-1]} is missing in .*/stanford_cars/devkit and .*/stanford_cars; .*issues/7545$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        cars(tmp_path).setup("fit")


def test_a_missing_single_list(tmp_path, mini):
    (mini.cars_one_list(tmp_path) / "cars_annos.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"^Cars: cars_annos.mat is missing in .*issues/7545$"):
        cars(tmp_path).setup("fit")


def test_the_test_list_without_labels(tmp_path, mini):
    path = mini.cars_devkit(tmp_path) / "stanford_cars" / "cars_test_annos_withlabels.mat"
    annotations = scipy.io.loadmat(path)["annotations"]
    scipy.io.savemat(path, {"annotations": repack_fields(annotations[["bbox_x1", "fname"]])})
    with pytest.raises(ValueError, match=r"the annotations of .*withlabels.mat have no field class"):
        cars(tmp_path).setup("fit")


def test_no_download_is_offered():
    assert "download" not in inspect.signature(Cars).parameters
    assert (Cars.sizes, Cars.num_classes) == ({"train": 8144, "val": 8041}, 196)
