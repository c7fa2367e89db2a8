"""Every check passes on a fake that keeps the contract, and fails on one that breaks just its statement."""

from pathlib import Path

import pytest

from launcher.check.materials import Patience
from launcher.check.suite import FAILED, NOT_JUDGED, PASSED
from launcher.check.table import CHECKS

# Only a container has users, a network of its own and a PID 1: test_docker.py breaks these.
NEED_A_CONTAINER = {"C7", "C12", "C69", "C142"}

# Check, the fault that breaks it, and what the failure must say.
FAULTS = [
    ("C2", "nothing-to-run", "ends with 127"),
    ("C3", "serve-fails", "did not pass the ping health check"),
    ("C4", "hangs-on-unknown-argument", "still runs"),
    ("C4", "content-with-unknown-argument", "ends with 0"),
    ("C4", "silent-on-unknown-argument", "says nothing"),
    ("C11", "default-sigterm", "no handler for SIGTERM"),
    ("C15", "needs-hyperparameters", "without hyperparameters.json"),
    ("C16", "strict-hyperparameters", "argument parser"),
    ("C19", "needs-distribution", "local mode"),
    ("C21", "lists-the-data-directory", "manifest"),
    ("C22", "needs-channel-configuration", "no channel"),
    ("C23", "needs-instance-groups", "local mode"),
    ("C24", "strict-resources", "adds a key"),
    ("C30", "reads-every-file", "files of its own"),
    ("C33", "needs-job-name", "plain docker"),
    ("C41", "crashes", "the job is Failed"),
    ("C41", "no-model", "no model that hosting could load"),
    ("C42", "success-after-failure", "Completed"),
    ("C42", "no-failure-file", "no output/failure"),
    ("C42", "hangs-after-failure", "billed"),
    ("C43", "vague-failure", "without 'ValueError'"),
    ("C46", "ignores-killed-worker", "Completed, with a broken model"),
    ("C46", "waits-for-killed-worker", "goes on"),
    ("C46", "vague-kill", "does not say that SIGKILL"),
    ("C47", "failure-after-success", "leaves output/failure"),
    ("C48", "needs-output-directories", "model lost"),
    ("C49", "symlink", "latest"),
    ("C51", "ignores-sigterm", "SIGKILL follows"),
    ("C51", "saves-nothing", "all work is lost"),
    ("C52", "exit-143", "with 143, not 0"),
    ("C54", "deaf-at-start", "did not end training"),
    ("C58", "needs-checkpoints", "without CheckpointConfig"),
    ("C74", "serves-without-argument", "still runs"),
    ("C74", "content-without-argument", "ends with 0"),
    ("C82", "loopback", "127.0.0.1"),
    ("C82", "ignores-the-port", "nothing listens on port"),
    ("C82", "serve-fails", "no weights"),
    ("C83", "ignores-the-port", "SAGEMAKER_BIND_TO_PORT="),
    ("C84", "no-backlog", "250 ms"),
    ("C85", "ping-fails-later", "GET /ping is 500"),
    ("C86", "early-ping", "not ready"),
    ("C87", "one-at-a-time", "with 4 requests in work"),
    ("C88", "loads-nothing", "200 with a broken model"),
    ("C88", "silent-about-the-model", "does not say why"),
    ("C88", "content-with-a-broken-model", "ends with 0"),
    ("C89", "get-ping-only", "POST /ping is 405"),
    ("C90", "strict-headers", "headers it does not know"),
    ("C91", "strict-host", "model.aws.local"),
    ("C92", "needs-content-type", "500"),
    ("C93", "exact-content-type", "charset=utf-8"),
    ("C94", "always-400", "400 'no', not 415"),
    ("C94", "long-errors", "longer than 2048"),
    ("C97", "limit-of-1-mb", "413"),
    ("C97", "resets-large-bodies", "no answer"),
    ("C99", "dies-on-disconnect", "clients went away"),
    ("C100", "ignores-chunks", "its body was not read"),
    ("C101", "drops-requests", "the request in flight at SIGTERM"),
    ("C101", "ignores-sigterm", "did not end serve"),
    ("C104", "writes-into-the-model", "cache.bin"),
    ("C106", "empty-program-is-set", "SAGEMAKER_PROGRAM"),
    ("C115", "model-from-the-start", "before anything was loaded"),
    ("C115", "models-as-a-list", "not a JSON object"),
    ("C115", "models-without-json", "not JSON"),
    ("C116", "cannot-load", "POST /models is 500"),
    ("C116", "forgets-models", "again and again"),
    ("C116", "lists-nothing", "without modelName"),
    ("C116", "loaded-but-not-ready", "before the model could serve"),
    ("C117", "loads-twice", "not 409"),
    ("C118", "no-507", "not 507"),
    ("C118", "stays-registered", "stays registered"),
    ("C119", "unknown-model-is-500", "not 404"),
    ("C128", "ignores-the-port", "with a copy beside it"),
    ("C128", "extra-port", "SAGEMAKER_SAFE_PORT_RANGE"),
    ("C133", "loses-records", "answered with 2 lines"),
    ("C133", "counts-the-last-newline", "answered with 4 lines"),
    ("C133", "no-csv", "with 3 records of text/csv"),
    ("C134", "ends-with-a-newline", "AssembleWith=Line"),
    ("C147", "no-length", "no Content-Length"),
    ("C131", "broken-execution-parameters", "is 500"),
    ("C131", "parameters-without-json", "JSONDecodeError"),
    ("C131", "parameters-as-text", "whole numbers"),
    ("C131", "parameters-in-camel-case", "MultiRecord"),
    ("C131", "parameters-over-100", "over 100"),
]
# Check, the facts of an image that breaks it, and what the failure must say.
FACTS = [
    ("C1", {"entrypoint": ("/bin/sh", "-c", "python train.py")}, "shell form"),
    ("C1", {"entrypoint": ("python3", "/train.py")}, "PATH"),
    ("C5", {"files": ("/opt/ml/code/train.py",)}, "/opt/ml/code/train.py"),
    ("C6", {"files": ("/usr/lib/x86_64-linux-gnu/libcuda.so.1",)}, "libcuda.so.1"),
    ("C6", {"files": ("/usr/lib/modules/6.1/nvidia.ko",)}, "nvidia.ko"),
    ("C6", {"files": ("/var/lib/dpkg/info/nvidia-kernel-dkms.list",)}, "nvidia-kernel-dkms"),
    ("C129", {"labels": {}}, "None, not 'true'"),
    ("C144", {"size_bytes": 11 * 10**9}, "11.0 GB"),
    ("manifest", {"media_type": "application/vnd.oci.image.index.v1+json"}, "list of manifests"),
    ("platform", {"platform": "windows/amd64"}, "windows/amd64"),
    ("platform", {"platform": "linux/arm64"}, "exec format error"),
    ("user", {"user": "app:app"}, "'app:app'"),
]


def test_a_container_that_keeps_the_contract_passes_every_check(judge):
    results = judge(patience=Patience(underway=10))
    judged = {number: result for number, result in results.items() if number not in NEED_A_CONTAINER}
    assert {number: result.message for number, result in judged.items() if result.outcome != PASSED} == {}
    assert {results[number].outcome for number in NEED_A_CONTAINER} == {NOT_JUDGED}


@pytest.mark.parametrize(("number", "fault", "said"), FAULTS, ids=lambda value: str(value).replace(" ", "-")[:40])
def test_a_check_fails_on_a_container_that_breaks_its_statement(judge, number, fault, said):
    result = judge(number, faults=(fault,))[number]
    assert result.outcome == FAILED, result
    assert said in result.message


@pytest.mark.parametrize(("number", "facts", "said"), FACTS, ids=lambda value: str(value)[:40])
def test_a_check_fails_on_an_image_whose_facts_break_its_statement(judge, number, facts, said):
    result = judge(number, facts=facts)[number]
    assert result.outcome == FAILED, result
    assert said in result.message


def test_every_check_is_proven_to_fail():
    docker_tests = Path(__file__).with_name("test_docker.py").read_text()
    without_gpu = Path(__file__).with_name("test_not_judged.py").read_text()
    broken = {number for number, *_ in FAULTS + FACTS}
    broken |= {"C10"} if 'judge("C10", faults=' in without_gpu else set()  # it can be told only where there is no GPU
    broken |= {number for number in NEED_A_CONTAINER if f'("{number}", ' in docker_tests}
    assert {check.number for check in CHECKS} == broken
