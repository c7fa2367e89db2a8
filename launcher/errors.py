"""What can go wrong, one class per thing the caller can do about it; each carries the process's exit status."""

# flow:  YAML, arguments --ConfigError--> fix the file
#        request --AwsRefused--> fix what the message names
#        job --JobFailed--> read the log; --TimedOut--> allow more time


class LauncherError(Exception):
    """A failure that is told in one line, without a traceback."""

    exit_code = 1


class ConfigError(LauncherError):
    """The configuration or the command line is wrong; nothing has been sent."""

    exit_code = 2


class AwsRefused(LauncherError):
    """AWS, or the local SageMaker, refused a request."""

    exit_code = 4

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """The service's word for it, such as `ValidationException`; empty where there was no answer."""


class JobFailed(LauncherError):
    """A job, endpoint or check ended badly."""

    exit_code = 5


class JobStopped(JobFailed):
    """Somebody stopped a job before it had finished: no error, and no result either."""


class TimedOut(LauncherError):
    """Something did not end in the time it was given."""

    exit_code = 6


class Detached(LauncherError):
    """The user stopped watching; the job goes on."""

    exit_code = 130
