"""The life of a training job, seen by boto3."""

import time

import pytest
from botocore.exceptions import ClientError


def test_a_job_passes_through_the_services_states_and_leaves_artifacts(aws, training_request):
    job = aws.train(training_request(hosts=2))

    assert job["TrainingJobStatus"] == "Completed"
    states = [transition["Status"] for transition in job["SecondaryStatusTransitions"]]
    assert states == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all("EndTime" in transition for transition in job["SecondaryStatusTransitions"])
    assert job["TrainingStartTime"] <= job["TrainingEndTime"]
    assert job["BillableTimeInSeconds"] >= 1
    files = aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])
    assert files["weights-algo-1.bin"] == files["weights-algo-2.bin"] == "weights"
    assert files["shared.txt"] == "algo-1"  # written by both: the first host's is kept


def test_every_host_gets_its_own_configuration_and_the_platforms_variables(aws, training_request):
    request = training_request({"epochs": "3"}, hosts=2, Environment={"STAGE": "dev"})
    job = aws.train(request)

    for host in ("algo-1", "algo-2"):
        seen = aws.seen(job, host)
        assert seen["argv"] == ["train"]
        assert seen["resources"]["current_host"] == host
        assert seen["resources"]["hosts"] == ["algo-1", "algo-2"]
        assert seen["resources"]["network_interface_name"] == "lo"
        environ = seen["environ"]
        assert environ["TRAINING_JOB_NAME"] == request["TrainingJobName"]
        assert environ["TRAINING_JOB_ARN"] == job["TrainingJobArn"]
        assert environ["STAGE"] == "dev"
        assert environ["AWS_ENDPOINT_URL"] == aws.server.url
        assert "VIRTUAL_ENV" not in environ  # nothing of this shell
    first, second = (aws.seen(job, host)["environ"] for host in ("algo-1", "algo-2"))
    assert first["SLIPWAY_MASTER_PORT"] == second["SLIPWAY_MASTER_PORT"]
    assert first["SAGEMAKER_BASE_DIR"] != second["SAGEMAKER_BASE_DIR"]


def test_network_isolation_leaves_no_credentials(aws, training_request):
    environ = aws.seen(aws.train(training_request(EnableNetworkIsolation=True)))["environ"]
    assert not [name for name in environ if name.startswith("AWS_") and name != "AWS_REGION"]


def test_channels_keep_relative_paths_and_shards_are_spread(aws, training_request, channel):
    for name in ("a.csv", "deep/b.csv", "deep/c.csv"):
        aws.put(f"channels/{name}", name.encode())
    aws.put("channels/deep/")  # what the console makes as a folder
    prefix = "s3://test-bucket/channels/"
    request = training_request(
        hosts=2,
        InputDataConfig=[
            channel(prefix, "all", ContentType="text/csv"),
            channel(prefix, "sharded", distribution="ShardedByS3Key", InputMode="FastFile"),
        ],
    )
    job = aws.train(request)

    first, second = aws.seen(job, "algo-1"), aws.seen(job, "algo-2")
    everything = {"a.csv": "a.csv", "deep/b.csv": "deep/b.csv", "deep/c.csv": "deep/c.csv"}
    for seen in (first, second):
        assert {k.removeprefix("all/"): v for k, v in seen["data"].items() if k.startswith("all/")} == everything
    assert [name for name in first["data"] if name.startswith("sharded/")] == ["sharded/a.csv", "sharded/deep/c.csv"]
    assert [name for name in second["data"] if name.startswith("sharded/")] == ["sharded/deep/b.csv"]
    assert first["inputs"]["all"]["ContentType"] == "text/csv"
    assert first["inputs"]["sharded"]["TrainingInputMode"] == "File"


def test_a_manifest_names_the_objects(aws, training_request, channel):
    aws.put("manifest-data/x/1.csv", b"1")
    aws.put("manifest-data/x/2.csv", b"2")
    uri = aws.put("manifest-data/m.json", b'[{"prefix": "s3://test-bucket/manifest-data/"}, "x/2.csv"]')
    job = aws.train(training_request(InputDataConfig=[channel(uri, kind="ManifestFile")]))
    assert aws.seen(job)["data"] == {"train/x/2.csv": "2"}


def test_a_broken_manifest_fails_the_job_and_shows_the_right_form(aws, training_request, channel):
    aws.put("broken-manifest/a.csv")
    uri = aws.put("broken-manifest/m.json", b'{"prefix": 1}')
    with pytest.raises(ClientError, match='is not a JSON list like .{"prefix"'):
        aws.train(training_request(InputDataConfig=[channel(uri, kind="ManifestFile")]))


def test_an_object_that_vanished_from_a_manifest_fails_the_job(aws, training_request, channel):
    uri = aws.put("gone/m.json", b'[{"prefix": "s3://test-bucket/gone/"}, "nothing.csv"]')
    job = aws.train(training_request(InputDataConfig=[channel(uri, kind="ManifestFile")]))
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"] == "ClientError: The specified key does not exist: s3://test-bucket/gone/nothing.csv"


def test_c43_the_failure_file_of_the_first_failing_host_is_the_reason(aws, training_request):
    request = training_request({"fail_host": "algo-2", "failure": "ValueError: labels 3..7", "sleep": "60"}, hosts=2)
    job = aws.train(request)
    assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Failed"
    assert job["FailureReason"] == "AlgorithmError: ValueError: labels 3..7, exit code: 3"
    assert "ModelArtifacts" not in job
    lines = aws.log_lines("/aws/sagemaker/TrainingJobs", request["TrainingJobName"])
    assert any("algo-1 got SIGTERM" in messages for messages in lines.values())  # the peer did not wait for ever


def test_a_failure_without_a_file_names_the_exit_code(aws, training_request):
    job = aws.train(training_request({"fail_host": "algo-1"}))
    assert job["FailureReason"] == "AlgorithmError: , exit code: 3"


def test_a_long_failure_text_is_cut_and_the_exit_code_stays(aws, training_request):
    job = aws.train(training_request({"fail_host": "algo-1", "failure": "é" * 1000}))
    assert len(job["FailureReason"].encode()) <= 1024
    assert job["FailureReason"].endswith("é, exit code: 3")


def test_a_killed_host_reports_128_plus_the_signal(aws, training_request):
    assert aws.train(training_request({"kill": "1"}))["FailureReason"] == "AlgorithmError: , exit code: 137"


def test_stop_sends_sigterm_and_keeps_the_model(aws, training_request):
    request = training_request({"sleep": "60"}, hosts=2)
    aws.train(request, wait=False)
    name = request["TrainingJobName"]
    aws.wait_for(lambda: aws.log_lines("/aws/sagemaker/TrainingJobs", name), lambda streams: len(streams) == 2)
    aws.wait_for(
        lambda: aws.log_lines("/aws/sagemaker/TrainingJobs", name),
        lambda streams: all("hello" in "".join(messages) for messages in streams.values()),
    )
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    job = aws.finished("training", name)
    assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Stopped"
    assert "Stopping" in [transition["Status"] for transition in job["SecondaryStatusTransitions"]]
    assert "stopped.txt" in aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])
    assert "FailureReason" not in job


def test_a_job_over_its_runtime_is_stopped_as_max_runtime_exceeded(aws, training_request):
    job = aws.train(training_request({"sleep": "60"}, StoppingCondition={"MaxRuntimeInSeconds": 1}))
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_a_stopped_job_cannot_be_stopped_again(aws, training_request):
    job = aws.train(training_request())
    with pytest.raises(ClientError, match="the training job is in status Completed"):
        aws.sagemaker.stop_training_job(TrainingJobName=job["TrainingJobName"])


def test_final_metrics_come_from_the_log_lines_and_reach_cloudwatch(aws, training_request):
    lines = '["loss=0.5; acc=0.1", "loss=nan;", "loss=-2.5e-1;", "x loss=foo;"]'
    algorithm = {
        "TrainingImage": "x",
        "TrainingInputMode": "File",
        "MetricDefinitions": [
            {"Name": "loss", "Regex": r"loss=([^;]+);"},
            {"Name": "accuracy", "Regex": r"acc=([0-9.]+)"},
            {"Name": "never", "Regex": r"never=([0-9.]+)"},
        ],
    }
    job = aws.train(training_request({"lines": lines}, AlgorithmSpecification=algorithm))
    final = {metric["MetricName"]: metric["Value"] for metric in job["FinalMetricDataList"]}
    assert final == {"loss": -0.25, "accuracy": 0.1}
    answer = aws.client("cloudwatch").get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricName="loss",
        Dimensions=[{"Name": "TrainingJobName", "Value": job["TrainingJobName"]}],
        StartTime=time.time() - 600,
        EndTime=time.time() + 600,
        Period=3600,
        Statistics=["SampleCount", "Minimum"],
    )
    assert sum(point["SampleCount"] for point in answer["Datapoints"]) == 2
    assert min(point["Minimum"] for point in answer["Datapoints"]) == -0.25


def test_log_streams_have_the_services_names_and_lie_as_files(aws, training_request):
    request = training_request({"lines": '["one", "zwei Wörter"]'}, hosts=2)
    aws.train(request)
    name = request["TrainingJobName"]
    streams = aws.log_lines("/aws/sagemaker/TrainingJobs", f"{name}/algo-")
    assert sorted(stream.rpartition("-")[0] for stream in streams) == [f"{name}/algo-1", f"{name}/algo-2"]
    for stream, messages in streams.items():
        assert messages[1:3] == ["one", "zwei Wörter"]
        file = aws.server.home / "logs/aws/sagemaker/TrainingJobs" / f"{stream}.log"
        assert "zwei Wörter" in file.read_text()


def test_c55_checkpoints_are_restored_synced_and_deleted(aws, training_request):
    aws.put("checkpoints/1/epoch-0", b"old")
    config = {"S3Uri": "s3://test-bucket/checkpoints/1"}
    names = '["epoch-1", "epoch-2", "epoch-3"]'
    request = training_request(
        {"checkpoints": names, "checkpoint_seconds": "1.2", "rotate": "1", "sleep": "60"}, CheckpointConfig=config
    )
    aws.train(request, wait=False)
    aws.wait_for(lambda: aws.keys("checkpoints/1/"), lambda keys: "epoch-0" not in keys)  # while it runs
    aws.wait_for(lambda: aws.keys("checkpoints/1/"), lambda keys: keys == ["epoch-3"])
    aws.sagemaker.stop_training_job(TrainingJobName=request["TrainingJobName"])
    job = aws.finished("training", request["TrainingJobName"])
    assert aws.keys("checkpoints/1/") == ["epoch-3"]

    again = aws.train(training_request(CheckpointConfig=config, hosts=2))
    assert job["TrainingJobStatus"] == "Stopped"
    assert [aws.seen(again, host)["checkpoints"] for host in ("algo-1", "algo-2")] == [["epoch-3"]] * 2


def test_without_checkpoint_config_there_is_no_directory(aws, training_request):
    assert aws.seen(aws.train(training_request()))["checkpoints"] is None


def test_uncompressed_output_lies_as_single_objects(aws, training_request):
    output = {"S3OutputPath": "s3://test-bucket/raw", "CompressionType": "NONE"}
    job = aws.train(training_request(OutputDataConfig=output))
    prefix = f"raw/{job['TrainingJobName']}/output/model/"
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://test-bucket/{prefix}"
    assert aws.keys(prefix) == ["shared.txt", "weights-algo-1.bin"]


def test_container_arguments_replace_train(aws, training_request):
    algorithm = {"TrainingImage": "x", "TrainingInputMode": "File", "ContainerArguments": ["train", "--fast"]}
    assert aws.seen(aws.train(training_request(AlgorithmSpecification=algorithm)))["argv"] == ["train", "--fast"]


def test_a_container_entrypoint_runs_alone_with_opt_ml_moved(aws, training_request):
    algorithm = {
        "TrainingImage": "x",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["/bin/sh", "-c"],
        "ContainerArguments": ["cat /opt/ml/input/config/resourceconfig.json > /opt/ml/model/seen.json"],
    }
    job = aws.train(training_request(AlgorithmSpecification=algorithm))
    assert "algo-1" in aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])["seen.json"]


def test_an_entrypoint_that_does_not_exist_fails_the_job(aws, training_request):
    algorithm = {"TrainingImage": "x", "TrainingInputMode": "File", "ContainerEntrypoint": ["/no/such/program"]}
    job = aws.train(training_request(AlgorithmSpecification=algorithm))
    assert job["FailureReason"] == "ClientError: /no/such/program: No such file or directory"


def test_no_process_outlives_its_container(aws, training_request):
    from launcher.local.process_containers import processes_below

    request = training_request({"grandchild": "1"})
    aws.train(request)
    directory = aws.server.home / "jobs/training-job" / request["TrainingJobName"]
    aws.wait_for(lambda: list(processes_below(directory)), lambda ids: not ids)
    aws.wait_for(directory.exists, lambda is_there: not is_there)


def test_a_spot_interruption_restarts_the_job_with_its_checkpoints(aws, training_request):
    from launcher.local import client

    request = training_request(
        {"checkpoints": '["epoch-1"]', "sleep": "2.5"},
        CheckpointConfig={"S3Uri": "s3://test-bucket/checkpoints/spot"},
        EnableManagedSpotTraining=True,
        StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
    )
    aws.train(request, wait=False)
    aws.wait_for(lambda: aws.keys("checkpoints/spot/"), lambda keys: keys == ["epoch-1"])
    client.interrupt(aws.server.home, request["TrainingJobName"])
    job = aws.finished("training", request["TrainingJobName"])
    states = [transition["Status"] for transition in job["SecondaryStatusTransitions"]]
    assert states == [
        "Starting", "Downloading", "Training", "Interrupted",
        "Starting", "Downloading", "Training", "Uploading", "Completed",
    ]  # fmt: skip
    assert aws.seen(job)["checkpoints"] == ["epoch-1"]


def test_interrupting_a_job_that_does_not_run_says_so(aws):
    from launcher.local import client

    with pytest.raises(client.LocalServerError, match="No training job 'nothing' is running"):
        client.interrupt(aws.server.home, "nothing")


def test_fifty_jobs_at_once_are_queued_and_none_is_lost(aws, training_request):
    requests = [training_request() for _ in range(50)]
    for request in requests:
        aws.train(request, wait=False)
    jobs = [aws.finished("training", request["TrainingJobName"]) for request in requests]
    assert {job["TrainingJobStatus"] for job in jobs} == {"Completed"}


def test_a_queued_job_can_be_stopped(own_server, training_request):
    aws = own_server(SLIPWAY_LOCAL_JOBS="1")
    first, second = training_request({"sleep": "60"}), training_request()
    aws.train(first, wait=False)
    aws.train(second, wait=False)
    aws.sagemaker.stop_training_job(TrainingJobName=second["TrainingJobName"])
    aws.sagemaker.stop_training_job(TrainingJobName=first["TrainingJobName"])
    job = aws.finished("training", second["TrainingJobName"])
    assert job["TrainingJobStatus"] == "Stopped"
    assert "ModelArtifacts" not in job


def piped(aws, job):
    files = aws.unpack(job["ModelArtifacts"]["S3ModelArtifacts"])
    return {name: bytes.fromhex(text) for name, text in files.items() if name.startswith("epoch-")}


def test_c35_a_pipe_channel_is_a_fifo_per_epoch(aws, training_request, channel):
    aws.put("piped/1", b"one;")
    aws.put("piped/2", b"x" * 200_000)  # more than a pipe holds
    request = training_request(
        {"pipe_epochs": "3"}, InputDataConfig=[channel("s3://test-bucket/piped/", "piped", InputMode="Pipe")]
    )
    job = aws.train(request)
    assert job["TrainingJobStatus"] == "Completed", job
    assert piped(aws, job) == {f"epoch-{epoch}": b"one;" + b"x" * 200_000 for epoch in range(3)}
    assert aws.seen(job)["inputs"]["piped"]["TrainingInputMode"] == "Pipe"
    assert aws.seen(job)["data"] == {}


def test_c36_a_pipe_channel_unpacks_and_frames_what_it_is_told_to(aws, training_request, channel):
    import gzip
    import struct

    for name in (b"a", b"bcd"):
        aws.put(f"framed/{name.decode()}", gzip.compress(name))
    options = {"InputMode": "Pipe", "CompressionType": "Gzip", "RecordWrapperType": "RecordIO"}
    job = aws.train(
        training_request(
            {"pipe_epochs": "1"}, InputDataConfig=[channel("s3://test-bucket/framed/", "piped", **options)]
        )
    )
    records = [struct.pack("<II", 0xCED7230A, len(body)) + body + b"\0" * (4 - len(body)) for body in (b"a", b"bcd")]
    assert piped(aws, job) == {"epoch-0": b"".join(records)}


def test_c38_a_reader_that_closes_early_gets_the_next_epoch_from_its_start(aws, training_request, channel):
    aws.put("early/1", b"abcdef" * 100_000)
    request = training_request(
        {"pipe_epochs": "2", "pipe_bytes": "6"},
        InputDataConfig=[channel("s3://test-bucket/early/", "piped", InputMode="Pipe")],
    )
    assert piped(aws, aws.train(request)) == {"epoch-0": b"abcdef", "epoch-1": b"abcdef"}


def test_a_pipe_that_nobody_reads_does_not_keep_a_job(aws, training_request, channel):
    aws.put("unread/1", b"x")
    request = training_request(InputDataConfig=[channel("s3://test-bucket/unread/", "piped", InputMode="Pipe")])
    assert aws.train(request)["TrainingJobStatus"] == "Completed"
