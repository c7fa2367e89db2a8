"""A job is followed the same way whatever its kind: statuses, merged logs, the outcome."""

import logging
import time
from datetime import UTC, datetime

import pytest

from launcher import run
from launcher.errors import AwsRefused, Detached, JobFailed, JobStopped, TimedOut

GROUP = "/aws/sagemaker/TrainingJobs"


def status(value, secondary=None, **rest):
    return {"TrainingJobName": "job", "TrainingJobStatus": value, "SecondaryStatus": secondary or value, **rest}


def no_sleep(_):
    pass


@pytest.fixture
def log(aws):
    """Writes lines into CloudWatch: (stream, milliseconds after now, text)."""
    aws.call("logs", "CreateLogGroup", logGroupName=GROUP)
    now = int(datetime.now(UTC).timestamp() * 1000)

    def write(stream, *lines):
        aws.call("logs", "CreateLogStream", logGroupName=GROUP, logStreamName=stream)
        events = [{"timestamp": now + offset, "message": text} for offset, text in lines]
        aws.call("logs", "PutLogEvents", logGroupName=GROUP, logStreamName=stream, logEvents=events)

    return write


def test_the_lines_of_all_hosts_are_merged_by_time(aws, log):
    log("job/algo-1-17", (0, "first"), (2, "third"))
    log("job/algo-2-17", (1, "second"))
    log("job-2/algo-1-18", (1, "another job's"))
    follower = run.LogFollower(aws, GROUP, "job/")
    assert [(line.host, line.message) for line in follower.read()] == [
        ("algo-1", "first"),
        ("algo-2", "second"),
        ("algo-1", "third"),
    ]
    assert follower.read() == []


def test_a_traceback_keeps_its_order_where_all_its_lines_have_one_time(aws, log):
    traceback = ["Traceback (most recent call last):", '  File "train.py", line 3, in <module>', "ValueError: no"]
    log("job/algo-1-17", *((0, text) for text in traceback))
    log("job/algo-2-17", (0, "Aah"))
    assert [line.message for line in run.LogFollower(aws, GROUP, "job/").read()] == [*traceback, "Aah"]
    assert [line.message for line in run.last_lines(aws, run.TRAINING, "job", datetime.fromtimestamp(0, UTC))] == [
        *traceback,
        "Aah",
    ]


def test_a_line_that_names_its_host_and_rank_is_not_prefixed_again(caplog):
    lines = [run.LogLine(0, "job/algo-1-17", text) for text in ("[algo-1 rank 0] x", "[algo-10 rank 0] y", "z")]
    with caplog.at_level(logging.INFO, "launcher"):
        run.show_lines(lines)
    assert caplog.messages == ["[algo-1 rank 0] x", "[algo-1] [algo-10 rank 0] y", "[algo-1] z"]


def test_metrics_are_told_when_they_change_and_not_too_often(caplog, monkeypatch):
    def description(loss):
        final = [{"MetricName": "train:loss", "Value": loss}, {"MetricName": "validation:accuracy", "Value": 0.91}]
        return {"TrainingJobStatus": "InProgress", "FinalMetricDataList": final}

    caplog.set_level(logging.INFO, "launcher")
    run.StatusWatcher(run.TRAINING).show(description(0.6))
    assert "train:loss" not in caplog.text
    monkeypatch.setattr(run, "METRICS_SECONDS", 0.0)
    watcher = run.StatusWatcher(run.TRAINING)
    for loss in (0.5, 0.5, 0.4):
        watcher.show(description(loss))
    told = [record.getMessage().strip() for record in caplog.records if "train:loss" in record.getMessage()]
    assert told == ["train:loss 0.5, validation:accuracy 0.91", "train:loss 0.4, validation:accuracy 0.91"]


def test_a_job_that_ends_well_is_described(aws, canned, log, caplog):
    log("job/algo-1-17", (0, "epoch=1"))
    message = [{"StatusMessage": "Downloading input data"}]
    canned(
        "DescribeTrainingJob",
        status("InProgress", "Starting"),
        status("InProgress", "Downloading", SecondaryStatusTransitions=message),
        status("Completed"),
    )
    with caplog.at_level(logging.INFO, "launcher"):
        description = run.follow(aws, run.TRAINING, "job", sleep=no_sleep)
    assert description["TrainingJobStatus"] == "Completed"
    assert [record.getMessage() for record in caplog.records] == [
        "[algo-1] epoch=1",
        "-> InProgress · Starting",
        "-> InProgress · Downloading · Downloading input data",
        "-> Completed",
    ]


def test_a_job_that_fails_tells_its_reason_the_cause_in_its_log_and_what_to_do(aws, canned, log, caplog):
    log("job/algo-1-17", *((n, f"line {n}") for n in range(30)), (30, "train.py: error: unrecognized arguments: --lr"))
    canned("DescribeTrainingJob", status("Failed", FailureReason="AlgorithmError: no labels, exit code: 2"))
    with caplog.at_level(logging.INFO, "launcher"), pytest.raises(JobFailed) as error:
        run.follow(aws, run.TRAINING, "job", sleep=no_sleep)
    assert "[algo-1] line 29" in caplog.text
    reason, cause, evidence, fix = str(error.value).splitlines()
    assert reason == "training job job Failed: AlgorithmError: no labels, exit code: 2"
    assert cause.endswith("(arguments)")
    assert evidence == "  [algo-1] train.py: error: unrecognized arguments: --lr"
    assert fix.startswith("fix: compare training.hyperparameters")


def test_a_job_that_fails_for_an_unknown_cause_tells_its_reason_alone(aws, canned):
    canned("DescribeTrainingJob", status("Failed", FailureReason="AlgorithmError: no labels, exit code: 1"))
    with pytest.raises(JobFailed) as error:
        run.follow(aws, run.TRAINING, "job", sleep=no_sleep)
    assert str(error.value) == "training job job Failed: AlgorithmError: no labels, exit code: 1"


def test_an_endpoint_in_service_is_not_told_with_what_it_logged_since(aws, canned, log, caplog):
    log("e/i-1", (0, "an old error"))
    canned("DescribeEndpoint", {"EndpointName": "e", "EndpointStatus": "InService"})
    with caplog.at_level(logging.INFO, "launcher"):
        run.follow(aws, run.ENDPOINT, "e", sleep=no_sleep)
    assert [record.getMessage() for record in caplog.records] == ["-> InService"]


def test_a_job_that_was_stopped_is_not_called_done(aws, canned):
    canned("DescribeTrainingJob", status("Stopped"))
    with pytest.raises(JobStopped, match="training job job was stopped on request, before it had finished"):
        run.follow(aws, run.TRAINING, "job", sleep=no_sleep)


def test_a_job_out_of_time_says_what_to_raise(aws, canned):
    canned("DescribeTrainingJob", status("Stopped", "MaxRuntimeExceeded"))
    with pytest.raises(TimedOut, match=r"raise training\.max_runtime"):
        run.follow(aws, run.TRAINING, "job", sleep=no_sleep)


def test_waiting_has_an_end(aws, canned):
    canned("DescribeTrainingJob", status("InProgress"))
    with pytest.raises(TimedOut, match="is still InProgress after 0 s; it goes on"):
        run.follow(aws, run.TRAINING, "job", timeout_seconds=0, sleep=no_sleep)


def test_ctrl_c_detaches_and_says_how_to_come_back(aws, canned):
    canned("DescribeTrainingJob", status("InProgress"))

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(Detached, match="python -m launcher attach job .* python -m launcher stop job"):
        run.follow(aws, run.TRAINING, "job", sleep=interrupted)


def test_the_log_of_an_endpoint_is_followed_until_ctrl_c(aws, log, caplog):
    def interrupt_after_the_second(_):
        if len(caplog.records) == 2:
            raise KeyboardInterrupt
        log("job/algo-2-18", (1, "second"))

    log("job/algo-1-17", (0, "first"))
    follower = run.LogFollower(aws, GROUP, "job/")
    with caplog.at_level(logging.INFO, "launcher"), pytest.raises(KeyboardInterrupt):
        run.follow_log(follower, interrupt_after_the_second)
    assert [record.getMessage() for record in caplog.records] == ["[algo-1] first", "[algo-2] second"]


def test_an_endpoint_is_followed_into_service(aws, canned):
    canned(
        "DescribeEndpoint",
        *({"EndpointName": "e", "EndpointStatus": "Creating", "LastModifiedTime": datetime.now(UTC)} for _ in range(2)),
        {"EndpointName": "e", "EndpointStatus": "InService"},
    )
    assert run.follow(aws, run.ENDPOINT, "e", sleep=no_sleep)["EndpointStatus"] == "InService"


def test_lines_of_an_earlier_endpoint_of_the_same_name_are_not_shown(aws, log):
    log("job/algo-1-17", (-5000, "before"), (0, "after"))
    follower = run.LogFollower(aws, GROUP, "job/", since=int(time.time() * 1000) - 3000)
    assert [line.message for line in follower.read()] == ["after"]


def test_a_log_that_may_not_be_read_is_a_refusal(aws, canned):
    canned("DescribeLogStreams", {"Error": {"Code": "AccessDeniedException", "Message": "no"}}, service="logs")
    with pytest.raises(AwsRefused, match="AccessDeniedException"):
        run.LogFollower(aws, GROUP, "job/").read()


def test_the_kind_of_a_job_is_found_by_its_name(aws, canned):
    missing = {"Error": {"Code": "ValidationException", "Message": "Requested resource not found."}}
    canned("DescribeTrainingJob", missing)
    canned("DescribeTransformJob", {"TransformJobName": "x", "TransformJobStatus": "Completed"})
    assert run.find_kind(aws, "x") is run.TRANSFORM


def test_a_name_nobody_has_is_refused(aws, canned):
    missing = {"Error": {"Code": "ValidationException", "Message": "Requested resource not found."}}
    for noun in ("TrainingJob", "TransformJob", "Endpoint"):
        canned(f"Describe{noun}", missing)
    with pytest.raises(AwsRefused, match="no training job, transform job or endpoint is named 'x'"):
        run.find_kind(aws, "x")


def test_a_refusal_is_not_taken_for_a_missing_job(aws, canned):
    canned("DescribeTrainingJob", {"Error": {"Code": "AccessDeniedException", "Message": "no"}})
    with pytest.raises(AwsRefused, match="AccessDeniedException"):
        run.find_kind(aws, "x")
