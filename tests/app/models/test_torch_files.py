import hashlib
import zipfile
from contextlib import nullcontext

import pytest
import torch

from app.models.torch_files import check_weights, read_checkpoint, read_state_dict


class Hostile:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path("executed"),)


def test_a_hostile_file_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Hostile()}, "hostile.pth")
    with pytest.raises(ValueError, match=r"hostile.pth cannot be read safely"):
        read_checkpoint("hostile.pth")
    assert not (tmp_path / "executed").exists()


def test_files_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"none.pth is not a file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"an empty name is not a file"):
        read_state_dict("")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no dictionary of tensors"):
        read_state_dict(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_state_dict(tmp_path / "text.pth")


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(2000)) + 1000] ^= 64  # among the zeros of the tensor
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["a"].any()  # torch ignores the checksums
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_checkpoint(path)


def test_a_file_of_the_older_format_is_read_with_a_warning(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"old.pth is in torch's older format, without checksums: whether it is dama"):
        assert read_state_dict(path)["a"].sum() == 3


@pytest.mark.parametrize("right", [True, False])
def test_a_hash_in_the_name_of_an_older_file_is_checked(tmp_path, recwarn, right):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    digest = hashlib.sha256((tmp_path / "old.pth").read_bytes()).hexdigest() if right else "20240101"
    path = (tmp_path / "old.pth").rename(tmp_path / f"old-{digest[:8]}.pth")
    read_state_dict(path)
    assert any("without checksums" in str(warning.message) for warning in recwarn) != right


def rewritten(path, compression=zipfile.ZIP_STORED):
    """The records of a file of torch in another archive."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def test_a_compressed_record_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(10**6)}, path)
    rewritten(path)
    assert read_state_dict(path)["a"].shape == (10**6,)
    rewritten(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"bomb.pth cannot be read safely .*a record is compressed"):
        read_checkpoint(path)


def pickle_of(tmp_path, instructions):
    """A file of torch whose pickle is prepared by hand."""
    path = tmp_path / "prepared.pth"
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, instructions if name.endswith("data.pkl") else content)
    return path


def test_a_pickle_that_asks_for_memory(tmp_path):
    # bytearray(2**36), by torch's own reader
    size = b"\x8a\x05" + (2**36).to_bytes(5, "little")
    path = pickle_of(tmp_path, b"\x80\x02cbuiltins\nbytearray\n" + size + b"\x85R.")
    with pytest.raises(ValueError, match="bytearray"):
        read_checkpoint(path)
    path = pickle_of(tmp_path, b"\x80\x02cbuiltins\neval\n(X\x04\x00\x00\x001**2tR.")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_checkpoint(path)


def test_lists_that_refer_to_each_other(tmp_path):
    value: list = ["lol"] * 10
    for _ in range(40):
        value = [value, value]
    torch.save({"a": value}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth cannot be read safely .*unfolds to .* entries"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_control_character_in_the_name_of_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"x\\x1b\[2J.pth is not a file"):
        read_checkpoint(tmp_path / "x\x1b[2J.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": "x"}, "w is a str"),
        ({3: torch.zeros(1)}, "3 is not a name"),
        (
            {"w": torch.zeros(2).to_sparse()},
            r"w is not an ordinary tensor .*\(sparse_coo, float32, cpu\)",
        ),
        ({"w": torch.zeros(2, device="meta")}, r"w is not an ordinary .*\(strided, float32, meta\)"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "w is not an ordinary .*complex64"),
        ({"w": torch.tensor([1, float("nan")])}, "w contains non-finite values"),
        ({"w": torch.tensor([1, float("-inf")], dtype=torch.bfloat16)}, "w contains non-finite values"),
        ({"w": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, "w contains non-finite values"),
        ({"w": torch.zeros(2), "n": torch.tensor(3)}, None),
    ],
)
def test_weights(state, message):
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_weights(state)
