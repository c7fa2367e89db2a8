"""Every check that `launcher check` knows, in the contract's order; the numbers are those of docs/contract.md."""

from collections.abc import Callable
from dataclasses import dataclass

from launcher.check import image, invocations, multi_model, serving, training
from launcher.check.bench import SERVE, TRAIN, Bench

MUST, SHOULD = "M", "S"
IMAGE, MULTI, MME, BATCH = "image", "multi", "mme", "batch"
STOP, LIMITS = "stop", "limits"  # across the roles


@dataclass(frozen=True)
class Check:
    """One statement of the contract."""

    number: str
    level: str
    """`M`: the platform's contract; `S`: robustness that follows from it."""
    role: str
    """`image`, `train`, `serve`, `batch`, `mme` or `multi`."""
    title: str
    function: Callable[[Bench], None]
    """Passes, or raises CheckFailed or NotJudged."""
    also: str = ""
    """Another group it can be asked for by: `stop` or `limits`."""

    @property
    def groups(self) -> tuple[str, ...]:
        return (self.role, self.also) if self.also else (self.role,)

    @property
    def needs(self) -> str:
        """What the image must be able to do for this check: `train`, `serve`, or "" for any image."""
        if self.role == IMAGE:
            return ""
        return TRAIN if self.role == TRAIN else SERVE


CHECKS = (
    Check("C1", MUST, IMAGE, "ENTRYPOINT is a JSON array with an absolute path", image.entrypoint_is_absolute),
    Check("C2", MUST, TRAIN, "`train` starts the training program", image.train_starts),
    Check("C3", MUST, SERVE, "`serve` becomes healthy", image.serve_starts),
    Check("C4", SHOULD, IMAGE, "an unknown argument is executed or refused", image.unknown_argument_ends),
    Check("C5", MUST, IMAGE, "nothing lies below /opt/ml", image.nothing_below_opt_ml),
    Check("C6", MUST, IMAGE, "no part of the NVIDIA driver", image.no_driver),
    Check("C7", MUST, TRAIN, "a configuration directory of mode 0644 is read", training.survives("C7")),
    Check("C10", SHOULD, IMAGE, "it starts without GPU", image.starts_without_gpu),
    Check("C11", MUST, IMAGE, "SIGTERM reaches PID 1's handler", image.sigterm_is_handled, STOP),
    Check("C12", SHOULD, IMAGE, "PID 1 reaps, or ends with its main child", image.zombies_are_reaped),
    Check("C15", MUST, TRAIN, "no hyperparameters", training.starts_without_hyperparameters),
    Check("C16", MUST, TRAIN, "SageMaker's own hyperparameters", training.survives("C16")),
    Check("C19", MUST, TRAIN, "channels with nothing but TrainingInputMode", training.survives("C19")),
    Check("C21", MUST, TRAIN, "a manifest beside a channel is no channel", training.survives("C21")),
    Check("C22", MUST, TRAIN, "no inputdataconfig.json", training.runs_without_channels),
    Check("C23", MUST, TRAIN, "resourceconfig.json with the hosts only", training.survives("C23")),
    Check("C24", MUST, TRAIN, "unknown keys in resourceconfig.json", training.survives("C24")),
    Check("C30", SHOULD, TRAIN, "unknown files in the configuration directory", training.survives("C30")),
    Check("C33", MUST, TRAIN, "no TRAINING_JOB_NAME", training.survives("C33")),
    Check("C41", MUST, TRAIN, "success: exit code 0 and a model", training.success_leaves_artifacts),
    Check("C42", MUST, TRAIN, "failure: exit code and output/failure", training.failure_is_told),
    Check("C43", MUST, TRAIN, "FailureReason names the error", training.failure_names_the_error),
    Check("C46", MUST, TRAIN, "a killed worker fails the job", training.killed_worker_is_told),
    Check("C47", MUST, TRAIN, "success leaves no output/failure", training.no_failure_file_after_success),
    Check("C48", SHOULD, TRAIN, "missing output directories are created", training.survives("C48")),
    Check("C49", SHOULD, TRAIN, "no symbolic links in the model", training.no_symlinks),
    Check("C51", MUST, TRAIN, "SIGTERM: saved, and ended in 120 s", training.stop_saves, STOP),
    Check("C52", SHOULD, TRAIN, "SIGTERM: exit code 0", training.stop_is_clean, STOP),
    Check("C54", SHOULD, TRAIN, "SIGTERM at the start: ended in 10 s", training.early_stop_is_quick, STOP),
    Check("C58", SHOULD, TRAIN, "no checkpoint directory", training.survives("C58")),
    Check("C69", MUST, TRAIN, "no network", training.survives("C69")),
    Check("C74", MUST, IMAGE, "no argument is a usage error", image.without_argument_it_is_a_usage_error),
    Check("C82", MUST, SERVE, "it listens on 0.0.0.0", serving.listens_everywhere),
    Check("C83", MUST, SERVE, "SAGEMAKER_BIND_TO_PORT", serving.binds_to_the_given_port),
    Check("C84", MUST, SERVE, "a connect takes 250 ms at most, however busy", serving.accepts_while_busy, LIMITS),
    Check("C85", MUST, SERVE, "GET /ping is 200 within 2 s", serving.ping_is_200, LIMITS),
    Check("C86", SHOULD, SERVE, "/ping is not 200 before the model is ready", serving.ping_waits_for_the_model),
    Check("C87", MUST, SERVE, "/ping while every worker is busy", invocations.ping_is_answered_while_busy, LIMITS),
    Check("C88", SHOULD, SERVE, "a broken model ends it, or keeps it unhealthy", serving.broken_model_is_told),
    Check("C89", SHOULD, SERVE, "POST /ping is GET /ping", serving.post_ping_is_get_ping),
    Check("C90", MUST, SERVE, "unknown headers are ignored", invocations.unknown_headers_are_ignored),
    Check("C91", MUST, SERVE, "any Host is served", invocations.any_host_is_served),
    Check("C92", MUST, SERVE, "Content-Type and Accept may be absent", invocations.types_may_be_absent),
    Check("C93", SHOULD, SERVE, "a charset after the Content-Type", invocations.type_parameters_are_ignored),
    Check("C94", SHOULD, SERVE, "bad requests are 415, 406 and 400", invocations.bad_requests_are_4xx),
    Check("C97", MUST, SERVE, "a body of 25 MB is taken", invocations.large_body_gets_an_answer, LIMITS),
    Check("C99", SHOULD, SERVE, "clients that go away do no harm", invocations.disconnects_are_survived),
    Check("C100", SHOULD, SERVE, "a chunked request is read", invocations.chunked_request_is_read),
    Check(
        "C101",
        MUST,
        SERVE,
        "SIGTERM: the request in flight is answered",
        invocations.request_in_flight_is_answered,
        STOP,
    ),
    Check("C104", MUST, SERVE, "the model directory is read-only", serving.model_directory_stays_untouched),
    Check("C106", MUST, SERVE, "empty SAGEMAKER_PROGRAM is unset", serving.empty_script_variables_are_unset),
    Check("C115", MUST, MME, "healthy, and GET /models is empty", multi_model.starts_without_a_model),
    Check("C116", MUST, MME, "POST /models loads, lists and serves", multi_model.loads_a_model),
    Check("C117", MUST, MME, "loading twice is 409", multi_model.loading_twice_is_409),
    Check("C118", MUST, MME, "out of memory is 507", multi_model.no_memory_is_507),
    Check("C119", MUST, MME, "an unknown model is 404", multi_model.unknown_model_is_404),
    Check("C128", MUST, MULTI, "two copies side by side", serving.two_copies_serve_side_by_side),
    Check("C129", MUST, MULTI, "label accept-bind-to-port", image.label_accept_bind_to_port),
    Check("C131", SHOULD, BATCH, "GET /execution-parameters", invocations.execution_parameters_are_valid),
    Check("C133", MUST, BATCH, "a line per record", invocations.records_are_answered_one_by_one),
    Check("C134", SHOULD, BATCH, "no newline at the end", invocations.last_line_is_open),
    Check("C142", SHOULD, SERVE, "another user, read-only root, no /dev/shm", serving.serves_on_serverless),
    Check("C144", MUST, IMAGE, "at most 10 GB", image.fits_serverless, LIMITS),
    Check("C147", MUST, SERVE, "an answer has a Content-Length", invocations.answer_has_a_length),
    # Facts that section 8 does not number; from the notes beside the contract, 1.1 and 1.3.
    Check("manifest", MUST, IMAGE, "one platform, no list of manifests", image.manifest_is_single_platform),
    Check("platform", SHOULD, IMAGE, "built for linux/amd64", image.platform_is_sagemakers),
    Check("user", SHOULD, IMAGE, "runs as root", image.user_is_root),
)

GROUPS = tuple(dict.fromkeys(group for check in CHECKS for group in check.groups))


def roles_of(groups: tuple[str, ...]) -> tuple[str, ...]:
    """What an image must be able to do for these groups to make sense; `stop`, `limits` and `image` say nothing."""
    needs = {check.needs for check in CHECKS if check.role in groups}
    return tuple(role for role in (TRAIN, SERVE) if role in needs)


def select(only: tuple[str, ...], roles: tuple[str, ...]) -> list[Check]:
    """The checks of these groups that an image with these roles can be asked; all groups where none is named."""
    asked = set(only or GROUPS)
    return [check for check in CHECKS if asked & set(check.groups) and (not check.needs or check.needs in roles)]
