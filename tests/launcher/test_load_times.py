"""What this machine has measured of models is kept, and read again."""

import pytest

from launcher import load_times
from launcher.errors import ConfigError
from launcher.jobs.model import Measured

MEASURED = Measured(4.5, 1.5, "deploy --probe, 2026-11-21")


def test_what_was_noted_is_known_again_under_the_archives_content(tmp_path):
    load_times.note(tmp_path / "home", "etag", load_times.Entry(MEASURED, {"MaxPayloadInMB": 6}))
    assert load_times.known(tmp_path / "home", "etag") == load_times.Entry(MEASURED, {"MaxPayloadInMB": 6})
    assert load_times.known(tmp_path / "home", "other") is None
    assert load_times.known(tmp_path / "nowhere", "etag") is None


def test_a_later_measurement_counts_and_an_answer_stays(tmp_path):
    load_times.note(tmp_path, "etag", load_times.Entry(MEASURED, {"MaxPayloadInMB": 6}))
    load_times.note(tmp_path, "etag", load_times.Entry(Measured(9.0, 0.0, "deploy --local")))
    found = load_times.known(tmp_path, "etag")
    assert found.measured.load_seconds == 9
    assert found.execution_parameters == {"MaxPayloadInMB": 6}


@pytest.mark.parametrize("text", ["no", "[1]", '{"etag": {}}', '{"etag": {"load_seconds": "long"}}'])
def test_a_damaged_file_is_named(text, tmp_path):
    (tmp_path / load_times.FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"load-times.json cannot be read .*; remove it"):
        load_times.known(tmp_path, "etag")


def test_a_write_that_fails_leaves_what_was_known(tmp_path, monkeypatch):
    load_times.note(tmp_path, "etag", load_times.Entry(MEASURED))

    def full(path, text):
        path.open("w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        load_times.note(tmp_path, "other", load_times.Entry(MEASURED))
    assert load_times.known(tmp_path, "etag") == load_times.Entry(MEASURED)
