"""The page at `/`, driven in a real browser through its debugging pipe."""

import base64
import io
import json
import re

import pytest
from PIL import Image

from container.serve.app import PAGE

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


def test_the_keyboard_is_enough_and_an_error_is_read_in_one_line(start_server, artifact, browser):
    server = start_server(artifact, SLIPWAY_PAGE="true").wait_ready()
    browser.open(server.url)
    browser.wait("!document.getElementById('example').hidden")
    browser.run("document.getElementById('file').click = () => { window.chooser = (window.chooser || 0) + 1 }; null")
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "drop"
    browser.press("Enter")
    browser.press(" ")
    assert browser.run("window.chooser") == 2
    assert browser.run("window.scrollY") == 0
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "body"
    for letter in "[1":
        browser.press(letter)
    browser.press("Tab")
    browser.press("Tab")
    browser.press("Enter")
    status = "document.getElementById('status')"
    browser.wait(f"{status}.textContent.startsWith('400 in ')")
    assert re.match(r"400 in \d+ ms: the body is not JSON", browser.run(f"{status}.textContent"))
    assert browser.run(f"{status}.className") == "failed"
    browser.press("Tab")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#scores tr').length === 10")
    assert re.fullmatch(r"200 in \d+ ms", browser.run(f"{status}.textContent"))


def test_an_image_dropped_anywhere_is_sent_and_a_server_that_went_is_told(start_server, artifact, browser):
    server = start_server(artifact, SLIPWAY_PAGE="true").wait_ready()
    browser.open(server.url)
    browser.wait("!document.getElementById('example').hidden")
    drop = (DROP % base64.b64encode(picture()).decode()).replace('getElementById("drop")', 'querySelector("h1")')
    drop = f"{{ {drop} }}"  # its names are its own, so that it can be run twice
    browser.run(drop)
    browser.wait("document.querySelectorAll('#scores tr').length === 10")
    server.stop()
    browser.run(drop)
    browser.wait("document.getElementById('status').textContent.startsWith('no answer: ')")


def test_the_page_is_off_unless_it_is_asked_for(door, open_door, artifact):
    assert door.request("GET", "/").status == 404
    answer = open_door(artifact, {"SLIPWAY_PAGE": "1"}).request("GET", "/")
    assert (answer.status, answer.body) == (200, PAGE.read_bytes())
    assert answer.headers["content-security-policy"].startswith("default-src 'none';")


def test_the_page_asks_for_nothing_from_elsewhere():
    text = PAGE.read_text()
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\(", text)
