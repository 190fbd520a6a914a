import pytest
import torch

from app.models.torch_files import read_checkpoint, read_state_dict


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
