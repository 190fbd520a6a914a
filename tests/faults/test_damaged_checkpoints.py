"""Random damage of a checkpoint: an error of one line that names the file, or the result of the undamaged one.

Bounded in time and seeded: the same damages in the same order, as many as there is time for.
"""

import copy
import random
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml

SECONDS = 70
LEAST = 12
"""Damages that are tried on the slowest machine."""

SHORT = ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1)
COMMANDS = {
    "fit": (*SHORT, "--trainer.max_epochs", 2, "--ckpt_path"),
    "test": ("--trainer.limit_test_batches", 1, "--ckpt_path"),
    "init_from": (*SHORT, "--trainer.max_epochs", 1, "--model.init_from"),
}
SAID = ("left as initialised", "of another shape, not loaded", "not used", "fits this backbone")
"""Parts of the lines by which `init_from` says that a layer does not begin with the weights of the file."""


def laughs():
    value: list = ["lol"]
    for _ in range(40):
        value = [value, value]
    return value


def contains_itself():
    value: list = []
    value.append(value)
    return value


def command(folder):
    """The description of an object that runs a command when it is made."""
    return {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(folder / "executed")]}}


def values(folder):
    """Values of other kinds, of which one takes the place of an entry."""
    return [
        None, "x", "", "\x1b[2J", "os.system", f"local://{folder / 'home'}", "http://localhost:1/x", -1, 10**30,
        float("nan"), True, 1j, b"x", [], {}, [1, "x"], {"x": 1}, torch.zeros(7), torch.zeros(3, dtype=torch.long),
        torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(1).expand(2**34), torch.tensor(2j),
        torch.full((3,), torch.nan), laughs(), contains_itself(), command(folder), yaml.safe_dump(command(folder)),
    ]  # fmt: skip


def random_entry(content, rng):
    """A container and the key of one of its entries, at any depth."""
    while True:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        inside = content[key]
        if not isinstance(inside, dict | list) or not inside or rng.random() < 0.15:
            return content, key
        content = inside


def damaged_entry(content, rng, folder):
    """Remove or replace an entry; return what was done."""
    content = copy.deepcopy(content)
    container, key = random_entry(content, rng)
    if rng.random() < 0.3:
        del container[key]
        return content, f"without {key}"
    value = rng.choice(values(folder))
    container[key] = value
    return content, f"{key} = {type(value)!s} {repr(value)[:60] if not isinstance(value, list) else '[...]'}"


def damaged_hyperparameter(content, rng, folder):
    content = copy.deepcopy(content)
    key = rng.choice(list(content["hyper_parameters"]))
    value = rng.choice([command(folder), yaml.safe_dump(command(folder)), {"a": command(folder)}, "os.system", 10**9])
    if key.endswith("options") and rng.random() < 0.5:
        value = {"iterations": value}
    content["hyper_parameters"][key] = value
    return content, f"hyper-parameter {key} = {value}"


def damaged_paths(content, rng, folder):
    content = copy.deepcopy(content)
    path = rng.choice(
        [f"local://{folder / 'home'}", str(folder / "home"), "../../../../home", str(folder / "home" / "a")]
    )
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state.update(best_model_path=path, last_model_path=path, best_k_models={path: torch.tensor(-1.0)})
    return content, f"paths {path}"


def damaged_bytes(content, rng):
    content = bytearray(content)
    place = rng.randrange(len(content))
    kind = rng.choice(["cut", "bit", "zeros"])
    if kind == "cut":
        return content[:place], f"cut at {place}"
    if kind == "bit":
        content[place] ^= 1 << rng.randrange(8)
    else:
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    return content, f"{kind} at {place}"


def damage(path, whole, rng, folder):
    """Write a damaged copy; return what was done."""
    if rng.random() < 0.15:
        content, text = damaged_bytes(whole, rng)
        path.write_bytes(content)
        return text
    content = torch.load(Path("last.ckpt"), weights_only=True)
    kind = rng.choices([damaged_entry, damaged_hyperparameter, damaged_paths], [10, 3, 1])[0]
    content, text = kind(content, rng, folder)
    torch.save(content, path)
    return text


class Runs:
    """Runs of the command line on one checkpoint after the other."""

    def __init__(self, main, small, capsys, caplog):
        self.main, self.small, self.capsys, self.caplog = main, small, capsys, caplog

    def run(self, name, path, number):
        """Exit status, output, and the weights or the results of a run."""
        self.caplog.clear()
        self.capsys.readouterr()
        subcommand = "test" if name == "test" else "fit"
        arguments = (
            subcommand,
            *self.small.start[1:],
            "--trainer.logger.name",
            f"{name}-{number}",
            *COMMANDS[name],
            path,
        )
        with self.caplog.at_level("INFO"), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            status = self.main(*arguments)
        output = self.capsys.readouterr()
        warned_texts = "\n".join(str(warning.message) for warning in warned)
        last = Path(f"runs/{name}-{number}/version_0/checkpoints/last.ckpt")
        result = torch.load(last, weights_only=True)["state_dict"] if last.is_file() else None
        if name == "test":
            result = [line for line in output.out.splitlines() if "test/" in line]
        return status, f"{output.err}\n{self.caplog.text}\n{warned_texts}", output.out, result


def contents(folder):
    """Names and contents of all files below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_random_damage(main, small, capsys, caplog, tmp_path, seed):
    rng = random.Random(seed)
    victims = tmp_path / "home"
    victims.mkdir()
    (victims / "a").write_text("years of work")
    work = tmp_path / "work"
    work.mkdir()
    runs = Runs(main, small, capsys, caplog)
    assert main(*small.start, *SHORT, "--trainer.max_epochs", 1) == 0
    Path("last.ckpt").write_bytes(small.last(Path()).read_bytes())
    whole = Path("last.ckpt").read_bytes()
    expected = {name: runs.run(name, "last.ckpt", "whole") for name in COMMANDS}
    before, number = contents(victims), 0
    end = time.monotonic() + SECONDS
    while number < LEAST or (time.monotonic() < end and number < 300):
        number += 1
        name = rng.choice(list(COMMANDS))
        done = damage(Path("damaged.ckpt"), whole, rng, tmp_path)
        status, errors, out, result = runs.run(name, "damaged.ckpt", number)
        told = f"damage {number}, {name}: {done}\n{errors[-2000:]}"
        assert "Traceback" not in errors, told
        assert "\x1b[2J" not in errors + out, told
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        if status:
            assert len(lines) == 1, told
            assert "damaged.ckpt" in lines[0], told
        elif not (name == "init_from" and any(text in errors for text in SAID)):
            assert same(result, expected[name][3]), told
        assert not (tmp_path / "executed").exists(), told
        assert contents(victims) == before, told
    print(f"{number} damages")
