import json
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_handlers_example_counts_words_and_streams_them(start_server):
    server = start_server(EXAMPLES / "serve-handlers" / "model", SAGEMAKER_MODEL_SERVER_WORKERS="1").wait_ready()
    text = {"Content-Type": "text/plain"}
    answer = server.request("POST", "/invocations", b"the cat and the other cat", text)
    assert json.loads(answer.body) == {"cat": 2, "other": 1}
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "words=6"
    stream = server.request("POST", "/invocations", b"one two two", {**text, "Accept": "text/event-stream"})
    assert stream.body == b"data: one 1\n\ndata: two 2\n\n"
    assert stream.headers["content-type"] == "text/event-stream"
    assert not list((EXAMPLES / "serve-handlers").rglob("__pycache__"))
