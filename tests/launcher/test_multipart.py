"""A large file goes up in parts, and an upload that broke off is gone on with."""

import hashlib
import os

import boto3
import pytest

from launcher import data, multipart
from launcher.checksum import PART_BYTES, digest, part_bytes
from launcher.errors import AwsRefused

URI = "s3://bucket/large"


@pytest.fixture
def bucket(aws):
    boto3.client("s3").create_bucket(Bucket="bucket")  # not by `aws`, whose client is made when all listeners are there
    return aws


@pytest.fixture
def large(tmp_path):
    """Three whole parts, each different, and a short one."""
    path = tmp_path / "large"
    path.write_bytes(b"".join(bytes([number]) * PART_BYTES for number in range(3)) + b"end")
    return path


@pytest.fixture
def break_off(bucket):
    """S3 refuses one part, once."""
    waiting = []

    def refuse(params, **_):
        if params["PartNumber"] in waiting:
            waiting.remove(params["PartNumber"])
            raise OSError("the network is down")

    bucket.session.events.register("provide-client-params.s3.UploadPart", refuse)
    return waiting.append


def parts_sent(sent):
    return sorted(request["PartNumber"] for operation, request in sent if operation == "UploadPart")


def content(aws):
    return aws.call("s3", "GetObject", Bucket="bucket", Key="large")["Body"].read()


def test_an_upload_that_broke_off_goes_on_with_the_parts_that_are_there(bucket, large, break_off, sent):
    break_off(3)
    with pytest.raises(OSError, match="the network is down"):
        data.upload(bucket, large, URI)
    there = [
        part["PartNumber"]
        for upload in bucket.call("s3", "ListMultipartUploads", Bucket="bucket")["Uploads"]
        for part in bucket.call("s3", "ListParts", Bucket="bucket", Key="large", UploadId=upload["UploadId"])["Parts"]
    ]
    assert 3 not in there
    sent.clear()
    again = data.upload(bucket, large, URI)
    assert parts_sent(sent) == [number for number in (1, 2, 3, 4) if number not in there]
    assert "CreateMultipartUpload" not in [operation for operation, _ in sent]
    assert (again.files, content(bucket) == large.read_bytes()) == (1, True)
    assert data.upload(bucket, large, URI).skipped == 1
    assert "Uploads" not in bucket.call("s3", "ListMultipartUploads", Bucket="bucket")


def test_parts_of_another_file_travel_again(bucket, large, break_off, sent):
    break_off(4)
    with pytest.raises(OSError, match="the network is down"):
        data.upload(bucket, large, URI)
    changed = large.read_bytes()
    large.write_bytes(b"x" + changed[1:])
    sent.clear()
    data.upload(bucket, large, URI)
    assert 1 in parts_sent(sent)
    assert content(bucket) == large.read_bytes()


def test_a_shorter_file_leaves_no_part_of_the_longer_one(bucket, large, break_off):
    break_off(1)
    with pytest.raises(OSError, match="the network is down"):
        data.upload(bucket, large, URI)
    large.write_bytes(large.read_bytes()[: PART_BYTES + 5])
    data.upload(bucket, large, URI)
    assert content(bucket) == large.read_bytes()


def test_progress_counts_the_resumed_part_of_the_file(bucket, large, break_off):
    class Counter(data.Silent):
        done = 0

        def advance(self, count_bytes):
            self.done += count_bytes

    break_off(2)
    with pytest.raises(OSError, match="the network is down"):
        data.upload(bucket, large, URI)
    counter = Counter()
    data.upload(bucket, large, URI, counter)
    assert counter.done == large.stat().st_size


def test_a_caller_who_may_not_look_for_unfinished_uploads_begins_anew(bucket, large, canned, sent):
    canned("ListMultipartUploads", {"Error": {"Code": "AccessDenied", "Message": "no"}}, service="s3")
    data.upload(bucket, large, URI)
    assert parts_sent(sent) == [1, 2, 3, 4]
    assert content(bucket) == large.read_bytes()


def test_another_refusal_of_that_look_is_told(bucket, large, canned):
    canned("ListMultipartUploads", {"Error": {"Code": "NoSuchBucket", "Message": "no"}}, service="s3")
    with pytest.raises(AwsRefused, match="ListMultipartUploads was refused: NoSuchBucket"):
        data.upload(bucket, large, URI)


def test_a_file_that_changes_while_it_travels_is_told(bucket, large):
    client = bucket.client("s3")
    upload = multipart.MultipartUpload.begin(client, "bucket", "large", large)
    large.write_bytes(b"y" * large.stat().st_size)
    for number in upload.missing():
        upload.send(number)
    with pytest.raises(AwsRefused, match=r"large was changed while it travelled to s3://bucket/large; upload it again"):
        upload.finish()


def test_two_launchers_may_finish_the_same_upload(bucket, large):
    client = bucket.client("s3")
    first = multipart.MultipartUpload.begin(client, "bucket", "large", large)
    for number in first.missing():
        first.send(number)
    second = multipart.MultipartUpload.begin(client, "bucket", "large", large)
    assert second.missing() == []
    first.finish()
    second.finish()
    assert content(bucket) == large.read_bytes()


def test_a_refused_completion_is_told(bucket, large, canned):
    canned("CompleteMultipartUpload", {"Error": {"Code": "AccessDenied", "Message": "no"}}, service="s3")
    with pytest.raises(AwsRefused, match="AccessDenied"):
        data.upload(bucket, large, URI)


@pytest.mark.parametrize(
    ("size", "length"),
    [(PART_BYTES, PART_BYTES), (10_000 * PART_BYTES, PART_BYTES), (10_000 * PART_BYTES + 1, 2 * PART_BYTES)],
)
def test_a_huge_file_has_larger_parts_not_more(size, length):
    assert part_bytes(size) == length


def test_the_digest_is_the_etag_that_s3_gives(tmp_path):
    small, two = tmp_path / "small", tmp_path / "two"
    small.write_bytes(b"abc")
    two.write_bytes(os.urandom(PART_BYTES + 1))
    assert digest(small).etag == hashlib.md5(b"abc").hexdigest()
    body = two.read_bytes()
    halves = hashlib.md5(body[:PART_BYTES]).digest() + hashlib.md5(body[PART_BYTES:]).digest()
    assert digest(two).etag == f"{hashlib.md5(halves).hexdigest()}-2"
