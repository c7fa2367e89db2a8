"""What user code has started ends with the process that started it."""

import os
import signal
import time
from pathlib import Path

ONE_PROCESS = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
POOL = """
    import os, subprocess
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(1)
    daemon = subprocess.run("sleep 600 >/dev/null 2>&1 & echo $!", shell=True, capture_output=True, text=True).stdout

    def predict_fn(data, model):
        return [os.getpid(), pool.submit(os.getpid).result(), int(daemon)]
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(server):
    answer = server.request("POST", "/invocations", b"[1]", {"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    return [int(number) for number in answer.body.decode().strip("[]").split(",")]


def test_a_pool_ends_with_the_process_that_opened_it_and_a_daemon_with_the_server(start_server, user_model):
    server = start_server(user_model(POOL), **ONE_PROCESS).wait_ready()
    worker, pooled, daemon = ask(server)
    time.sleep(1.5)  # the master looks at its children every second
    assert alive(pooled)
    assert alive(daemon)
    os.kill(worker, signal.SIGKILL)
    until(lambda: not alive(pooled))
    until(lambda: set(server.workers()) - {worker, daemon})
    server.wait_ready()
    replaced, again, own = ask(server)
    assert replaced != worker
    assert alive(daemon), "it was left to itself while its process lived"
    server.stop()
    until(lambda: not any(map(alive, (replaced, again, daemon, own))))
