"""Running checks: each one ends as passed, failed or not judged, and none stops the next."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from launcher.check.bench import Bench
from launcher.check.docker_target import DockerError
from launcher.check.table import MUST, Check
from launcher.check.target import CannotStart, CheckFailed, NotJudged

PASSED, FAILED, NOT_JUDGED = "passed", "failed", "not judged"
STARTS = {"C2", "C3"}  # the checks that say so when a container does not start; the others point to them


@dataclass(frozen=True)
class Result:
    """What became of a check."""

    check: Check
    outcome: str
    message: str
    """What was seen and what SageMaker would have done; or why it was not judged; "" for a pass."""
    seconds: float

    @property
    def failed(self) -> bool:
        return self.outcome == FAILED

    @property
    def breaks_the_contract(self) -> bool:
        return self.failed and self.check.level == MUST


def run_checks(checks: Iterable[Check], bench: Bench, tell: Callable[[Result], None]) -> list[Result]:
    """Run them in their order; `tell` hears each result at once."""
    results = []
    for check in checks:
        started = time.monotonic()
        outcome, message = judge(check, bench)
        results.append(Result(check, outcome, " ".join(message.split()), time.monotonic() - started))
        tell(results[-1])
    return results


def judge(check: Check, bench: Bench) -> tuple[str, str]:
    """Outcome and message of one check."""
    try:
        check.function(bench)
    except CannotStart as failure:
        if check.number in STARTS:
            return FAILED, str(failure)
        return NOT_JUDGED, "the container cannot be started, see C2 or C3"
    except CheckFailed as failure:
        return FAILED, str(failure)
    except NotJudged as reason:
        return NOT_JUDGED, str(reason)
    except DockerError as error:
        return NOT_JUDGED, f"the engine failed: {error}"
    return PASSED, ""
