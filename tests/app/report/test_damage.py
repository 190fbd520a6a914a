"""Runs that were damaged at random: one line at most, and what is lost is said."""

import os
import random
import shutil

import pytest

from app.report import __main__ as report
from app.report.runs import read_run
from tests.app.report.event_files import trained

VARIANTS = 200


def flipped(data, chance):
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def zeroed(data, chance):
    begin = chance.randrange(len(data))
    data[begin : begin + 64] = bytes(len(data[begin : begin + 64]))


def removed(data, chance):
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.randrange(1, 64)]


def inserted(data, chance):
    begin = chance.randrange(len(data))
    data[begin:begin] = chance.randbytes(chance.randrange(1, 64))


def overwritten(data, chance):
    begin = chance.randrange(len(data))
    data[begin : begin + 16] = chance.randbytes(16)


def repeated(data, chance):
    begin = chance.randrange(len(data))
    data[begin:begin] = data[begin : begin + chance.randrange(1, 64)]


def cut(data, chance):
    del data[chance.randrange(len(data)) :]


KINDS = (flipped, zeroed, removed, inserted, overwritten, repeated, cut)


def same(one, other):
    if one.keys() != other.keys():
        return False
    for tag, curve in one.items():
        if curve.steps.tolist() != other[tag].steps.tolist() or curve.values.tolist() != other[tag].values.tolist():
            return False
    return True


@pytest.mark.slow
def test_damage_at_random(tmp_path, capsys, monkeypatch):
    """No traceback; a file that was damaged is named, or the curves are complete.

    The pictures are left to the other tests: they are drawn from what was read, and take most of the time.
    """
    monkeypatch.setattr("app.report.figures.FIGURES", {})
    chance = random.Random(0)
    trained(tmp_path / "whole")
    whole = read_run(tmp_path / "whole").curves
    # Bytes that are missing from the last record are those of a run that was killed.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    last = next((tmp_path / "killed").glob("events*"))
    os.truncate(last, last.stat().st_size - 1)
    killed = read_run(tmp_path / "killed").curves
    for number in range(VARIANTS):
        run = tmp_path / f"run {number}"
        shutil.copytree(tmp_path / "whole", run)
        file = next(run.glob("events*")) if number % 2 else run / "config.yaml"
        damage = KINDS[number // 2 % len(KINDS)]
        data = bytearray(file.read_bytes())
        before = bytes(data)
        damage(data, chance)
        file.write_bytes(data)
        status = 0
        try:
            report.main([str(run), "--output", str(tmp_path / "out")])
        except SystemExit as end:
            status = end.code
        error = capsys.readouterr().err
        what = f"variant {number}, {damage.__name__} {file.name}: {error}"
        assert status in (0, 1), what
        assert "Traceback" not in error, what
        assert error.count("error: ") == status, what
        assert error.count("\n") <= 2, what
        is_named = f"{file} " in error
        if file.name != "config.yaml" and status == 0 and damage is not cut and data != before:
            curves = read_run(run).curves
            assert is_named or same(curves, whole) or (damage is removed and same(curves, killed)), what
        elif status == 1:
            assert is_named or str(run) in error, what
