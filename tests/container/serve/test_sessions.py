import json
import re

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
