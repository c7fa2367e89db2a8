"""Health rule `gpu_idle`: GPUs that are paid for and hardly used, as the driver sees them."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

SAMPLE_SECONDS = 5.0
WINDOW_SECONDS = 300.0  # long enough for an evaluation, a checkpoint or a compilation in between
IDLE_PERCENT = 10.0

Reader = Callable[[], Sequence[float]]


def nvml_reader() -> Reader | None:
    """Reads the utilization of each GPU in percent; None where there is no driver or no nvidia-ml-py."""
    try:
        import pynvml  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    return lambda: [float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) for handle in handles]


class GpuWatch:
    """A thread that judges the mean utilization of each GPU over the last five minutes, and speaks once."""

    def __init__(self, read: Reader, gpus: int, action: str, stop: Callable[[str], None]) -> None:
        """Begin.

        Args:
            read: utilization in percent by GPU.
            gpus: how many of them this job's ranks use, from the first on.
            action: `warn` or `stop`.
            stop: called with the evidence where the action is `stop`.
        """
        self._read, self._gpus, self._action, self._stop = read, gpus, action, stop
        self._samples: deque[Sequence[float]] = deque(maxlen=max(1, round(WINDOW_SECONDS / SAMPLE_SECONDS)))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu_idle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(SAMPLE_SECONDS)

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._over.wait(SAMPLE_SECONDS):
            self._samples.append(self._read()[: self._gpus])
            if len(self._samples) == self._samples.maxlen and (evidence := self._evidence(time.monotonic() - began)):
                sys.stdout.write(f"health rule gpu_idle ({self._action}): {evidence}\n")
                sys.stdout.flush()
                if self._action == "stop":
                    self._stop(evidence)
                return

    def _evidence(self, seconds: float) -> str:
        means = [sum(column) / len(column) for column in zip(*self._samples, strict=True)]
        idle = [f"GPU {index} {mean:.0f} %" for index, mean in enumerate(means) if mean < IDLE_PERCENT]
        if not idle:
            return ""
        window = min(seconds, WINDOW_SECONDS)
        return (
            f"busy over the last {window:.0f} s: {', '.join(idle)}. Is the model on the GPU, and can the input keep up?"
        )
