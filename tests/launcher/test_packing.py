"""A user's serving code gets into a model archive, and the model's own files stay what they were."""

import io
import random
import tarfile
import zipfile

import pytest

from launcher import packing
from launcher.errors import ConfigError, JobFailed


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"weights.pt": b"w" * 1000, "code/old.py": b"old", "./code/older.py": b"old"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def code(tmp_path):
    (tmp_path / "src" / "package").mkdir(parents=True)
    (tmp_path / "src" / "inference.py").write_text("new")
    (tmp_path / "src" / "package" / "part.py").write_text("part")
    (tmp_path / "src" / "__pycache__").mkdir()
    (tmp_path / "src" / "__pycache__" / "x.pyc").write_text("no")
    return tmp_path / "src"


def test_the_code_takes_the_place_of_what_was_there(archive, code, tmp_path):
    packing.repack(archive, code, tmp_path / "out.tar.gz")
    with tarfile.open(tmp_path / "out.tar.gz") as tar:
        assert tar.getnames() == ["weights.pt", "code/inference.py", "code/package/part.py"]
        assert tar.extractfile("weights.pt").read() == b"w" * 1000
        assert tar.extractfile("code/inference.py").read() == b"new"


def test_links_are_packed_as_what_they_point_at(archive, code, tmp_path):
    (code / "linked.py").symlink_to(code / "inference.py")
    (code / "twice.py").hardlink_to(code / "inference.py")
    packing.repack(archive, code, tmp_path / "out.tar.gz")
    with tarfile.open(tmp_path / "out.tar.gz") as tar:
        assert all(member.isreg() for member in tar.getmembers())
        assert tar.extractfile("code/linked.py").read() == tar.extractfile("code/twice.py").read() == b"new"


def in_the_middle(whole):
    """Bits of the deflate stream flipped; the gzip header is sound."""
    return whole[:60] + bytes(255 - byte for byte in whole[60:-60]) + whole[-60:]


@pytest.mark.parametrize("damage", [lambda _: b"\x1f\x8bnope", in_the_middle, lambda whole: whole[: len(whole) // 2]])
def test_a_damaged_archive_is_named(code, tmp_path, damage):
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("weights.pt")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(random.Random(1).randbytes(info.size)))
    (tmp_path / "bad.tar.gz").write_bytes(damage((tmp_path / "good.tar.gz").read_bytes()))
    with pytest.raises(JobFailed, match=r"bad\.tar\.gz cannot be repacked"):
        packing.repack(tmp_path / "bad.tar.gz", code, tmp_path / "out.tar.gz")


def test_a_zip_is_told_from_a_damaged_archive(code, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.tar.gz", "w") as archive:
        archive.writestr("weights.pt", "x")
    with pytest.raises(JobFailed, match=r"^model\.tar\.gz cannot be repacked: .*; it is a zip: `tar czf"):
        packing.repack(tmp_path / "model.tar.gz", code, tmp_path / "out.tar.gz")


def test_code_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist or holds no files"):
        packing.code_digest(tmp_path / "nowhere")


def test_the_digest_changes_with_a_file_and_only_then(code):
    before = packing.code_digest(code)
    assert packing.code_digest(code) == before
    (code / "inference.py").write_text("newer")
    assert packing.code_digest(code) != before
