"""The event loop's side of the core: requests go to the compute threads once per turn of the loop, answers come back.

What one turn of the loop has read and is known to be quick is answered at once (see `Quick`). The rest is handed over
together, so that the compute threads are woken once for all of it. While the model is quick the loop then waits until
all of it is answered, some milliseconds at most, and is woken once for all answers: threads that take turns for each
request cost more than echoing it. A slow prediction cannot hold the loop longer than that. With several compute threads
it does not wait: one of them could be idle while the request for it has not been read.
"""

import asyncio
import contextlib
import logging
import math
import sys
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import Protocol

from container.serve.call import Call
from container.serve.exchange import Response
from container.serve.service import Service

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25  # how soon a deadline is noticed; a shorter request never pays for it
PATIENCE_SECONDS = 0.005  # so long the loop waits for what one turn has asked
PAUSE_SECONDS = 0.01  # after a wait in vain the loop does not wait for so long, after the next for twice as long,
LONGEST_PAUSE_SECONDS = 1.0  # and so on up to this: a slow model costs it half a percent of its time


class Waiter(Protocol):
    """Who waits on the event loop for the answer to a call."""

    call: Call

    def take(self, response: Response) -> None:
        """Have the answer; on the event loop, once."""


class Front:
    """Between one event loop and a service. All methods but `deliver` belong to the loop's thread."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._loop = loop
        self._turn: list[tuple[Call, str | None]] = []
        self._waiting: set[Waiter] = set()
        self._looking = False
        self._answers: deque[tuple[Waiter, Response]] = deque()
        self._awaited = 0
        """How many answers the loop waits for; 0: it does not, and must be woken."""
        self._complete: SimpleQueue[None] = SimpleQueue()
        """Gets something when they are there."""
        self._woken = False
        self._pause = PAUSE_SECONDS
        self._wait_again = 0.0 if service.plan.compute_threads == 1 else math.inf

    def submit(self, waiter: Waiter, model: str | None) -> None:
        """Have `waiter.call` answered; `waiter.take` gets the answer unless the waiter is forgotten before."""
        self._waiting.add(waiter)
        if not self._looking:
            self._looking = True
            self._loop.call_later(LOOK_SECONDS, self._look)
        if not self._turn:
            self._loop.call_soon(self._hand_over)
        self._turn.append((waiter.call, model))

    def forget(self, waiter: Waiter) -> None:
        """Nobody waits any more: work that has not begun is dropped."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            waiter.call.cancel()
            del waiter.call  # which knows the waiter

    def deliver(self, waiter: Waiter, response: Response) -> None:
        """Give the answer; from any thread."""
        self._answers.append((waiter, response))
        if self._awaited:
            if len(self._answers) >= self._awaited:
                self._complete.put(None)
        elif not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped and nobody waits
                self._loop.call_soon_threadsafe(self._take_answers)

    def _hand_over(self) -> None:
        turn, self._turn = self._turn, []
        self._awaited = sys.maxsize  # what is answered here wakes nobody
        try:
            turn = self._service.answer_at_once(turn)
        except Exception:  # of the server's own: it must not cost a whole turn its answers
            logger.exception("what was to be answered at once goes to the compute threads")
            turn = [(call, model) for call, model in turn if not call.answered]
        finally:
            self._awaited = 0
        self._take_answers()
        if turn:
            self._hand_to_threads(turn)

    def _hand_to_threads(self, turn: list[tuple[Call, str | None]]) -> None:
        waits = time.monotonic() >= self._wait_again
        if waits:
            self._awaited = len(turn)
        for call, model in turn:
            self._service.submit(call, model)
        if waits:
            try:
                self._wait(len(turn))
            finally:
                self._awaited = 0
            self._take_answers()  # what came in before the line above has woken nobody

    def _wait(self, count: int) -> None:
        """Until so many answers are there, as long as they come quickly."""
        until = time.monotonic() + PATIENCE_SECONDS
        while len(self._answers) < count:
            try:
                self._complete.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                self._wait_again = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
                return
        self._pause = PAUSE_SECONDS

    def _take_answers(self) -> None:
        self._woken = False  # before looking: what is delivered from here on wakes the loop again
        while self._answers:
            self._take(*self._answers.popleft())

    def _take(self, waiter: Waiter, response: Response) -> None:
        if waiter in self._waiting:  # else its client has left, or it was past its deadline
            self._waiting.remove(waiter)
            self._service.answered(waiter.call, response)
            waiter.take(response)

    def _look(self) -> None:
        """Answer what is past its deadline; called every moment while requests wait."""
        limit = self._service.plan.request_timeout_seconds
        for waiter in [waiter for waiter in self._waiting if self._service.age(waiter.call) > limit]:
            waiter.call.cancel()
            self._take(waiter, self._service.deadline_exceeded(waiter.call).response())
        self._looking = bool(self._waiting)
        if self._looking:
            self._loop.call_later(LOOK_SECONDS, self._look)
