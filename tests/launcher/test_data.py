"""Files travel in parallel, and only those that are not there yet."""

import io
import tarfile

import pytest

from launcher import data, multipart
from launcher.aws import Aws
from launcher.errors import AwsRefused, ConfigError, JobFailed

LARGE = b"x" * (data.PART_BYTES + 5)


@pytest.fixture
def bucket(aws):
    aws.ensure_bucket("bucket")
    return aws


class Counter(data.Silent):
    def __init__(self):
        self.total, self.done = 0, 0

    def start(self, title, total_bytes):
        self.total = total_bytes

    def advance(self, count_bytes):
        self.done += count_bytes


def tree(directory, files):
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def keys(aws):
    return sorted(item["Key"] for item in data.objects(aws, "s3://bucket"))


def test_a_directory_becomes_a_prefix_and_comes_back_the_same(bucket, tmp_path):
    source = tree(tmp_path / "in", {"a/1.png": b"one", "b/2.png": b"two", "b/__pycache__/x.pyc": b"no"})
    progress = Counter()
    sent = data.upload(bucket, source, "s3://bucket/p/", progress)
    assert (sent.files, sent.bytes, sent.skipped) == (2, 6, 0)
    assert progress.done == progress.total == 6
    assert keys(bucket) == ["p/a/1.png", "p/b/2.png"]
    got = data.download(bucket, "s3://bucket/p/", tmp_path / "out")
    assert got.files == 2
    assert (tmp_path / "out" / "b" / "2.png").read_bytes() == b"two"


def test_a_second_upload_sends_what_changed_and_removes_what_is_gone(bucket, tmp_path):
    source = tree(tmp_path / "in", {"same": b"same", "changed": b"old", "gone": b"x"})
    data.upload(bucket, source, "s3://bucket/p/")
    (source / "gone").unlink()
    tree(source, {"changed": b"new"})
    again = data.upload(bucket, source, "s3://bucket/p/")
    assert (again.files, again.skipped, again.removed) == (1, 1, 1)
    assert keys(bucket) == ["p/changed", "p/same"]


def test_a_large_file_is_recognised_by_its_parts(bucket, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(b"x" * (2 * data.PART_BYTES + 5))
    assert data.upload(bucket, large, "s3://bucket/large").files == 1
    assert data.upload(bucket, large, "s3://bucket/large").skipped == 1
    data.download(bucket, "s3://bucket/large", tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == large.read_bytes()
    assert data.stored(bucket, "s3://bucket/large").bytes == large.stat().st_size


@pytest.fixture
def under_a_key(bucket):
    """S3 as it answers of objects under a KMS key: their ETags are no MD5."""

    def foreign(parsed, **_):
        for item in [parsed, *parsed.get("Contents", [])]:
            if "ETag" in item:
                item["ETag"] = '"0123456789abcdef0123456789abcdef"'
                item["ServerSideEncryption"] = "aws:kms"
        if parsed.get("ContentLength") == len(LARGE):
            parsed["ChecksumCRC32"] += "-2"

    for operation in ("ListObjectsV2", "HeadObject", "PutObject", "CompleteMultipartUpload"):
        bucket.session.events.register(f"after-call.s3.{operation}", foreign)
    return Aws(bucket.region, bucket.session)


def test_under_a_kms_key_files_are_recognised_by_their_checksum(bucket, under_a_key, tmp_path):
    source = tree(tmp_path / "in", {"same": b"same", "changed": b"old", "empty": b"", "large": LARGE})
    first = data.upload(under_a_key, source, "s3://bucket/p/")
    assert (first.files, data.upload(under_a_key, source, "s3://bucket/p/").skipped) == (4, 4)
    tree(source, {"changed": b"new", "large": b"y" + LARGE[1:]})
    again = data.upload(under_a_key, source, "s3://bucket/p/")
    assert (again.files, again.skipped) == (2, 2)
    assert again.digest != first.digest
    assert data.upload(bucket, source, "s3://bucket/q/").digest == again.digest


def test_what_is_new_is_not_hashed_before_it_is_sent(bucket, tmp_path, monkeypatch):
    source = tree(tmp_path / "in", {"small": b"one", "large": LARGE})
    with monkeypatch.context() as patch:
        patch.setattr(data, "digest", None)
        patch.setattr(multipart, "digest", None)
        sent = data.upload(bucket, source, "s3://bucket/p/")
    assert sent.digest == data.upload(bucket, source, "s3://bucket/p/").digest


def test_what_is_not_there_has_no_size(bucket):
    assert data.stored(bucket, "s3://bucket/nothing") is None


def test_a_source_that_is_missing_or_empty_is_refused(bucket, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        data.upload(bucket, tmp_path / "nowhere", "s3://bucket/p/")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no files"):
        data.upload(bucket, tmp_path / "empty", "s3://bucket/p/")


def test_a_bucket_that_is_missing_is_refused(bucket, tmp_path):
    with pytest.raises(AwsRefused, match="NoSuchBucket"):
        data.upload(bucket, tree(tmp_path / "in", {"a": b"a"}), "s3://elsewhere/p/")


def test_a_failing_upload_of_a_large_file_is_told_in_one_line(aws, canned, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(b"x" * (data.PART_BYTES + 1))
    canned("CreateMultipartUpload", {"Error": {"Code": "AccessDenied", "Message": "no"}}, service="s3")
    aws.ensure_bucket("bucket")
    with pytest.raises(AwsRefused, match="AccessDenied"):
        data.upload(aws, large, "s3://bucket/large")


def test_an_object_that_would_leave_the_directory_is_refused(bucket, tmp_path):
    bucket.call("s3", "PutObject", Bucket="bucket", Key="p/../../evil", Body=b"x")
    with pytest.raises(AwsRefused, match="would be written outside"):
        data.download(bucket, "s3://bucket/p/", tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_unpacked(tmp_path):
    names = data.unpack(archive(tmp_path / "a.tar.gz", {"model.json": b"{}"}), tmp_path / "out")
    assert names == ["model.json"]
    assert (tmp_path / "out" / "model.json").read_bytes() == b"{}"


def test_an_archive_that_climbs_out_is_refused(tmp_path):
    with pytest.raises(JobFailed, match="cannot be unpacked"):
        data.unpack(archive(tmp_path / "a.tar.gz", {"../evil": b"x"}), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8bnot really")
    with pytest.raises(JobFailed, match="cannot be unpacked"):
        data.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
