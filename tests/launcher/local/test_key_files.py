"""S3 keys as files: one to one, whatever the key."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.local.key_files import KeyFiles, key_of, relative_path

KEYS = st.text(st.sampled_from("ab.%/~é \0\n"), min_size=1, max_size=12) | st.text(min_size=1, max_size=700).filter(
    lambda text: text.isprintable()
)


@given(KEYS)
def test_every_key_has_a_path_below_its_folder_from_which_it_is_found_again(key):
    path = relative_path(key)
    assert not path.is_absolute()
    assert not {"", ".", ".."} & set(path.parts)
    assert all(len(part.encode()) <= 255 for part in path.parts)
    assert key_of(path) == key


@pytest.mark.parametrize(
    ("key", "path"), [("data/a b.csv", "data/a b.csv"), ("x/", "x/%"), ("../x", "%%2E%2E/x"), ("50%", "50%25")]
)
def test_ordinary_keys_are_readable_and_odd_ones_safe(key, path):
    assert relative_path(key) == PurePosixPath(path)


@pytest.mark.parametrize("keys", [("a", "a/b", "a/b/c"), ("a/b/c", "a/b", "a"), ("a", "a/", "a//b")])
def test_a_key_may_be_a_file_and_a_folder(tmp_path, keys):
    files = KeyFiles(tmp_path / "bucket")
    for key in keys:
        files.write(key, key.encode())
    assert {key: path.read_bytes() for key, path in files.items()} == {key: key.encode() for key in keys}
    for key in keys:
        assert files.read(key) == key.encode()
        files.write(key, b"new")
        assert files.read(key) == b"new"
    for key in keys:
        files.remove(key)
        assert files.read(key) is None
    assert list((tmp_path / "bucket").rglob("*")) == []


def test_a_half_written_file_is_no_key(tmp_path):
    files = KeyFiles(tmp_path)
    files.write("a", b"x")
    (tmp_path / "%tmp").write_bytes(b"half")
    assert [key for key, _ in files.items()] == ["a"]
