"""Channels that are more than a prefix: augmented manifests, shuffled pipes, file systems; and what is refused."""

import json
import re
import struct

import pytest
from botocore.exceptions import ClientError

ATTRIBUTES = ["source-ref", "class", "box"]
FILE_SYSTEM = "fs-0123456789abcdef0"


def records(stream):
    """The payloads of a RecordIO stream."""
    found, position = [], 0
    while position < len(stream):
        magic, length = struct.unpack_from("<II", stream, position)
        assert magic == 0xCED7230A
        found.append(stream[position + 8 : position + 8 + length])
        position += 8 + length + -length % 4
    return found


def epochs(aws, job):
    assert job["TrainingJobStatus"] == "Completed", job
    files = aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])
    return [bytes.fromhex(files[f"epoch-{epoch}"]) for epoch in range(len(files)) if f"epoch-{epoch}" in files]


@pytest.fixture
def manifest(aws, channel):
    """Uploads an augmented manifest with an image per line; the channel that reads it."""

    def make(lines, **members):
        for number in range(4):
            aws.put(f"augmented/{number}.png", b"image %d" % number)
        uri = aws.put("augmented/train.manifest", "\n".join(lines).encode())
        made = channel(
            uri, "piped", "AugmentedManifestFile", **{"InputMode": "Pipe", "RecordWrapperType": "RecordIO", **members}
        )
        made["DataSource"]["S3DataSource"]["AttributeNames"] = ATTRIBUTES
        return made

    return make


def line(number):
    return json.dumps(
        {
            "source-ref": f"s3://test-bucket/augmented/{number}.png",
            "class": number,
            "box": {"x": 1},
            "other": "left out",
        }
    )


def test_an_augmented_manifest_streams_the_attributes_of_each_line_in_their_order(aws, training_request, manifest):
    job = aws.train(training_request({"pipe_epochs": "1"}, InputDataConfig=[manifest([line(0), "", line(1)])]))
    (stream,) = epochs(aws, job)
    assert records(stream) == [b"image 0", b"0", b'{"x": 1}', b"image 1", b"1", b'{"x": 1}']


def test_a_shuffled_manifest_keeps_each_lines_attributes_together(aws, training_request, manifest):
    shuffled = manifest([line(number) for number in range(4)], ShuffleConfig={"Seed": 3})
    job = aws.train(training_request({"pipe_epochs": "4"}, InputDataConfig=[shuffled]))
    orders = []
    for stream in epochs(aws, job):
        found = records(stream)
        samples = [tuple(found[start : start + 3]) for start in range(0, len(found), 3)]
        assert sorted(samples) == [(b"image %d" % n, b"%d" % n, b'{"x": 1}') for n in range(4)]
        orders.append(tuple(label for _, label, _ in samples))
    assert len(set(orders)) > 1  # four epochs in the same order: one in 13824


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            "no json",
            "Line 2 of the manifest s3://test-bucket/augmented/train.manifest is no JSON object with source-ref",
        ),
        ('{"class": 1}', "Line 2 of the manifest .* KeyError"),
        ("[1]", "Line 2 of the manifest .* TypeError"),
        (line(9), "The specified key does not exist: s3://test-bucket/augmented/9.png"),
    ],
)
def test_a_manifest_with_a_bad_line_fails_the_job_before_it_trains(aws, training_request, manifest, bad, reason):
    job = aws.train(training_request({"pipe_epochs": "1"}, InputDataConfig=[manifest([line(0), bad])]))
    assert job["TrainingJobStatus"] == "Failed"
    assert re.search(reason, job["FailureReason"]), job["FailureReason"]


def refused(aws, request):
    with pytest.raises(ClientError) as caught:
        aws.train(request)
    return caught.value.response["Error"]["Message"]


def test_an_augmented_manifest_needs_a_pipe_and_names(aws, training_request, manifest):
    as_file = manifest([line(0)], InputMode="File", RecordWrapperType="None")
    assert "is for Pipe mode only" in refused(aws, training_request(InputDataConfig=[as_file]))
    nameless = manifest([line(0)])
    del nameless["DataSource"]["S3DataSource"]["AttributeNames"]
    assert "needs AttributeNames" in refused(aws, training_request(InputDataConfig=[nameless]))


# --- file systems -----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_file_system():
    def make(directory="/data", access="ro", **members):
        source = {
            "FileSystemId": FILE_SYSTEM,
            "FileSystemType": "EFS",
            "FileSystemAccessMode": access,
            "DirectoryPath": directory,
        }
        return {"ChannelName": "train", "DataSource": {"FileSystemDataSource": source}, **members}

    return make


@pytest.fixture
def mounted(aws, tmp_path):
    """A directory of this machine stands for the file system."""
    (tmp_path / "efs" / "data").mkdir(parents=True)
    (tmp_path / "efs" / "data" / "a.csv").write_text("1,2")
    link = aws.server.home / "file-systems" / FILE_SYSTEM
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "efs")
    yield tmp_path / "efs"
    link.unlink()


def test_a_directory_of_this_machine_stands_for_a_file_system(aws, training_request, on_file_system, mounted):
    job = aws.train(training_request(InputDataConfig=[on_file_system()], hosts=2))
    assert job["TrainingJobStatus"] == "Completed", job
    for host in ("algo-1", "algo-2"):
        assert aws.seen(job, host)["inputs"]["train"]["TrainingInputMode"] == "File"
        assert aws.seen(job, host)["data"] == {"train/a.csv": "1,2"}
    assert (mounted / "data" / "a.csv").read_text() == "1,2"  # nothing of it was removed with the job


def test_a_file_system_that_nothing_stands_for_is_refused_with_what_to_type(aws, training_request, on_file_system):
    message = refused(aws, training_request(InputDataConfig=[on_file_system()]))
    assert f"nothing stands for {FILE_SYSTEM}:/data on this machine" in message
    assert f"ln -s DIRECTORY {aws.server.home}/file-systems/{FILE_SYSTEM}" in message


def test_a_file_system_is_not_streamed(aws, training_request, on_file_system):
    message = refused(aws, training_request(InputDataConfig=[on_file_system(InputMode="FastFile")]))
    assert "a file system is for File mode only, not FastFile" in message


def test_another_kind_of_data_is_refused_by_name(aws, training_request, channel):
    uri = aws.put("kinds/a")
    message = refused(aws, training_request(InputDataConfig=[channel(uri, kind="Converse")]))
    assert "not Converse" in message


# --- machines ---------------------------------------------------------------------------------------------------------


def preferences(*items, **members):
    return {"InstancePreferences": list(items), "VolumeSizeInGB": 1, **members}


G5, G6 = {"InstanceType": "ml.g5.xlarge"}, {"InstanceType": "ml.g6.xlarge"}


def test_of_several_preferred_types_one_is_selected_and_told(aws, training_request):
    job = aws.train(training_request(ResourceConfig=preferences(G5, G6, InstanceCount=2)))
    assert job["ResourceConfig"]["SelectedInstanceType"] == "ml.g5.xlarge"
    assert job["ResourceConfig"]["SelectedInstanceCount"] == 2
    seen = aws.seen(job, "algo-2")["resources"]
    assert seen["current_instance_type"] == "ml.g5.xlarge"
    assert seen["hosts"] == ["algo-1", "algo-2"]


def test_each_preferred_type_may_have_its_own_count(aws, training_request):
    job = aws.train(
        training_request(ResourceConfig=preferences({**G5, "InstanceCount": 2}, {**G6, "InstanceCount": 1}))
    )
    assert job["ResourceConfig"]["SelectedInstanceCount"] == 2


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"VolumeSizeInGB": 1}, "it has none of them"),
        (preferences(G5, InstanceType="ml.g5.xlarge", InstanceCount=1), "it has InstanceType and InstancePreferences"),
        (preferences(G5, G5, InstanceCount=1), "can appear only once"),
        (preferences(G5, {**G6, "InstanceCount": 1}), "must stand in every one of InstancePreferences"),
        (preferences(G5, G6), "must stand in every one of InstancePreferences"),
        (preferences({**G5, "InstanceCount": 1}, InstanceCount=1), "must stand in every one of InstancePreferences"),
    ],
)
def test_machines_that_contradict_each_other_are_refused(aws, training_request, resources, message):
    assert message in refused(aws, training_request(ResourceConfig=resources))


def test_preferences_are_not_for_spot(aws, training_request):
    request = training_request(
        ResourceConfig=preferences(G5, G6, InstanceCount=1),
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
    )
    assert "exclude each other" in refused(aws, request)


# --- another try ------------------------------------------------------------------------------------------------------


def test_a_killed_container_is_tried_again_with_its_checkpoints(aws, training_request):
    request = training_request(
        {"checkpoints": '["step-1"]', "kill_once": "step-1"},
        RetryStrategy={"MaximumRetryAttempts": 2},
        CheckpointConfig={"S3Uri": "s3://test-bucket/retried"},
    )
    job = aws.train(request)
    assert job["TrainingJobStatus"] == "Completed", job
    states = [transition["Status"] for transition in job["SecondaryStatusTransitions"]]
    assert states == ["Starting", "Downloading", "Training"] * 2 + ["Uploading", "Completed"]
    assert aws.seen(job)["checkpoints"] == ["step-1"]
    lines = aws.log_lines("/aws/sagemaker/TrainingJobs", f"{request['TrainingJobName']}/platform")
    assert any("was killed; trying again, 1 more times" in text for texts in lines.values() for text in texts)


def test_after_the_last_attempt_the_job_has_failed(aws, training_request):
    job = aws.train(training_request({"kill": "1"}, RetryStrategy={"MaximumRetryAttempts": 1}))
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].endswith("exit code: 137")
    assert [item["Status"] for item in job["SecondaryStatusTransitions"]].count("Training") == 2


def test_an_error_of_the_program_is_not_tried_again(aws, training_request):
    job = aws.train(training_request({"fail_host": "algo-1"}, RetryStrategy={"MaximumRetryAttempts": 2}))
    assert job["TrainingJobStatus"] == "Failed"
    assert [item["Status"] for item in job["SecondaryStatusTransitions"]].count("Training") == 1
