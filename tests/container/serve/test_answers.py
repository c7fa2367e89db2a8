import pytest

from container.serve.answers import answer
from container.serve.call import Call
from container.serve.exchange import Request
from container.serve.handlers import Context


def test_a_stream_that_breaks_off_says_in_the_log_where_and_why(caplog):
    def pieces():
        yield "one "
        raise RuntimeError("the tokenizer is gone")

    call = Call(Request("POST", "/invocations", {}), lambda response: None)
    call.context = Context({}, "/model", "cpu")
    call.context.stream = True
    body = answer(pieces(), "text/plain", call, {}).body
    assert next(body) == b"one "
    with pytest.raises(RuntimeError):
        next(body)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the answer broke off: ")
    assert "test_answers.py:" in line
    assert line.endswith("RuntimeError: the tokenizer is gone")
