import pytest

from datamodules import CIFAR10


@pytest.fixture
def small(tmp_path, mini):
    """CIFAR-10 in class folders: of all data sets, the one with the smallest images."""

    def make(**options):
        if not (tmp_path / "train").exists():
            mini.class_folders(tmp_path)
        return CIFAR10(str(tmp_path), **{"num_workers": 0, "check_counts": False, "batch_size": 3, **options})

    return make
