"""What user code does beside its functions' business, and none of it may surprise anybody: one server, many habits."""

import json
import re
import textwrap

import pytest

CODE = """
    import multiprocessing, os, pickle, sys, threading
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    pool = ThreadPoolExecutor(2)
    os.chdir("/")

    class Answer:
        value = 7

    def square(number):
        return number * number

    def spawned():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
            return list(processes.map(square, range(3)))

    def forked():
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as processes:
            return list(processes.map(square, range(3)))

    def pooled():
        return list(pool.map(square, range(3)))

    def printed():
        print("a line of the user's")
        return 1

    def changed_directory():
        os.chdir("/tmp")
        import beside
        return beside.VALUE

    def pickled():
        return pickle.loads(b"cinference\\nAnswer\\n.") is Answer

    def exited():
        sys.exit(0)

    def wrote_where_it_may_not():
        import errno
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/opt/ml/model/cache")

    def many_lines():
        for number in range(2000):
            print(number, "x" * 100)
        sys.stdout.write("no newline")
        return 1

    def predict_fn(data, model):
        return globals()[data]()
"""


@pytest.fixture(scope="module")
def server(shared_server, tmp_path_factory):
    directory = tmp_path_factory.mktemp("submitted")
    (directory / "inference.py").write_text(textwrap.dedent(CODE))
    (directory / "beside.py").write_text("VALUE = 9")
    return shared_server("", SAGEMAKER_MODEL_SERVER_WORKERS="1", SAGEMAKER_SUBMIT_DIRECTORY=str(directory))


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("spawned", [0, 1, 4]),
        ("forked", [0, 1, 4]),
        ("pooled", [0, 1, 4]),
        ("changed_directory", 9),
        ("pickled", True),
        ("many_lines", 1),
    ],
)
def test_a_habit_of_user_code_works(server, what, answer):
    assert ask(server, what) == (200, answer)


def test_a_line_that_user_code_prints_is_in_the_log_at_once(server):
    assert ask(server, "printed") == (200, 1)
    assert "a line of the user's\n" in server.log.read_text()


def test_code_that_exits_in_a_request_ends_that_request_alone(server):
    workers = server.workers()
    status, body = ask(server, "exited")
    assert status == 500
    assert re.search(rf"request failed id={body['id']} .*inference.py:\d+: SystemExit: 0\n", server.log.read_text())
    assert server.workers() == workers


def test_a_request_that_fails_for_its_machine_says_what_to_do(server):
    _, body = ask(server, "wrote_where_it_may_not")
    line = next(line for line in server.log.read_text().splitlines() if body["id"] in line)
    assert re.search(r" \[read-only\] .*inference.py:\d+: OSError: .*'/opt/ml/model/cache'; fix: .* below /tmp$", line)


def ask(server, what):
    answer = server.request("POST", "/invocations", json.dumps(what).encode(), {"Content-Type": "application/json"})
    return answer.status, json.loads(answer.body)
