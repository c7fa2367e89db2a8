"""What changes one endpoint or component, in the background, one change after the other, until its end."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

logger = logging.getLogger(__name__)


class Changes:
    """The changes of one resource; safe to use from any thread."""

    def __init__(self, name: str, on_defect: Callable[[str], None]) -> None:
        """Begin without any.

        Args:
            name: of the resource, for threads and the log.
            on_defect: told when a change raises what none should: the resource must not stay as it is in its middle.
        """
        self.ended = threading.Event()
        self._name = name
        self._on_defect = on_defect
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"change {name}")

    def submit(self, change: Callable[[], None]) -> None:
        """Do this after what was submitted before; after the end, nothing is done."""
        with self._lock:
            if not self.ended.is_set():
                self._executor.submit(self._run, change)

    def end(self) -> None:
        """Start no other change, and wait for the one under way, which `ended` tells to hurry."""
        with self._lock:
            self.ended.set()
        self._executor.shutdown(wait=True)

    def _run(self, change: Callable[[], None]) -> None:
        if self.ended.is_set():
            return
        try:
            change()
        except Exception as error:  # a defect of ours: the trace is in the server's log
            logger.exception("%s", self._name)
            self._on_defect(f"InternalServerError: {type(error).__name__}: {error}")
