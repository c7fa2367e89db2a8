"""What a processing job's script needs: its inputs, outputs and hosts, this host's part of the work, whole files.

Source: "How to Build Your Own Processing Container", and the API's ProcessingJob shapes. Unlike a training job it finds
its configuration under `/opt/ml/config`, and unset members are null.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from container import contract
from container.contract import OptMl
from container.train.environment import ConfigError, read_json
from container.train.files import ChannelError, list_files

Item = TypeVar("Item")

PARTIAL_PREFIX = ".partial-"  # of files that are being written


@dataclass(frozen=True)
class ProcessingEnvironment:
    """What SageMaker tells a processing container."""

    opt_ml: OptMl
    job_name: str
    current_host: str
    hosts: tuple[str, ...]
    """Sorted as strings, so that all hosts agree on the order (`algo-10` < `algo-2`)."""
    inputs: Mapping[str, Mapping[str, Any]]
    """InputName -> its S3Input, or its DatasetDefinition."""
    outputs: Mapping[str, Path]
    """OutputName -> directory."""

    def input(self, name: str) -> Path:
        """Where an input lies.

        Raises:
            ChannelError: the job has no input of that name.
        """
        return below(self.opt_ml, _named(name, self.inputs, "input")["LocalPath"])

    def output(self, name: str) -> Path:
        """Where to leave an output.

        Raises:
            ChannelError: the job has no output of that name.
        """
        return _named(name, self.outputs, "output")

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This host's part: by its place among the sorted hosts; the parts of all are disjoint and complete.

        Args:
            items: the same, in the same order, on every host.
        """
        return list(items[self.hosts.index(self.current_host) :: len(self.hosts)])

    def input_files(self, name: str, suffixes: Collection[str] = ()) -> list[Path]:
        """This host's files of an input: all that are there under ShardedByS3Key, else its share of them.

        Raises:
            ChannelError: the job has no input of that name, or it has no directory.
        """
        files = list_files(self.input(name), suffixes)
        return files if self.inputs[name].get("S3DataDistributionType") == "ShardedByS3Key" else self.share(files)


def processing_environment() -> ProcessingEnvironment:
    """The environment of the processing job this process belongs to.

    Raises:
        ConfigError: a file under `/opt/ml/config` is missing or is not what SageMaker writes.
    """
    opt_ml = OptMl.from_env()
    job, resources = read_json(opt_ml.processing_job_config), read_json(opt_ml.processing_resource_config)
    for key in ("current_host", "hosts"):
        if not resources.get(key):
            raise ConfigError(f"{opt_ml.processing_resource_config} has no {key!r}: is this a processing job?")
    inputs = {
        entry["InputName"]: entry.get("S3Input") or entry.get("DatasetDefinition") or {}
        for entry in job.get("ProcessingInputs") or []
    }
    outputs = (job.get("ProcessingOutputConfig") or {}).get("Outputs") or []
    return ProcessingEnvironment(
        opt_ml=opt_ml,
        job_name=job.get("ProcessingJobName") or "",
        current_host=resources["current_host"],
        hosts=tuple(sorted(resources["hosts"])),
        inputs={name: source for name, source in inputs.items() if source.get("LocalPath")},
        outputs={
            entry["OutputName"]: below(opt_ml, entry["S3Output"]["LocalPath"])
            for entry in outputs
            if (entry.get("S3Output") or {}).get("LocalPath")
        },
    )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which becomes `path` at the end: a stop or an error leaves no half of a file.

        with whole_file(environment.output("clean") / "rows.csv") as file:
            table.to_csv(file)

    The name ends alike, since writers choose a format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def below(opt_ml: OptMl, local_path: str) -> Path:
    """Where a path of the configuration lies, which begins with `/opt/ml`, also where that has been moved."""
    return opt_ml.base / Path(local_path).relative_to(contract.BASE_DIR)


def _named(name: str, known: Mapping[str, Item], kind: str) -> Item:
    if name not in known:
        raise ChannelError(f"the job has no {kind} {name!r}; its {kind}s are {', '.join(sorted(known)) or 'none'}")
    return known[name]
