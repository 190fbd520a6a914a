"""The wheel `covpool`: built, installed beside a project that has an `app` of its own, and used as the README says."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

SOURCES = ("app", "callbacks", "pyproject.toml", "README.md", "LICENSE", "requirements.txt")

ON_PLAIN_LIGHTNING = """
import pytorch_lightning as pl, torch
from torch import nn
from covpool.callbacks import ConditionNumberMonitor, NearestOrthogonalGradient, SVDFailureCounter
from covpool.layers import GlobalCovariancePooling

class Mine(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.stem, self.pooling = nn.Conv2d(3, 8, 3), GlobalCovariancePooling(8, 4)
        self.head = nn.Linear(10, 2)

    @property
    def pre_svd_layer(self):
        return self.pooling.pre_svd_layer

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.head(self.pooling(self.stem(batch[0]))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

data = torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 2)
callbacks = [ConditionNumberMonitor(every_n_steps=1), NearestOrthogonalGradient(), SVDFailureCounter()]
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=callbacks, **quiet)
trainer.fit(Mine(), torch.utils.data.DataLoader(data, batch_size=4))
print(sorted(trainer.callback_metrics))
"""


def link_with_requirements(name, site, done):
    """Make a package of this environment and all that it requires importable in another, and nothing else."""
    if name.lower() in done:
        return
    done.add(name.lower())
    package = distribution(name)
    for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
        target = Path(package.locate_file(top))
        if target.exists() and not (site / top).exists():
            (site / top).symlink_to(target)
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            link_with_requirements(requirement.name, site, done)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, "."]
    subprocess.run(command, cwd=folder / "source", check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Installs the wheel and some packages in an empty environment; Python there, in a project with its own `app`."""
    folder = tmp_path_factory.mktemp("environments")

    def make(*packages):
        home = folder / "-".join(packages)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
        python = home / "bin" / "python"
        install = ["install", "-q", "--no-deps", "--no-index", wheel]
        subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
        done = set()
        (site,) = home.glob("lib/*/site-packages")
        for package in packages:
            link_with_requirements(package, site, done)
        (home / "project" / "app").mkdir(parents=True)
        (home / "project" / "app" / "__init__.py").write_text("mine = True\n")

        def run(program):
            return subprocess.run([python, "-c", program], cwd=home / "project", capture_output=True, text=True)

        return run

    return make


@pytest.fixture(scope="module")
def with_torch(environment):
    return environment("torch")


def test_the_readme_example_needs_torch_alone(with_torch):
    (example,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
        if "covpool" in block
    ]
    result = with_torch(
        f"import app\nassert app.mine\n{example}\nimport sys\nprint('pytorch_lightning' in sys.modules)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "False"


def test_the_wheel_holds_the_library_and_its_types_alone(with_torch):
    listed = (
        "from importlib.metadata import distribution as d; w = d('covpool'); print(w.requires, *w.files, sep='\\n')"
    )
    requires, *files = with_torch(listed).stdout.splitlines()
    # what the application needs is an extra
    assert [text for text in eval(requires) if "extra" not in text] == ["torch>=2.11"]
    assert "covpool/py.typed" in files
    folders = {str(Path(file).parent) for file in files if "__pycache__" not in file and "dist-info" not in file}
    assert folders == {"covpool", "covpool/spectral", "covpool/layers", "covpool/callbacks"}
    assert not any(file.startswith(("app", "callbacks")) for file in files)


def test_callbacks_ask_for_lightning(with_torch):
    result = with_torch("import covpool.callbacks")
    assert result.returncode == 1
    assert "No module named 'pytorch_lightning'" in result.stderr.splitlines()[-1]


def test_callbacks_in_plain_lightning(environment):
    result = environment("torch", "pytorch-lightning")(ON_PLAIN_LIGHTNING)
    assert result.returncode == 0, result.stderr
    assert "covariance/condition_number_epoch" in result.stdout
    assert "nog/gradient_norm" in result.stdout
    assert "svd/failures" in result.stdout
