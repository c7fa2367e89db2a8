# ruff: noqa: E501  # samples are what services and libraries really say
"""A failure is explained from its reason, its statuses and its log; every known cause is recognised by its own words."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from launcher import cli, run
from launcher.causes import CAUSES
from launcher.explain import explain

START = datetime(2026, 1, 1, tzinfo=UTC)
SAMPLES = {
    "quota": "ResourceLimitExceeded: The account-level service limit 'ml.p4d.24xlarge for training job usage' is 0 Instances",
    "capacity": "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type.",
    "pass-role": "User: arn:aws:iam::1:user/x is not authorized to perform: iam:PassRole on resource: arn:aws:iam::1:role/jobs",
    "assume-role": "ClientError: Could not assume role arn:aws:iam::1:role/jobs. Please ensure that the role exists",
    "image-index": "ClientError: Unsupported manifest media type application/vnd.oci.image.index.v1+json for image 1.dkr.ecr/x",
    "image-access": "ClientError: arn:aws:sts::1:assumed-role/jobs is not authorized to perform: ecr:BatchGetImage on resource x",
    "image-missing": "ClientError: Cannot pull algorithm container. Image 1.dkr.ecr.us-east-1.amazonaws.com/x:1 does not exist",
    "kms": "ClientError: User is not authorized to perform: kms:Decrypt on the resource associated with this ciphertext",
    "data-missing": "ClientError: Data download failed:No S3 objects found under S3 URL 's3://bucket/train' given in input data source",
    "data-access": "ClientError: Data download failed:AccessDenied (403): Access Denied when trying to perform s3:ListBucket",
    "subnet": "ClientError: InsufficientFreeAddressesInSubnet: subnet-1 has not enough free addresses",
    "no-program": 'AlgorithmError: exec: "train": executable file not found in $PATH',
    "line-ends": "/usr/bin/env: 'python\\r': No such file or directory",
    "architecture": "standard_init_linux.go:228: exec user process caused: exec format error",
    "not-executable": 'exec: "/opt/program/train": permission denied: unknown',
    "driver": "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
    "gpu-memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "shared-memory": "RuntimeError: DataLoader worker (pid 80) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",
    "memory": "AlgorithmError: , exit code: 137",
    "disk": "OSError: [Errno 28] No space left on device",
    "read-only": "OSError: [Errno 30] Read-only file system: '/opt/ml/input/data/train/cache'",
    "open-files": "OSError: [Errno 24] Too many open files: '/opt/ml/input/data/train/1.png'",
    "hardware": "Repairing training cluster due to hardware failure",
    "collective": "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp, ncclSystemError: System call failed",
    "rendezvous": "socket.gaierror: [Errno -2] Name or service not known",
    "worker-killed": "RuntimeError: DataLoader worker (pid(s) 81) exited unexpectedly",
    "no-network": "urllib3.exceptions.MaxRetryError: Failed to establish a new connection: [Errno 101] Network is unreachable",
    "requirements": "ERROR: No matching distribution found for nonsense==9",
    "import": "ModuleNotFoundError: No module named 'timm'",
    "arguments": "train.py: error: unrecognized arguments: --lr 0.1",
    "labels": "IndexError: Target 10 is out of bounds.",
    "not-a-number": "ValueError: Loss is nan at step 12",
    "weights": "RuntimeError: Error(s) in loading state_dict: size mismatch for fc.weight",
    "shapes": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (32x784 and 512x10)",
    "permission": "PermissionError: [Errno 13] Permission denied: '/opt/ml/model/x'",
    "cpu-instructions": "AlgorithmError: , exit code: 132",
    "segfault": "AlgorithmError: , exit code: 139",
    "ping": "The primary container for production variant main did not pass the ping health check. Please check CloudWatch logs",
    "model-download": "Failed to download model data for container from URL: s3://bucket/model.tar.gz",
    "payload": "ClientError: Too much data for max payload size",
    "bad-request": "ClientError: See job logs for more information. Bad HTTP status received from algorithm: 415",
    "handler": "AlgorithmError: See job logs for more information. Bad HTTP status received from algorithm: 500",
    "slow-answer": "Model server did not respond to /invocations request within 600 seconds",
    "alarm": "One or more configured alarms went into ALARM state: wines-main-errors.",
    "time-limit": "MaxRuntimeExceeded",
    "spot-wait": "MaxWaitTimeExceeded",
    "internal": "InternalServerError: We encountered an internal error. Please try again.",
    "exception": "ZeroDivisionError: division by zero",
}


def description(reason="", status="Failed", **rest):
    fixed = {"TrainingJobName": "job", "TrainingJobStatus": status, "CreationTime": START}
    return {**fixed, "FailureReason": reason, **rest}


def lines(*messages):
    return [f"[algo-1] {message}" for message in messages]


def explained(job, log, flags=""):
    return explain("job", job["TrainingJobStatus"], job, log, flags)


def test_there_is_a_sample_of_every_cause():
    assert SAMPLES.keys() == {cause.code for cause in CAUSES}
    assert len(CAUSES) >= 25


@pytest.mark.parametrize("code", SAMPLES)
def test_a_cause_is_recognised_in_the_failure_reason(code):
    found = explained(description(SAMPLES[code]), [])
    assert found.cause.code == code
    assert found.evidence == (SAMPLES[code],)
    assert found.cause.fix in "\n".join(found.lines())


@pytest.mark.parametrize("code", SAMPLES)
def test_a_cause_is_recognised_in_the_log(code):
    found = explained(description("AlgorithmError: , exit code: 1"), lines("epoch=1", SAMPLES[code], "bye"))
    assert found.cause.code == code
    assert found.evidence == (f"[algo-1] {SAMPLES[code]}",)


def test_a_failed_record_is_explained_by_what_the_handler_raised():
    reason = "AlgorithmError: 1 of 1 input objects failed: in.csv: Bad HTTP status received from algorithm: 500"
    found = explained(description(reason), lines("Traceback (most recent call last):", "ValueError: no column 'age'"))
    assert found.cause.code == "handler"
    assert found.advice()[1] == "  [algo-1] ValueError: no column 'age'"


def test_ordinary_log_lines_are_no_cause():
    ordinary = lines("epoch=3 step=66 train:loss=0.47;", "loaded 1,437 images", "information about the nan-free run")
    found = explained(description("AlgorithmError: , exit code: 1"), ordinary)
    assert found.cause is None
    assert "no known cause shows" in "\n".join(found.lines())
    assert found.evidence[-1].endswith("nan-free run")


INNOCENT = """n_classes=10 n_features=64
UserWarning: This DataLoader will create 8 worker processes in total. Our suggested max number of worker is 2
retrying the download: Connection closed by peer, attempt 2
NCCL INFO NET/Socket : Using [0]eth0
NCCL version 2.21.5+cuda12.4
[W socket.cpp:464] [c10d] The server socket has failed to bind to [::]:29500
max payload size is 6 MB
serving: port=8080 max_request_bytes=1073741824
train:loss=0.47; val loss is 1.2 (information nan-free)
ImportError caught: flash_attn is not installed, falling back to sdpa
epoch 3 loss inflated by weight decay
error: 0 warning: 0
0 errors, 0 exceptions
exit code 0
exit code: 0
2026-01-01 GET /ping 200
Setting OMP_NUM_THREADS environment variable for each process to be 1
gradient clipping: max norm 1.0, inf norm off
xid 42 of the experiment
INFO s3 download took 403 ms
GET s3://bucket/train 403 objects
S3 bucket listing: 403 objects
FutureWarning: You are using torch.load with weights_only=False
Error handling is on
learning_rate=0.001 timed out batches=0
info: no ModelError so far
loss: 0.3 (nan values: 0)
loss=0.3 nan=0
checkpoint loaded: missing keys=[]
requirements.txt: pip install ok
SystemExit handler installed
saw KeyboardInterrupt handler"""


@pytest.mark.parametrize("line", INNOCENT.splitlines())
def test_a_line_of_a_healthy_job_is_no_cause(line):
    found = explained(description("AlgorithmError: , exit code: 1"), lines(line))
    assert found.cause is None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("train:loss=nan;", "not-a-number"),
        ("loss: tensor(nan, device='cuda:0')", "not-a-number"),
        ("RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:1", "collective"),
        ("ImportError: libcudart.so.12: cannot open shared object file", "import"),
        ("An error occurred (403) when calling the HeadObject operation: Forbidden", "data-access"),
        ("Loss.cu:94: block: [0] Assertion `t >= 0 && t < n_classes` failed.", "labels"),
        ("NVRM: Xid (PCI:0000:00:1e): 79, GPU has fallen off the bus.", "hardware"),
    ],
)
def test_what_looks_like_it_and_is_a_cause_is_told(line, code):
    assert explained(description("AlgorithmError: , exit code: 1"), lines(line)).cause.code == code


def test_an_exception_behind_the_services_own_word_is_read():
    found = explained(description("AlgorithmError: ValueError: no images in train, exit code: 1"), [])
    assert found.cause.code == "exception"


def test_an_exit_code_gives_way_to_what_the_log_says():
    log = lines("torch.OutOfMemoryError: CUDA out of memory.")
    found = explained(description("AlgorithmError: , exit code: 137"), log)
    assert found.cause.code == "gpu-memory"
    assert found.also == ("the machine's memory is used up, and the kernel ended a process",)


def test_what_our_serving_container_says_itself_is_the_cause():
    ping = SAMPLES["ping"]
    old = "serve cannot start [syntax-error] inference.py:1: SyntaxError: invalid syntax; fix: correct the file"
    own = "serve cannot start [bad-handler]: HandlerError: model_fn() does not fit; fix: correct code/inference.py"
    found = explained(description(ping), lines(old, "Worker exited", f"2026-01-01 ERROR 17 {own}", "bye"))
    assert (found.cause.code, found.cause.fix) == ("bad-handler", "correct code/inference.py")
    assert found.evidence == (own,)
    assert found.advice() == [
        "cause: the serving container could not start (bad-handler)",
        f"  {own}",
        "fix: correct code/inference.py",
    ]
    own = (
        "serve cannot start [missing-dependency] inference.py:1: ModuleNotFoundError: No module named 'x'; fix: bake it"
    )
    found = explained(description(f"{ping}. The container: it exited with code 3: ERROR 17 {own}"), [])
    assert found.advice() == ["cause: the serving container could not start (missing-dependency)", "fix: bake it"]


def test_a_foreign_containers_log_says_more_than_the_health_check():
    found = explained(description(SAMPLES["ping"]), lines("ModuleNotFoundError: No module named 'timm'"))
    assert found.cause.code == "import"


def test_an_alarm_on_errors_is_explained_by_what_was_raised_last_and_one_on_latency_is_not():
    log = lines("KeyError: 'of an earlier update'", "ValueError: price")
    reason = "One or more configured alarms went into ALARM state: wines-main-{}."
    errors = explained(description(reason.format("errors"), status="InService"), log)
    assert (errors.cause.code, errors.evidence[1:]) == ("alarm", ("[algo-1] ValueError: price",))
    latency = explained(description(reason.format("latency"), status="InService"), log)
    assert (latency.cause.code, latency.evidence) == ("alarm", (reason.format("latency"),))


def test_torchruns_echoes_of_an_exception_are_no_evidence():
    echoes = ("    sys.exit(main(sys.argv[1:]))", "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ")
    found = explained(description("AlgorithmError: , exit code: 1"), lines("ValueError: no", *echoes))
    assert found.evidence == ("[algo-1] ValueError: no",)


def test_a_time_limit_is_read_from_the_statuses():
    steps = [{"Status": "MaxRuntimeExceeded", "StatusMessage": "The job has exceeded its time"}]
    found = explained(description(status="Stopped", SecondaryStatusTransitions=steps), [])
    assert found.cause.code == "time-limit"


def test_a_job_that_was_stopped_is_no_failure_to_explain(capsys, aws, canned, monkeypatch, tmp_path):
    steps = [{"Status": "Stopping", "StatusMessage": "Stopping the training job"}]
    stopped = description(status="Stopped", SecondaryStatus="Stopped", SecondaryStatusTransitions=steps)
    found = explained(stopped, lines("ValueError: an old one"))
    assert (found.cause.code, found.evidence) == ("stopped", ("Stopping: Stopping the training job",))
    assert "cause: it was stopped on request (stopped)" in found.lines()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    canned("DescribeTrainingJob", stopped)
    assert cli.main(["attach", "job"]) == 5
    told = capsys.readouterr().err
    assert told == "-> training job job was stopped on request, before it had finished\n"


def test_the_fix_has_commands_to_copy():
    found = explained(description("ValueError: no"), [], " -c x.yaml --local")
    assert found.lines()[-1].endswith(
        "lines above say which; the trace stands in the log: `python -m launcher logs job -c x.yaml --local`"
    )


def test_the_verb_explains_a_job(aws, canned, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    canned("DescribeTrainingJob", description("AlgorithmError: , exit code: 1"))
    group, stream = "/aws/sagemaker/TrainingJobs", "job/algo-1-17"
    aws.call("logs", "CreateLogGroup", logGroupName=group)
    aws.call("logs", "CreateLogStream", logGroupName=group, logStreamName=stream)
    events = [{"timestamp": int(time.time() * 1000), "message": SAMPLES["import"]}]
    aws.call("logs", "PutLogEvents", logGroupName=group, logStreamName=stream, logEvents=events)
    assert [line.message for line in run.last_lines(aws, run.TRAINING, "job", START)] == [SAMPLES["import"]]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert run.last_lines(aws, run.TRAINING, "job", tomorrow) == []  # of an endpoint that had the same name before
    assert cli.main(["explain", "job"]) == 0
    assert "cause: a Python package or library is missing (import)" in capsys.readouterr().out
    assert cli.main(["explain", "job", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cause"]["code"] == "import"


def test_the_verb_shows_what_a_job_was(aws, canned, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    times = {
        "Status": "Training",
        "StatusMessage": "in progress",
        "StartTime": START,
        "EndTime": START + timedelta(seconds=65),
    }
    canned("DescribeTrainingJob", description("AlgorithmError: x", SecondaryStatusTransitions=[times]))
    assert cli.main(["show", "job"]) == 0
    shown = capsys.readouterr().out
    assert "FailureReason" in shown
    assert "Training 65 s" in shown
    assert "AlgorithmError: x" in shown
    assert "next: python -m launcher explain job" in shown
    assert cli.main(["show", "job", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["TrainingJobName"] == "job"


def test_the_verb_attaches_to_a_job(aws, canned, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    canned("DescribeTrainingJob", description(status="Completed", ModelArtifacts={"S3ModelArtifacts": "s3://b/m"}))
    assert cli.main(["attach", "job"]) == 0
    assert "-> model s3://b/m" in capsys.readouterr().out
    for verb in ("attach", "show", "explain"):
        assert cli.main([verb, "job", "--dry-run"]) == 0
