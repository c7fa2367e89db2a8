import http.client
import json
import re
import threading
import time

import pytest

from container.serve.exchange import BadRequest
from container.serve.sessions import SessionStore

HEADER = "X-Amzn-SageMaker-Session-Id"
ANNOUNCED = re.compile(r"([a-zA-Z0-9](-*[a-zA-Z0-9])*); Expires=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
COUNTER = """
    def predict_fn(data, model, context):
        if context.session is None:
            return "no session"
        count = context.session.directory / "count"
        number = int(count.read_text()) + 1 if count.exists() else 1
        count.write_text(str(number))
        if data == "close":
            context.close_session()
        return number
"""


@pytest.fixture
def door(open_door, user_model, tmp_path):
    return open_door(user_model(COUNTER), {"SAGEMAKER_SESSIONS_PATH": str(tmp_path / "sessions")})


def ask(door, session=None, data="go"):
    headers = {"Content-Type": "application/json", **({HEADER: session} if session else {})}
    return door.request("POST", "/invocations", json.dumps(data).encode(), headers)


def test_c111_a_new_session_is_announced_in_both_headers_continued_and_closed(door):
    opened = ask(door, "NEW_SESSION")
    announced = opened.headers["x-amzn-sagemaker-session-id"]
    assert announced == opened.headers["x-amzn-sagemaker-new-session-id"]
    identity = ANNOUNCED.fullmatch(announced)[1]
    continued = ask(door, identity)
    assert continued.body == b"2"
    assert "x-amzn-sagemaker-new-session-id" not in continued.headers
    closed = ask(door, identity, "close")
    assert closed.headers["x-amzn-sagemaker-closed-session-id"] == identity
    gone = ask(door, identity)
    assert gone.status == 400
    assert "closed or expired" in json.loads(gone.body)["error"]


def test_c111_two_sessions_do_not_share_their_state_and_a_request_without_one_has_none(door):
    first, second = (
        ANNOUNCED.fullmatch(ask(door, "NEW_SESSION").headers["x-amzn-sagemaker-session-id"])[1] for _ in "ab"
    )
    assert [ask(door, first).body, ask(door, first).body, ask(door, second).body] == [b"2", b"3", b"2"]
    assert ask(door).body == b"no session"


@pytest.mark.parametrize("session", ["unknown", "../../etc", "-a", "a" * 300, "a b"])
def test_c111_an_unknown_or_malformed_id_is_400(door, session):
    assert ask(door, session).status == 400


def test_c111_another_process_finds_the_session_until_it_expires(tmp_path):
    one, other = SessionStore(tmp_path, 60), SessionStore(tmp_path, 60)
    session = one.find("NEW_SESSION")
    assert other.find(session.id).directory == session.directory
    SessionStore(tmp_path, -1).find(session.id)  # its time begins anew, and is over at once
    with pytest.raises(BadRequest, match="expired"):
        one.find(session.id)
    assert not session.directory.exists()


def test_expired_sessions_are_cleared_away_when_a_new_one_begins(tmp_path):
    old = SessionStore(tmp_path, -1).find("NEW_SESSION")
    SessionStore(tmp_path, 60).find("NEW_SESSION")
    assert not old.directory.exists()


def test_c111_processes_that_use_one_session_at_once_never_see_it_expired(tmp_path):
    session = SessionStore(tmp_path, 60).find("NEW_SESSION")
    failures = []

    def use():
        store = SessionStore(tmp_path, 60)
        for number in range(300):
            try:
                store.find(session.id)
                if number % 50 == 0:
                    store.find("NEW_SESSION")  # looks at the others' expiry, too
            except BadRequest as error:
                failures.append(error)

    run_all([threading.Thread(target=use) for _ in range(8)])
    assert failures == []


def test_c111_a_session_closed_while_others_use_it_is_unknown_to_them_and_no_error(tmp_path):
    store = SessionStore(tmp_path, 60)
    seen = []

    def use(identity):
        for _ in range(200):
            try:
                SessionStore(tmp_path, 60).find(identity)
            except BadRequest as error:
                seen.append(str(error))

    for _ in range(5):
        session = store.find("NEW_SESSION")
        threads = [threading.Thread(target=use, args=(session.id,)) for _ in range(3)]
        threads.append(threading.Thread(target=store.close, args=(session,)))
        run_all(threads)
        assert not session.directory.exists()
    assert all("unknown, closed or expired" in message for message in seen)


def run_all(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_c111_whichever_process_answers_the_session_goes_on(start_server, user_model, tmp_path):
    server = start_server(
        user_model(COUNTER.replace("return number", "return [number, __import__('os').getpid()]")),
        SAGEMAKER_MODEL_SERVER_WORKERS="2",
        SAGEMAKER_SESSIONS_PATH=str(tmp_path / "sessions"),
    ).wait_ready()
    opened = ask(server, "NEW_SESSION")
    identity = ANNOUNCED.fullmatch(opened.headers["x-amzn-sagemaker-session-id"])[1]
    number, processes = 1, set()
    deadline = time.monotonic() + 60
    while len(processes) < 2:
        assert time.monotonic() < deadline, "one process answers everything"
        number += 1
        # Several at once, so that one process alone does not get every connection.
        connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(3)]
        for connection in connections:
            connection.connect()
        headers = {"Content-Type": "application/json", HEADER: identity}
        connections[number % 3].request("POST", "/invocations", b'"go"', headers)
        count, process = json.loads(connections[number % 3].getresponse().read())
        assert count == number
        processes.add(process)
        for connection in connections:
            connection.close()
