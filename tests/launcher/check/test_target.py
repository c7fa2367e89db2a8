"""Starting things, looking into them, and talking HTTP to them."""

import signal
import socket
import sys
from pathlib import Path

import pytest

from container.contract import OptMl
from launcher.check.docker_target import create_argv
from launcher.check.http import NoAnswer, connect_seconds, is_reachable, ping, send, send_raw
from launcher.check.process_target import ProcessTarget
from launcher.check.target import CannotStart, Launch, NotJudged, parse_listening, wait_for_end, wait_until
from launcher.local.containers import free_port

PYTHON = ProcessTarget((sys.executable, "-c"))


def test_the_socket_table_names_addresses_as_people_do():
    rows = [
        "sl local_address rem_address st tx:rx tr:tm retr uid timeout inode",
        "0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 0 0 11 1",
        "1: 00000000:1F91 00000000:0000 0A 0:0 0:0 0 0 0 12 1",
        "2: 0100007F:9999 00000000:0000 01 0:0 0:0 0 0 0 13 1",
        "3: 00000000000000000000000000000000:0050 0:0 0A 0:0 0:0 0 0 0 14 1",
        "4: 00000000000000000000000001000000:0051 0:0 0A 0:0 0:0 0 0 0 15 1",
        "5: 0000000000000000FFFF00000100007F:0052 0:0 0A 0:0 0:0 0 0 0 16 1",
    ]
    assert parse_listening("\n".join(rows)) == {
        "11": ("127.0.0.1", 8080),
        "12": ("0.0.0.0", 8081),
        "14": ("::", 80),
        "15": ("::1", 81),
        "16": ("0000000000000000ffff00000100007f", 82),
    }


def test_a_launch_becomes_a_docker_command_line(tmp_path):
    launch = Launch(("train",), {"A": "b c"}, OptMl(tmp_path), {Path("model"): tmp_path}, network=False)
    assert create_argv("image:1", launch, "l=1") == [
        "create",
        "--label",
        "l=1",
        "--env=A=b c",
        "--network=none",
        f"--volume={tmp_path}:/opt/ml",
        f"--volume={tmp_path}:/opt/ml/model:ro",
        "image:1",
        "train",
    ]
    hardened = create_argv("image:1", Launch(("serve",), ports=(8080, 9000), hardened=True), "l=1")
    assert {"--publish=127.0.0.1::8080", "--publish=127.0.0.1::9000", "--read-only"} <= set(hardened)


def test_removing_a_process_ends_what_left_its_group():
    script = "import subprocess, time; subprocess.Popen(['sleep', '60'], start_new_session=True); time.sleep(60)"
    running = PYTHON.start(Launch((script,)))
    assert wait_until(lambda: len(running.processes()) == 2, 10)
    pids = [process.pid for process in running.processes()]
    running.remove()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids), 10)


def is_alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_ended_by_a_signal_has_a_containers_exit_code():
    running = PYTHON.start(Launch(("import time; time.sleep(60)",)))
    running.signal(signal.SIGKILL)
    assert wait_for_end(running, 10) == 137
    running.remove()
    with pytest.raises(NotJudged, match="status"):
        running.first_process_file("status")


def test_a_process_has_no_image_and_runs_no_other_command():
    with pytest.raises(NotJudged, match="launcher check IMAGE"):
        PYTHON.image()
    running = PYTHON.start(Launch(("print('x')",)))
    with pytest.raises(NotJudged, match="no container"):
        running.execute("true")
    running.remove()


def test_a_command_that_is_not_there_cannot_start():
    with pytest.raises(CannotStart, match="/no/such/program"):
        ProcessTarget(("/no/such/program",)).start(Launch(("train",)))


def test_no_answer_says_why():
    address = ("127.0.0.1", free_port())
    for ask in (lambda: ping(address), lambda: send_raw(address, "GET /ping HTTP/1.0\r\n\r\n")):
        with pytest.raises(NoAnswer, match="GET /ping got no answer: ConnectionRefused"):
            ask()
    with pytest.raises(NoAnswer, match="TCP connect"):
        connect_seconds(address, 1)
    assert is_reachable(*address)  # a refusal comes from a machine that is there


def test_silence_is_no_answer_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(NoAnswer, match="in time"):
        send(listener.getsockname(), "GET", "/ping", seconds=0.2)


def test_an_address_without_a_host_is_not_reachable():
    assert not is_reachable("host.invalid", 80)
