"""Checks of what a serving container answers: to requests good and bad, at its stop, in batch transform."""

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from signal import SIGTERM

from container.contract import (
    BATCH_PAYLOAD_BYTES,
    EXECUTION_PARAMETERS_PATH,
    INVOCATIONS_PATH,
    REALTIME_PAYLOAD_BYTES,
)
from launcher.check.bench import Bench
from launcher.check.http import Answer, NoAnswer, Request, send, send_raw
from launcher.check.serving import SETTLE_SECONDS
from launcher.check.started import Server, is_healthy, wait_until_healthy
from launcher.check.target import CheckFailed, NotJudged, wait_for_end, wait_until

DISCONNECTS = 20
ERROR_BODY_CHARACTERS = 2048  # ModelError.OriginalMessage
UNKNOWN_TYPE = "application/x-slipway-unknown"
MALFORMED = b'\x00\xff{"not: anything that parses'
SLOW_REQUESTS = 4
SLOW_HEAD_START_SECONDS = 0.5
RECORDS = 3
LINE_TYPES = ("text/csv", "application/jsonlines", "application/jsonl", "application/x-jsonlines")
MEBIBYTE = 1024 * 1024


# --- /invocations -----------------------------------------------------------------------------------------------------


def unknown_headers_are_ignored(bench: Bench) -> None:
    """C90: unknown headers are ignored."""
    headers = {
        "X-Amzn-SageMaker-Not-Yet-Known": "1",
        "X-Amzn-SageMaker-Target-Variant": "blue",
        "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
        "X-Amzn-Trace-Id": "Root=1-2-3",
        "X-Forwarded-For": "10.0.0.1",
    }
    _need_success(bench.answering_server().invoke(bench.request, headers), "with headers it does not know")


def any_host_is_served(bench: Bench) -> None:
    """C91: any Host is served."""
    address = bench.server.address
    for version, host in (("1.1", "Host: model.aws.local:8080\r\n"), ("1.0", "")):
        answer = send_raw(address, f"GET /ping HTTP/{version}\r\n{host}Connection: close\r\n\r\n")
        if answer.status != 200:
            raise CheckFailed(
                f"/ping is {answer} with {host.strip() or 'no Host header'}, as SageMaker's probes send it; the "
                "endpoint fails with 'did not pass the ping health check'"
            )


def types_may_be_absent(bench: Bench) -> None:
    """C92: Content-Type and Accept may be absent."""
    server = bench.server
    body = bench.materials.request.body if bench.materials.request else b"{}"
    answer = server.post(body, {})
    if answer.status >= 500:
        raise CheckFailed(
            f"without Content-Type and Accept the answer is {answer}: callers that give none get a ModelError"
        )


def type_parameters_are_ignored(bench: Bench) -> None:
    """C93: a charset after the Content-Type."""
    content_type = bench.request.content_type
    if not content_type.startswith(("application/json", "text/")):
        raise NotJudged(f"a charset means nothing for {content_type}")
    headers = {"Content-Type": f"{content_type.partition(';')[0]}; charset=utf-8"}
    _need_success(
        bench.answering_server().invoke(bench.request, headers), f"with Content-Type {headers['Content-Type']!r}"
    )


def bad_requests_are_4xx(bench: Bench) -> None:
    """C94: each kind has its own status, and a body short enough for ModelError."""
    server = bench.answering_server()
    content_type = {"Content-Type": bench.request.content_type}
    cases = {
        415: ("an unknown Content-Type", server.post(bench.request.body, {"Content-Type": UNKNOWN_TYPE})),
        406: ("an unknown Accept", server.post(bench.request.body, content_type | {"Accept": UNKNOWN_TYPE})),
        400: ("a malformed body", server.post(MALFORMED, content_type)),
    }
    wrong = [f"{what} is {answer}, not {status}" for status, (what, answer) in cases.items() if answer.status != status]
    if wrong:
        raise CheckFailed("; ".join(wrong) + ": the caller's ModelError does not say whose mistake it was")
    long = [what for what, answer in cases.values() if len(answer.body) > ERROR_BODY_CHARACTERS]
    if long:
        raise CheckFailed(f"the answer to {long[0]} is longer than 2048 characters: ModelError cuts it")


def large_body_gets_an_answer(bench: Bench) -> None:
    """C97: the request padded to 25 MB: as spaces behind JSON or text, which mean nothing."""
    request, server = bench.request, bench.server
    body = request.body + b" " * (REALTIME_PAYLOAD_BYTES - len(request.body))
    try:
        answer = server.post(body, request.headers)
    except NoAnswer as failure:
        raise CheckFailed(f"a body of 25 MB: {failure}; the caller gets a ModelError without a reason") from failure
    if answer.status == 413:
        raise CheckFailed(
            "a body of 25 MB is refused with 413: the platform lets it through, the server's own limit is lower"
        )


def disconnects_are_survived(bench: Bench) -> None:
    """C99: clients that go away do no harm."""
    request, server = bench.request, bench.answering_server()
    for number in range(DISCONNECTS):
        sent = len(request.body) if number % 2 else len(request.body) // 2
        with contextlib.suppress(OSError), socket.create_connection(server.address, 5) as connection:
            connection.sendall(_head(server, request.content_type, len(request.body)) + request.body[:sent])
    wait_until(lambda: server.running.exit_code is not None or is_healthy(server), SETTLE_SECONDS)
    if not is_healthy(server):
        raise CheckFailed(f"after {DISCONNECTS} clients went away /ping is no longer 200; the instance is replaced")
    try:
        answer = server.invoke(request)
    except NoAnswer as failure:
        raise CheckFailed(f"after {DISCONNECTS} clients went away: {failure}") from failure
    _need_success(answer, f"after {DISCONNECTS} clients went away")


def _head(server: Server, content_type: str, length: int) -> bytes:
    lines = (
        f"POST {INVOCATIONS_PATH} HTTP/1.1",
        f"Host: {server.address[0]}:{server.address[1]}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        "\r\n",
    )
    return "\r\n".join(lines).encode("ascii")


def chunked_request_is_read(bench: Bench) -> None:
    """C100: a chunked request is read."""
    request, server = bench.request, bench.answering_server()
    plain, again = server.invoke(request), server.invoke(request)
    middle = len(request.body) // 2
    parts = [request.body[:middle], request.body[middle:]]
    answer = send(server.address, "POST", INVOCATIONS_PATH, (part for part in parts if part), request.headers)
    _need_success(answer, "with Transfer-Encoding: chunked and no Content-Length, as batch transform sends it")
    if plain.body == again.body != answer.body:
        raise CheckFailed(
            f"a chunked request is answered {answer}, the same with a length {plain}: its body was not read"
        )


def answer_has_a_length(bench: Bench) -> None:
    """C147: an answer has a Content-Length."""
    answer = bench.answering_server().invoke(bench.request)
    if "content-length" not in answer.headers:
        raise CheckFailed(
            "an answer to a plain request has no Content-Length: an asynchronous endpoint fails every invocation with "
            "'did not specify Content-Length'"
        )


def _need_success(answer: Answer, condition: str) -> None:
    if not answer.is_success:
        raise CheckFailed(f"{condition} a request is answered {answer}, otherwise 200; the caller gets a ModelError")


# --- stop -------------------------------------------------------------------------------------------------------------


def slow_server(bench: Bench) -> Server:
    """A server of its own whose requests take seconds, as far as there are such requests.

    Raises:
        CheckFailed: it does not become healthy.
    """
    model = bench.materials.slow_model or bench.model
    return wait_until_healthy(bench.start_server(model=model), bench.patience.startup)


def ping_is_answered_while_busy(bench: Bench) -> None:
    """C87: as many slow requests at once as leave no worker of a small server free."""
    request = bench.materials.slow_request
    if request is None:
        raise NotJudged("no request that takes seconds: give --slow-request FILE")
    server = bench.once(slow_server)
    with ThreadPoolExecutor(SLOW_REQUESTS) as pool:
        answers = [pool.submit(_ask, server, request) for _ in range(SLOW_REQUESTS)]
        time.sleep(SLOW_HEAD_START_SECONDS)
        try:
            answer: Answer | NoAnswer = server.ping()
        except NoAnswer as failure:
            answer = failure
        in_work = sum(not future.done() for future in answers)
    if not (isinstance(answer, Answer) and answer.status == 200):
        raise CheckFailed(
            f"with {SLOW_REQUESTS} requests in work: {answer}; an instance that does not answer /ping within 2 s is "
            "replaced while it works"
        )
    if not in_work:
        raise NotJudged("the slow requests were answered before /ping was")


def request_in_flight_is_answered(bench: Bench) -> None:
    """C101: SIGTERM: the request in flight is answered."""
    request = bench.materials.slow_request or bench.request
    server = bench.once(slow_server)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(_ask, server, request)
        time.sleep(SLOW_HEAD_START_SECONDS if bench.materials.slow_request else 0)
        server.running.signal(SIGTERM)
        code = wait_for_end(server.running, bench.patience.serving_stop)
        server.running.remove()
    answer = asking.result()
    if code is None:
        raise CheckFailed(
            f"SIGTERM did not end serve within {bench.patience.serving_stop:.0f} s: SIGKILL follows, every scale-in "
            "and update cuts requests off"
        )
    if isinstance(answer, Answer) and 400 <= answer.status < 500:
        raise NotJudged(f"the given request is answered {answer}: give one that the model answers with 200")
    if not (isinstance(answer, Answer) and answer.is_success):
        raise CheckFailed(f"the request in flight at SIGTERM: {answer}; every scale-in and update loses requests")


def _ask(server: Server, request: Request) -> Answer | NoAnswer:
    try:
        return server.invoke(request)
    except NoAnswer as failure:
        return failure


# --- batch ------------------------------------------------------------------------------------------------------------


def execution_parameters_are_valid(bench: Bench) -> None:
    """C131: GET /execution-parameters."""
    answer = send(bench.server.address, "GET", EXECUTION_PARAMETERS_PATH)
    if answer.status == 404:
        return
    ignored = "; batch transform ignores it and uses 1 request of 6 MB at a time"
    if answer.status != 200:
        raise CheckFailed(f"GET /execution-parameters is {answer}{ignored}")
    try:
        given = json.loads(answer.body)
        numbers = [given[name] for name in ("MaxConcurrentTransforms", "MaxPayloadInMB")]
        strategy = given["BatchStrategy"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"GET /execution-parameters is {answer}: {error!r}{ignored}") from error
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckFailed(f"GET /execution-parameters is {answer}: whole numbers are expected{ignored}")
    if strategy not in ("SINGLE_RECORD", "MULTI_RECORD"):
        raise CheckFailed(f"BatchStrategy is {strategy!r}, not SINGLE_RECORD or MULTI_RECORD{ignored}")
    if numbers[0] * numbers[1] > BATCH_PAYLOAD_BYTES // MEBIBYTE:
        raise CheckFailed(
            f"MaxConcurrentTransforms times MaxPayloadInMB is {numbers[0] * numbers[1]}, over 100: the job fails"
        )


def records_are_answered_one_by_one(bench: Bench) -> None:
    """C133: with and without a newline at the end, a line per record."""
    request, server = _lines(bench), bench.server
    for ending in (b"", b"\n"):
        answer = server.invoke(replace(request, body=request.body + ending))
        _need_success(answer, f"with {RECORDS} records of {request.content_type}")
        lines = answer.body.rstrip(b"\n").split(b"\n")
        if len(lines) != RECORDS or not all(lines):
            raise CheckFailed(
                f"{RECORDS} records of {request.content_type} {'with' if ending else 'without'} a final newline are "
                f"answered with {len(lines)} lines, {lines.count(b'')} of them blank: joining output with input fails"
            )


def last_line_is_open(bench: Bench) -> None:
    """C134: no newline at the end."""
    answer = bench.server.invoke(_lines(bench))
    _need_success(answer, f"with {RECORDS} records")
    if answer.body.endswith(b"\n"):
        raise CheckFailed("an answer ends in a newline, and AssembleWith=Line adds another: the output has blank lines")


def _lines(bench: Bench) -> Request:
    """A request of several records, answered in lines.

    Raises:
        NotJudged: the user's request is not of lines.
    """
    request = bench.materials.line_request or bench.request
    if request.content_type.partition(";")[0] not in LINE_TYPES:
        raise NotJudged(f"{request.content_type} is not a type of one record per line")
    record = request.body.strip(b"\n").split(b"\n")[0]
    return replace(request, body=b"\n".join([record] * RECORDS), accept=request.content_type)
