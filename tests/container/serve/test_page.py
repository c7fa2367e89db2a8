"""The page at `/`, driven in a real browser through its debugging pipe."""

import base64
import io
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time

import pytest
from PIL import Image

from container.serve.app import PAGE

BROWSER = shutil.which("chromium")
DROP = """
const bytes = Uint8Array.from(atob("%s"), letter => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "digit.png", {type: "image/png"}));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
"""
TYPE = """
document.getElementById("kind").value = %s;
document.getElementById("body").value = %s;
document.querySelector("form button").click();
"""


class Browser:
    """A page of a headless chromium; commands and answers are JSON between zero bytes on file descriptors 3 and 4."""

    def __init__(self, directory):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        script = f"exec {BROWSER} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage"
        script += f" --remote-debugging-pipe --user-data-dir={directory} about:blank 3<&{commands} 4>&{answers}"
        self._process = subprocess.Popen(
            ["bash", "-c", script], pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}

    def _call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            while b"\0" not in self._buffer:
                assert select.select([self._answers], [], [], max(0, deadline - time.monotonic()))[0], method
                piece = os.read(self._answers, 65536)
                assert piece, "the browser has ended"
                self._buffer += piece
            message, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url):
        self._call("Page.navigate", url=url)

    def run(self, script):
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script):
        deadline = time.monotonic() + 60
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"))
            time.sleep(0.05)
        return value

    def close(self):
        self._call("Browser.close")
        os.close(self._commands)
        self._process.wait(60)
        os.close(self._answers)


@pytest.fixture
def browser(tmp_path):
    if not BROWSER and not os.environ.get("CI"):
        pytest.skip("no chromium: apt-get install chromium")
    page = Browser(tmp_path / "browser")
    yield page
    page.close()


def picture():
    buffer = io.BytesIO()
    Image.new("L", (20, 20), 200).save(buffer, "PNG")
    return buffer.getvalue()


def rows(browser):
    return browser.run("[...document.querySelectorAll('#scores tr')].map(row => row.cells[0].textContent)")


def test_a_person_drops_an_image_or_pastes_a_request_and_sees_the_answer(start_server, artifact, browser):
    server = start_server(artifact, SLIPWAY_PAGE="true").wait_ready()
    expected = json.loads(server.request("POST", "/invocations", picture(), {"Content-Type": "image/png"}).body)
    best = expected["predictions"][0]
    browser.open(server.url)
    browser.wait("document.title === 'Slipway: try the model' && !document.getElementById('example').hidden")
    assert "10 classes" in browser.run("document.getElementById('title').textContent")
    browser.run(DROP % base64.b64encode(picture()).decode())
    browser.wait("document.querySelectorAll('#scores tr').length === 10")
    assert rows(browser)[0] == best["label"]
    answer = json.loads(browser.run("document.getElementById('answer').textContent"))["predictions"][0]
    assert answer["probabilities"] == pytest.approx(best["probabilities"], abs=1e-3)
    assert f"{100 * answer['score']:.1f} %" in browser.run("document.getElementById('scores').textContent")
    assert browser.wait("document.getElementById('picture').naturalWidth") == 20
    for kind, body, status in [("text/csv", ",".join(["9"] * 64), 200), ("application/json", "<b>[1", 400)]:
        browser.run(TYPE % (json.dumps(kind), json.dumps(body)))
        browser.wait(f"document.getElementById('status').textContent.startsWith('{status} in ')")
    assert rows(browser) == []
    assert "not JSON" in browser.run("document.getElementById('answer').textContent")
    browser.run("document.getElementById('example').click()")
    browser.wait("document.querySelectorAll('#scores tr').length === 10")


def test_the_page_is_off_unless_it_is_asked_for(door, open_door, artifact):
    assert door.request("GET", "/").status == 404
    answer = open_door(artifact, {"SLIPWAY_PAGE": "1"}).request("GET", "/")
    assert (answer.status, answer.body) == (200, PAGE.read_bytes())
    assert answer.headers["content-security-policy"].startswith("default-src 'none';")


def test_the_page_asks_for_nothing_from_elsewhere():
    text = PAGE.read_text()
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\(", text)
