"""Relative paths, shards, downloads and configuration files, without a server."""

import json

import pytest

from container.contract import OptMl
from launcher.local.artifacts import files_of, pack, unpack
from launcher.local.buckets import BucketError, parse_s3_uri
from launcher.local.errors import JobFailed
from launcher.local.inputs import InputObject, download, relative_to_prefix, shard
from launcher.local.opt_ml import write_training_input
from launcher.local.training_request import failure_reason, host_names, hosts_of_groups


@pytest.mark.parametrize(
    ("key", "prefix", "path"),
    [
        ("data/train/0/a.png", "data/train/", "0/a.png"),
        ("data/train/0/a.png", "data/train", "0/a.png"),
        ("data/train.csv", "data/train.csv", "train.csv"),
        ("data/train-1.csv", "data/train", "train-1.csv"),
        ("a.csv", "", "a.csv"),
    ],
)
def test_a_key_below_a_prefix_keeps_its_relative_path(key, prefix, path):
    assert relative_to_prefix(key, prefix) == path


def test_shards_are_disjoint_and_complete():
    objects = [InputObject("b", str(index), str(index)) for index in range(7)]
    shards = [shard(objects, index, 3, "ShardedByS3Key") for index in range(3)]
    assert sorted(item.key for part in shards for item in part) == [str(index) for index in range(7)]
    assert shard(objects, 1, 3, "FullyReplicated") == objects


class FakeBuckets:
    def read(self, bucket, key):
        return key.encode()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x"])
def test_no_object_leaves_its_channel(tmp_path, path):
    with pytest.raises(JobFailed, match="s3://b/key leaves its channel|lies outside its channel"):
        download(FakeBuckets(), [InputObject("b", "key", path)], tmp_path / "channel")


def test_a_key_that_is_a_file_and_a_folder_is_named(tmp_path):
    objects = [InputObject("b", "a", "a"), InputObject("b", "a/b", "a/b")]
    with pytest.raises(JobFailed, match="s3://b/a/b is a file and a folder at once"):
        download(FakeBuckets(), objects, tmp_path)


@pytest.mark.parametrize("uri", ["file:///x", "s3://", "bucket/key"])
def test_what_is_no_s3_uri_is_refused(uri):
    with pytest.raises(BucketError, match="is not an S3 URI like 's3://bucket/key'"):
        parse_s3_uri(uri)


def test_hosts_of_several_groups_are_numbered_through_and_channels_can_choose(tmp_path):
    groups = [
        {"InstanceGroupName": "trainers", "InstanceType": "ml.p4d.24xlarge", "InstanceCount": 2},
        {"InstanceGroupName": "loaders", "InstanceType": "ml.c6i.8xlarge", "InstanceCount": 1},
    ]
    request = {"ResourceConfig": {"InstanceGroups": groups, "VolumeSizeInGB": 1}}
    assert host_names(request) == ["algo-1", "algo-2", "algo-3"]
    assert hosts_of_groups(request, ["loaders"]) == ["algo-3"]
    assert hosts_of_groups(request, []) == ["algo-1", "algo-2", "algo-3"]
    write_training_input(OptMl(tmp_path), request, "algo-3", host_names(request))
    written = json.loads(OptMl(tmp_path).resource_config.read_text())
    assert written["current_group_name"] == "loaders"
    assert written["current_instance_type"] == "ml.c6i.8xlarge"
    assert [group["hosts"] for group in written["instance_groups"]] == [["algo-1", "algo-2"], ["algo-3"]]


def test_a_failure_reason_never_exceeds_its_limit():
    reason = failure_reason("ä" * 2000, 137)
    assert len(reason.encode()) <= 1024
    assert reason.startswith("AlgorithmError: ää")
    assert reason.endswith(", exit code: 137")


def test_archives_hold_what_all_hosts_wrote_and_unpack_again(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    for directory, names in ((first, ("a.txt", "deep/b.txt")), (second, ("a.txt", "c.txt"))):
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(f"{directory.name}/{name}")
    files, clashes = files_of([first, second])
    assert clashes == ["a.txt"]
    unpack(pack(files), tmp_path / "out", "s3://b/model.tar.gz")
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_text() for p in (tmp_path / "out").rglob("*.txt")}
    assert found == {"a.txt": "1/a.txt", "deep/b.txt": "1/deep/b.txt", "c.txt": "2/c.txt"}
