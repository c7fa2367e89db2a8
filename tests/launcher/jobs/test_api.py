"""Names and URIs."""

from datetime import datetime

import pytest

from launcher.jobs.api import content_name, s3_join, split_s3_uri, unique_name


def test_a_job_name_is_the_projects_and_the_time():
    assert unique_name("digits", datetime(2026, 1, 2, 3, 4, 5), "ab") == "digits-20260102-030405-ab"


def test_a_long_project_name_is_cut_to_the_limit():
    name = unique_name("a-" * 40, datetime(2026, 1, 2), "abcd")
    assert len(name) <= 63
    assert "--" not in name


def test_a_content_name_changes_with_the_content_only():
    assert content_name("a", {"x": 1, "y": 2}) == content_name("a", {"y": 2, "x": 1})
    assert content_name("a", {"x": 1}) != content_name("a", {"x": 2})


@pytest.mark.parametrize(
    ("parts", "uri"),
    [(("s3://b", "a", "c"), "s3://b/a/c"), (("s3://b/", "/a/", ""), "s3://b/a/"), (("s3://b",), "s3://b")],
)
def test_s3_uris_are_joined_with_one_slash(parts, uri):
    assert s3_join(*parts) == uri


def test_s3_uris_are_split():
    assert split_s3_uri("s3://b/a/c") == ("b", "a/c")
    assert split_s3_uri("s3://b") == ("b", "")
    with pytest.raises(ValueError, match="is not an S3 URI"):
        split_s3_uri("/tmp/x")
