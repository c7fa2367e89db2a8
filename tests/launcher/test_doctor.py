import fcntl
import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import cli
from launcher.doctor import Machine, doctor, fix, main
from launcher.findings import Finding, failures, lines
from launcher.local.containers import free_port

ROOT = Path(__file__).parents[2]
ENGINE = {
    "ServerVersion": "28.0.1",
    "OSType": "linux",
    "Architecture": "x86_64",
    "NCPU": 8,
    "DockerRootDir": "/nowhere/docker",
    "Runtimes": {"runc": {}, "nvidia": {}},
}


@pytest.fixture
def machine(tmp_path):
    """A machine made of files: clients are shell scripts, /proc and the control group are directories."""
    programs = tmp_path / "bin"
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    for directory in (programs, proc, cgroup):
        directory.mkdir()
    (proc / "meminfo").write_text("MemTotal: 32000000 kB\nMemAvailable: 16000000 kB\n")

    def make(environ=None, programs_text=None, **more) -> Machine:
        for name, text in (programs_text or {}).items():
            path = programs / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        environ = {"PATH": str(programs), "HOME": str(tmp_path), **(environ or {})}
        options = {"directory": tmp_path, "proc": proc, "cgroup": cgroup, "port": free_port(), **more}
        return Machine(environ, **options)

    return make


def docker(info: dict, images: str = "") -> dict[str, str]:
    text = f"""case "$1" in
info) echo '{json.dumps(info)}' ;;
images) printf '{images}' ;;
esac"""
    return {"docker": text}


def one(found: list[Finding], check: str) -> Finding:
    (finding,) = [item for item in found if item.check == check]
    return finding


def test_a_machine_with_nothing_but_python_is_told_what_is_missing_and_nothing_fails_but_packages(machine):
    found = doctor(machine(packages=("no_such_package", "json")))
    assert [item.check for item in failures(found)] == ["packages"]
    assert one(found, "packages").detail == "missing: no_such_package"
    assert one(found, "docker").status == "warn"
    assert "local jobs run as plain processes" in one(found, "docker").fix
    assert all(item.fix for item in found if item.status in {"warn", "fail"})


def test_it_runs_where_nothing_is_installed(tmp_path):
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    argv = [sys.executable, "-S", "-m", "launcher.doctor"]  # -S: without site-packages
    answer = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert answer.stderr == ""
    assert answer.returncode == 1
    assert "FAIL  packages     missing: boto3, click" in answer.stdout


def test_an_old_python_is_told_which_one_is_needed(machine):
    finding = one(doctor(machine(python=(3, 9, 1))), "python")
    assert (finding.status, finding.detail) == ("fail", "3.9.1 is too old")
    assert "3.11 or newer" in finding.fix


def test_an_engine_that_answers_is_described(machine):
    finding = one(doctor(machine(programs_text=docker(ENGINE))), "docker")
    assert (finding.status, finding.detail) == ("ok", "engine 28.0.1, linux/x86_64, 8 cores")


def test_an_arm_engine_is_told_that_sagemaker_wants_amd64(machine):
    finding = one(doctor(machine(programs_text=docker({**ENGINE, "Architecture": "aarch64"}))), "docker")
    assert finding.status == "warn"
    assert "linux/amd64" in finding.fix


@pytest.mark.parametrize(
    ("script", "reason", "fix"),
    [
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", "Cannot connect to the Docker daemon", "start it"),
        ('echo \'{"ServerErrors": ["permission denied"]}\'; exit 1', "permission denied", "group docker"),
        ("exit 1", "no reason given", "start it"),
        ("echo '[]'", "no reason given", "start it"),
    ],
)
def test_an_engine_that_does_not_answer_says_why(machine, script, reason, fix):
    finding = one(doctor(machine(programs_text={"docker": script})), "docker")
    assert (finding.status, finding.detail) == ("warn", f"no engine answers: {reason}")
    assert fix in finding.fix


def test_an_engine_that_hangs_is_given_up(machine, monkeypatch):
    for module in ("machine", "engine"):
        monkeypatch.setattr(f"launcher.doctor.{module}.CLIENT_SECONDS", 0.2)
    finding = one(doctor(machine(programs_text={"docker": "exec /bin/sleep 30"})), "docker")
    assert finding.detail == "no engine answers: nothing in 0 s"


def test_the_engine_s_own_disk_is_looked_at_where_it_can_be(machine, tmp_path):
    found = doctor(machine(programs_text=docker({**ENGINE, "DockerRootDir": str(tmp_path)})))
    assert str(tmp_path) in one(found, "engine disk").detail


@pytest.mark.parametrize(("gigabytes", "status"), [(1, "fail"), (20, "warn"), (100, "ok")])
def test_too_little_disk_is_said(machine, monkeypatch, gigabytes, status):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=gigabytes * 1e9))
    finding = one(doctor(machine()), "disk")
    assert finding.status == status
    assert bool(finding.fix) == (status != "ok")


@pytest.mark.parametrize(("limit", "status"), [("500000000", "fail"), ("3000000000", "warn"), ("max", "ok")])
def test_the_memory_limit_of_a_container_counts(machine, tmp_path, limit, status):
    here = machine()
    (tmp_path / "cgroup" / "memory.max").write_text(limit)
    finding = one(doctor(here), "memory")
    assert finding.status == status
    assert ("this container's limit" in finding.detail) == (limit != "max")


def test_without_proc_memory_is_not_guessed(machine, tmp_path):
    assert not [item for item in doctor(machine(proc=tmp_path / "none")) if item.check == "memory"]


def test_a_quota_of_less_than_two_cores_is_said(machine, tmp_path):
    here = machine()
    (tmp_path / "cgroup" / "cpu.max").write_text("max 100000")
    unlimited = one(doctor(here), "cores")
    (tmp_path / "cgroup" / "cpu.max").write_text("50000 100000")
    limited = one(doctor(here), "cores")
    assert (limited.status, limited.detail) == ("warn", "0.5: the hosts of a local job take turns")
    assert unlimited.detail.partition(":")[0] != "0.5"


@pytest.mark.parametrize(("driver", "status"), [("580.65.06", "ok"), ("535.54.03", "warn")])
def test_a_driver_older_than_cuda_13_wants_is_said(machine, driver, status):
    smi = {"nvidia-smi": f"echo 'NVIDIA A10G, {driver}, 23028 MiB'"}
    found = doctor(machine(programs_text={**smi, **docker(ENGINE)}))
    assert one(found, "gpu").status == status
    assert "1 x NVIDIA A10G" in one(found, "gpu").detail
    assert not [item for item in found if item.check == "gpu in docker"]


def test_a_gpu_that_containers_cannot_see_is_said(machine):
    smi = {"nvidia-smi": "echo 'NVIDIA A10G, 580.65.06, 23028 MiB'"}
    found = doctor(machine(programs_text={**smi, **docker({**ENGINE, "Runtimes": {"runc": {}}})}))
    assert "nvidia-container-toolkit" in one(found, "gpu in docker").fix


def test_a_driver_whose_client_does_not_answer_fails(machine, tmp_path):
    here = machine(programs_text={"nvidia-smi": "exit 9"})
    (tmp_path / "proc" / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "proc" / "driver" / "nvidia" / "version").write_text("NVRM version: 535\n")
    assert one(doctor(here), "gpu").status == "fail"


def test_a_broken_configuration_is_told_with_its_first_finding(machine, tmp_path):
    (tmp_path / "launcher.yaml").write_text("nme: digits\nregin: us-east-1\n")
    finding = one(doctor(machine()), "config")
    assert finding.status == "fail"
    assert "unknown setting 'nme'; did you mean 'name'?" in finding.detail
    assert "(and 1 more)" in finding.detail


def test_a_configuration_that_cannot_be_checked_is_skipped(machine, tmp_path, monkeypatch):
    (tmp_path / "launcher.yaml").write_text("name: digits\n")
    monkeypatch.setitem(sys.modules, "launcher.settings", None)
    assert one(doctor(machine()), "config").status == "skip"


def test_slipways_own_images_are_those_of_make_images(machine, tmp_path):
    (tmp_path / "launcher.yaml").write_text("name: digits\n")
    here = machine(programs_text=docker(ENGINE, "slipway-train:local\\t7.2GB\\n"))
    found = doctor(here)
    assert one(found, "config").detail.endswith("is valid: project digits, region us-east-1")
    assert one(found, "training image").detail == "slipway-train:local, 7.2GB"
    missing = one(found, "serving image")
    assert missing.detail == "slipway-serve:local is not on this machine"
    assert missing.fix.startswith("`make images` in the checkout of Slipway")
    assert "SLIPWAY_LOCAL_RUNTIME=process" in missing.fix


def test_an_image_the_project_builds_is_told_with_the_command_that_builds_it(machine, tmp_path):
    (tmp_path / "launcher.yaml").write_text("images: {training: {dockerfile: Dockerfile}, serving: {tag: v2}}\n")
    (tmp_path / "Dockerfile").write_text("FROM slipway-train:local\n")
    found = doctor(machine(programs_text=docker(ENGINE)))
    assert one(found, "training image").fix == "python -m launcher build training"
    assert "slipway-serve:v2 is not" in one(found, "serving image").detail
    assert "make images" in one(found, "serving image").fix  # there is no Dockerfile to build it from


@pytest.mark.parametrize(
    ("environ", "status", "detail"),
    [
        ({}, "warn", "none; --local"),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, "ok", "in the environment"),
        ({"AWS_ACCESS_KEY_ID": "a"}, "fail", "AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}, "ok", "of a role (AWS_WEB_IDENTITY_TOKEN_FILE)"),
        ({"AWS_PROFILE": "nobody"}, "fail", "AWS_PROFILE=nobody is in neither"),
    ],
)
def test_credentials_are_looked_for_where_clients_look(machine, environ, status, detail):
    finding = one(doctor(machine(environ)), "credentials")
    assert finding.status == status
    assert detail in finding.detail


@pytest.mark.parametrize(
    ("text", "environ", "status", "detail"),
    [
        ("[default]\nregion = x\n", {}, "ok", "profile default"),
        ("[profile dev]\n", {"AWS_PROFILE": "dev"}, "ok", "profile dev"),
        ("[profile dev]\n", {}, "warn", "no default profile; there are: dev"),
        ("[profile dev]\n", {"AWS_PROFILE": "prod"}, "fail", "; there are: dev"),
        ("no section\n", {}, "fail", "no section headers"),
    ],
)
def test_a_profile_must_be_in_the_files(machine, tmp_path, text, environ, status, detail):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(text)
    finding = one(doctor(machine(environ)), "credentials")
    assert finding.status == status
    assert detail in finding.detail


def test_a_stale_endpoint_variable_fails_and_a_live_one_is_told(machine):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    finding = one(doctor(machine({"AWS_ENDPOINT_URL": url})), "endpoint")
    assert (finding.status, finding.detail) == ("fail", f"AWS_ENDPOINT_URL={url} and nobody listens there")
    with socket.create_server(("127.0.0.1", port)):
        assert one(doctor(machine({"AWS_ENDPOINT_URL": url})), "endpoint").status == "ok"
    elsewhere = one(doctor(machine({"AWS_ENDPOINT_URL": "https://vpce.example.com"})), "endpoint")
    assert elsewhere.status == "warn"


def test_a_taken_port_is_told(machine):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        finding = one(doctor(machine(port=port)), "port")
    assert finding.status == "warn"
    assert f"{port} is taken" in finding.detail


@pytest.fixture
def containers(machine, tmp_path):
    """An engine with containers of these homes; it notes which ones are removed."""

    def make(*homes, refusal=""):
        listing = "".join(f"id-{number}\\t{home}\\n" for number, home in enumerate(homes))
        text = f"""case "$1" in
info) echo '{json.dumps(ENGINE)}' ;;
ps) printf '{listing}' ;;
rm) echo "$@" >> {tmp_path}/removed; {refusal} ;;
esac"""
        return machine(programs_text={"docker": text})

    return make


def test_containers_of_a_server_that_died_are_told_and_removed(containers, tmp_path):
    alive, dead = tmp_path / "alive", tmp_path / "dead"
    for home in (alive, dead):
        home.mkdir()
    with (alive / "server.alive").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        looked_at = containers(alive, dead, "/not/of/this/machine")
        finding = one(doctor(looked_at), "leftovers")
        assert (finding.status, finding.detail) == ("warn", "1 containers of local SageMakers that died")
        assert fix(looked_at) == ["removed 1 containers of local SageMakers that died"]
    assert (tmp_path / "removed").read_text() == "rm --force id-1\n"


def test_without_leftovers_nothing_is_mended(containers, machine):
    assert fix(containers()) == ["nothing to mend"]
    assert fix(machine()) == ["nothing to mend"]


def test_a_container_that_cannot_be_removed_is_told(containers, tmp_path):
    assert fix(containers(tmp_path, refusal="echo no >&2; exit 1")) == ["1 containers could not be removed: no"]


def test_the_lines_align_and_a_fix_stands_below_its_finding():
    found = [Finding("disk", "ok", "much"), Finding("docker", "fail", "none", "install it", "caller x")]
    assert lines(found) == ["ok    disk    much", "FAIL  docker  caller x: none", "              fix: install it"]


def test_the_exit_status_is_one_where_a_check_failed(monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    assert main() == 1
    assert "FAIL  credentials" in capsys.readouterr().out


def test_the_verb_mends_first_and_then_looks(containers, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", containers(tmp_path).environ["PATH"])
    monkeypatch.chdir(tmp_path)
    cli.main(["doctor", "--fix", "--json"])
    captured = capsys.readouterr()
    assert "-> removed 1 containers of local SageMakers that died" in captured.err
    assert "leftovers" in [item["check"] for item in json.loads(captured.out)]  # the script still lists it
