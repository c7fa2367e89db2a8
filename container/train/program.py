"""Which program a training job runs, and getting a user's code to where it can run."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from container import contract
from container.contract import decode_hyperparameter
from container.train.environment import TrainingEnvironment
from container.train.hyperparameters import HyperparameterError
from container.train.settings import Settings

logger = logging.getLogger(__name__)

BUILTIN_MODULE = "container.train.classify"
DEFAULT_SCRIPT = "train.py"


class ProgramError(Exception):
    """The job names a program that is not there or cannot be prepared."""


@dataclass(frozen=True)
class Program:
    """Something to run on every rank, or, for a command, once per host."""

    name: str
    """As the user gave it: `train.py`, `train.sh`, a package; `container.train.classify` when built in."""
    kind: str
    """`script`, `package`, `command` or `builtin`."""
    directory: Path | None = None
    """Working directory: the user's code."""

    @property
    def user_entry_point(self) -> str | None:
        return None if self.kind == "builtin" else self.name


def find_program(environment: TrainingEnvironment, environ: Mapping[str, str]) -> Program:
    """The user's program, with its code in place and its requirements installed; else the built-in one.

    The program's name comes from `SAGEMAKER_PROGRAM`, then from the hyperparameter `sagemaker_program`; an empty one is
    no name. Its code comes from `sagemaker_submit_directory`, the `code` channel, the code directory below `/opt/ml`,
    or the image.

    Raises:
        ProgramError: the code or the named program is missing, or its requirements cannot be installed.
    """
    named = _setting(environment, environ, contract.PROGRAM, contract.PROGRAM_HYPERPARAMETER)
    directory = code_directory(environment, environ, named or DEFAULT_SCRIPT)
    if directory is None:
        if named:
            raise ProgramError(
                f"program {named!r} is nowhere: no sagemaker_submit_directory, no channel {contract.CODE_CHANNEL!r}, "
                f"and neither {environment.opt_ml.code} nor {contract.IMAGE_CODE_DIR} holds it"
            )
        return Program(BUILTIN_MODULE, "builtin")
    program = Program(named or DEFAULT_SCRIPT, _kind(directory, named or DEFAULT_SCRIPT), directory)
    _check(program)
    _install_requirements(program)
    if program.kind == "script":
        _warn_of_bool((directory / program.name).read_text("utf-8", "replace"), environment)
    return program


def _warn_of_bool(script: str, environment: TrainingEnvironment) -> None:
    """Say it where a script is told False and will take it for True: bool("False") is."""
    for name in (name for name, value in environment.hyperparameters.items() if value is False):
        if re.search(rf"""["']--{re.escape(name)}["'][^)]*\btype\s*=\s*bool\b""", script):
            logger.warning("--%s False is True to the script: of argparse use type=ast.literal_eval, not bool", name)


def check_builtin_job(environment: TrainingEnvironment) -> None:
    """What can be wrong about a job of the built-in program before it starts.

    Raises:
        HyperparameterError: see `Settings.from_hyperparameters`; or a setting needs a channel that the job lacks.
        ProgramError: channel `train` is missing.
    """
    settings = Settings.from_hyperparameters(environment.hyperparameters)
    if settings.patience and "validation" not in environment.channels:
        raise HyperparameterError(f"patience={settings.patience} needs channel 'validation': it follows its accuracy")
    if "train" not in environment.channels:
        found = ", ".join(sorted(environment.channels)) or "none"
        raise ProgramError(
            f"missing channel 'train' (found: {found}); without a script the built-in program runs, and it trains on "
            "the <class>/<image> files of that channel"
        )


def _setting(environment: TrainingEnvironment, environ: Mapping[str, str], variable: str, hyperparameter: str) -> str:
    """A script-mode setting from its variable or its hyperparameter, JSON-quoted or not; "" where unset."""
    value = decode_hyperparameter(environ.get(variable, "")) or environment.reserved_hyperparameters.get(hyperparameter)
    return str(value or "").strip()


def code_directory(environment: TrainingEnvironment, environ: Mapping[str, str], program: str) -> Path | None:
    """Where the user's code lies, after unpacking; None when the job brings none.

    Raises:
        ProgramError: what should hold it is missing or cannot be fetched.
    """
    opt_ml = environment.opt_ml
    submitted = _setting(environment, environ, contract.SUBMIT_DIRECTORY, contract.SUBMIT_DIRECTORY_HYPERPARAMETER)
    if submitted:
        return _unpack(submitted, opt_ml.code)
    if contract.CODE_CHANNEL in environment.channels:
        channel = opt_ml.channel(contract.CODE_CHANNEL)
        tarball = channel / contract.SOURCE_TARBALL
        return _unpack(str(tarball), opt_ml.code) if tarball.is_file() else channel
    return next((path for path in (opt_ml.code, contract.IMAGE_CODE_DIR) if (path / program).exists()), None)


def _unpack(source: str, destination: Path) -> Path:
    """A directory, tarball or S3 tarball into `destination`, by sagemaker-training's own delivery (design D5)."""
    if not source.startswith("s3://") and not Path(source).exists():
        raise ProgramError(f"{contract.SUBMIT_DIRECTORY_HYPERPARAMETER}={source!r} does not exist in the container")
    from sagemaker_training import files  # half a second of boto3, paid by this path only

    try:
        files.download_and_extract(source, str(destination))
    except Exception as error:  # botocore's, tarfile's and the toolkit's errors share no base class
        raise ProgramError(
            f"cannot fetch the code from {source}: {type(error).__name__}: {error}. "
            "Under network isolation S3 is out of reach: deliver the code as a channel named 'code'"
        ) from error
    return destination


def _kind(directory: Path, name: str) -> str:
    if name.endswith(".py"):
        return "script"
    if (directory / name).is_dir() or (directory / f"{name}.py").is_file():
        return "package"
    return "command"


def _check(program: Program) -> None:
    assert program.directory is not None  # only the built-in program has none
    path = program.directory / program.name
    if program.kind != "package" and not path.is_file():
        found = sorted(entry.name for entry in program.directory.iterdir())[:20]
        raise ProgramError(
            f"{path} does not exist; {program.directory} holds {', '.join(found) or 'nothing'}. "
            f"Name the entry script in {contract.PROGRAM_HYPERPARAMETER} or {contract.PROGRAM}"
        )


def _install_requirements(program: Program) -> None:
    directory = str(program.directory)
    if not (Path(directory) / "requirements.txt").is_file():
        return
    from sagemaker_training import modules

    # Without a network pip would retry for minutes; a job under network isolation must fail in seconds.
    for name, value in (("PIP_RETRIES", "1"), ("PIP_DEFAULT_TIMEOUT", "15"), ("PIP_DISABLE_PIP_VERSION_CHECK", "1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("PIP_ROOT_USER_ACTION", "ignore")
    try:
        modules.install_requirements(directory, capture_error=True)
    except Exception as error:  # the toolkit's errors carry pip's stderr
        raise ProgramError(
            f"pip cannot install {directory}/requirements.txt with {sys.executable}: {error}. "
            "Under network isolation nothing can be installed: put the packages into the image"
        ) from error
