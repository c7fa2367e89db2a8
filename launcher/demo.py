"""`python -m launcher demo`: trains, scores and serves real images on this machine, and checks that answers agree."""

import csv
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher import data, invoke, run
from launcher.aws import Aws, use_environment
from launcher.console import progress_for, stdout_or_stderr
from launcher.deployment import deploy
from launcher.deployment.delete import delete
from launcher.digits import write_digits
from launcher.errors import ConfigError, JobFailed
from launcher.images import build as images
from launcher.jobs import training
from launcher.jobs.api import s3_join
from launcher.load import measure
from launcher.local import client
from launcher.local.client import LocalServer
from launcher.project import Project
from launcher.settings import load

logger = logging.getLogger(__name__)

CONFIG_FILE = Path(__file__).parents[1] / "examples" / "digits" / "launcher.yaml"
HOME = Path(".launcher")
DEMO = HOME / "demo"
ROLE = "arn:aws:iam::123456789012:role/slipway-local"
LEAST_ACCURACY = 0.97
TOLERANCE = 1e-4  # of a probability
JSON_BATCH = 32
PHASES = ("start", "peers", "imports", "data", "first_step", "train", "checkpoint", "export")


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image."""

    label: str
    probabilities: tuple[float, ...]


@dataclass
class Report:
    """What the demo found out."""

    job_name: str = ""
    accuracy: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    batch_rows: int = 0
    batch_rows_per_second: float = 0.0
    endpoint: measure.Percentiles | None = None
    files: dict[str, str] = field(default_factory=dict)
    next: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def text(self) -> str:
        """For a person."""
        endpoint = self.endpoint
        assert endpoint is not None
        width = max(len(name) for name in self.files)
        return "\n".join(
            [
                "",
                f"test accuracy   {self.accuracy:.4f}",
                f"training job    {_phases(self.phases)}",
                f"batch           {self.batch_rows} images, {self.batch_rows_per_second:.0f} rows/s (start included)",
                f"endpoint        {endpoint.requests} requests, p50 {endpoint.p50_ms:.1f} ms, "
                f"p99 {endpoint.p99_ms:.1f} ms",
                "agreement       batch, image and JSON answers equal the trained model's own predictions",
                f"demo            {_phases(self.seconds)}",
                *(f"{name:<{width}}  {path}" for name, path in self.files.items()),
                f"next: {self.next}",
            ]
        )


def _phases(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}s" for name, value in seconds.items())


def run_demo(docker: bool, json_wanted: bool = False) -> Report:
    """Run everything; the server is stopped again if it was not running before.

    Raises:
        LauncherError: a step failed, or answers differ.
    """
    runtime = "docker" if docker else "process"
    server, started = _local_server(runtime)
    use_environment(server.environment())
    try:
        return Demonstration(server, json_wanted).run()
    finally:
        if started:
            client.down(HOME)


def _local_server(runtime: str) -> tuple[LocalServer, bool]:
    running = client.status(HOME)
    if running and running.runtime != runtime:
        logger.info("-> restarting the local SageMaker with the %s runtime", runtime)
        client.down(HOME)
        running = None
    server = client.up(HOME)
    logger.info("-> local SageMaker at %s (%s)", server.url, server.runtime)
    return server, running is None


class Demonstration:
    """The steps, each one a verb of the launcher."""

    def __init__(self, server: LocalServer, json_wanted: bool) -> None:
        if not CONFIG_FILE.is_file():
            raise ConfigError(f"{CONFIG_FILE} does not exist; the demo runs in a checkout of the project")
        self.images = (DEMO / "data").resolve()
        region = server.environment()["AWS_REGION"]
        channels = {f"training.channels.{name}": self.images / name for name in ("train", "test")}
        overrides = [f"{key}={path}" for key, path in channels.items()]
        overrides += [f"region={region}", f"role={ROLE}"]
        config = load(CONFIG_FILE, overrides).config
        self.project = Project(config, Path(), Aws(region), progress_for(stdout_or_stderr(json_wanted)))
        self.aws = self.project.aws
        self.report = Report()
        if server.runtime == "docker":
            for image in (config.images.training, config.images.serving):
                _need_image(images.local_reference(image))

    def run(self) -> Report:
        """All steps in order."""
        with self._timed("data"):
            counts = write_digits(self.images)
            logger.info("-> %d images to train on, %d to test with, in %s", counts.train, counts.test, self.images)
        with self._timed("train"):
            self._train()
        expected = self._collect()
        with self._timed("transform"):
            self._transform(expected)
        with self._timed("endpoint"):
            self._serve(expected)
        self._judge()
        name = self.report.job_name
        self.report.next = f"python -m launcher deploy {name} --local -c {_short(CONFIG_FILE)}"
        (DEMO / "demo.json").write_text(json.dumps(self.report.as_json(), indent=2))
        return self.report

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.report.seconds[step] = round(time.monotonic() - started, 1)

    def _train(self) -> None:
        self.report.job_name = self.project.start_training()
        run.follow(self.aws, run.TRAINING, self.report.job_name)

    def _collect(self) -> dict[str, Prediction]:
        """Download and unpack what the job left; the model's own predictions of the test images by file name."""
        artifacts = (DEMO / "artifacts" / self.report.job_name).resolve()
        uri = self.project.artifact_uri(self.report.job_name)
        data.download(self.aws, uri.removesuffix("model.tar.gz"), artifacts)
        data.unpack(artifacts / "model.tar.gz", artifacts / "model")
        data.unpack(artifacts / "output.tar.gz", artifacts / "output")
        output = artifacts / "output"
        found = json.loads((output / "report.json").read_text())
        self.report.accuracy = found["test:accuracy"]
        self.report.phases = {name: found["phases"][name] for name in PHASES if name in found["phases"]}
        names = ("confusion_matrix.png", "learning_curve.png", "metrics.jsonl", "test_predictions.csv", "report.json")
        self.report.files = {name: _short(output / name) for name in names}
        self.report.files["model"] = _short(artifacts / "model.tar.gz")
        missing = [name for name, path in self.report.files.items() if not Path(path).exists()]
        if missing:
            raise JobFailed(f"the training job left no {', '.join(missing)} in {artifacts}")
        return read_predictions(output / "test_predictions.csv")

    def _transform(self, expected: dict[str, Prediction]) -> None:
        context = self.project.context()
        there = training.channel_uri(self.project.config, context, "test")  # uploaded for the training job
        section = self.project.config.transform.model_copy(update={"input": there})
        config = self.project.config.model_copy(update={"transform": section})
        name = replace(self.project, config=config).start_transform()
        description = run.follow(self.aws, run.TRANSFORM, name)
        target = DEMO / "transform" / name
        data.download(self.aws, s3_join(description["TransformOutput"]["S3OutputPath"], ""), target)
        answers = {}
        for path in sorted(target.rglob("*.out")):
            key = path.relative_to(target).as_posix().removesuffix(".out")
            answers["/".join(key.split("/")[-2:])] = prediction_of(json.loads(path.read_text()))
        compare("batch transform", expected, answers)
        seconds = (description["TransformEndTime"] - description["TransformStartTime"]).total_seconds()
        self.report.batch_rows = len(answers)
        self.report.batch_rows_per_second = round(len(answers) / max(seconds, 1e-3), 1)
        self.report.files["batch answers"] = _short(target)

    def _serve(self, expected: dict[str, Prediction]) -> None:
        planned = deploy.plan(self.project)
        deploy.apply(self.project, planned)
        try:
            deploy.finish(self.project, planned)
            self._invoke_images(planned.name, expected)
            self._invoke_json(planned.name, expected)
        finally:
            delete(self.project, planned.name)

    def _invoke_images(self, endpoint: str, expected: dict[str, Prediction]) -> None:
        answers, seconds = {}, []
        started = time.monotonic()
        for file in expected:
            body = (self.images / "test" / file).read_bytes()
            answer = invoke.invoke(self.aws, invoke.Request(endpoint, body, "image/png", "application/json"))
            seconds.append(answer.seconds)
            answers[file] = prediction_of(_single(json.loads(answer.body)))
        self.report.endpoint = measure.summary(seconds, len(seconds), time.monotonic() - started)
        compare("endpoint (image/png)", expected, answers)

    def _invoke_json(self, endpoint: str, expected: dict[str, Prediction]) -> None:
        import numpy
        from PIL import Image

        files = list(expected)[:JSON_BATCH]
        pixels = [numpy.asarray(Image.open(self.images / "test" / file))[None].tolist() for file in files]
        body = json.dumps({"instances": pixels}).encode()
        answer = invoke.invoke(self.aws, invoke.Request(endpoint, body, "application/json", "application/json"))
        predictions = json.loads(answer.body)["predictions"]
        answers = {file: prediction_of(item) for file, item in zip(files, predictions, strict=True)}
        compare("endpoint (application/json)", {file: expected[file] for file in files}, answers)

    def _judge(self) -> None:
        if self.report.accuracy < LEAST_ACCURACY:
            raise JobFailed(
                f"test accuracy {self.report.accuracy:.4f} is below {LEAST_ACCURACY}; the training has a fault"
            )


def _need_image(reference: str) -> None:
    """Say what to build before minutes pass.

    Raises:
        ConfigError: there is no such image.
    """
    from docker.errors import ImageNotFound

    try:
        images.engine().images.get(reference)
    except ImageNotFound as error:
        raise ConfigError(f"there is no image {reference} on this machine; build both with `make images`") from error


def _single(answer: Any) -> Any:
    """The one prediction of an answer to one image."""
    predictions = answer["predictions"] if isinstance(answer, dict) and "predictions" in answer else answer
    return predictions[0] if isinstance(predictions, list) else predictions


def prediction_of(answer: dict[str, Any]) -> Prediction:
    """One record of the built-in program's answer."""
    return Prediction(str(answer["label"]), tuple(answer["probabilities"]))


def read_predictions(path: Path) -> dict[str, Prediction]:
    """The training job's test_predictions.csv by file name."""
    with path.open(newline="") as file:
        return {
            row["file"]: Prediction(
                row["predicted"], tuple(float(value) for name, value in row.items() if name.startswith("p:"))
            )
            for row in csv.DictReader(file)
        }


def compare(where: str, expected: dict[str, Prediction], answers: dict[str, Prediction]) -> None:
    """Make sure that answers are the trained model's own predictions.

    Raises:
        JobFailed: an image is missing, its label differs, or a probability by more than 1e-4.
    """
    if expected.keys() != answers.keys():
        missing = sorted(expected.keys() ^ answers.keys())
        raise JobFailed(f"{where}: answers for {len(answers)} of {len(expected)} images; first differing: {missing[0]}")
    for file, want in expected.items():
        got = answers[file]
        apart = max(abs(a - b) for a, b in zip(want.probabilities, got.probabilities, strict=True))
        if want.label != got.label or apart > TOLERANCE:
            raise JobFailed(
                f"{where}: {file} is {got.label} with {got.probabilities}, and the trained model said "
                f"{want.label} with {want.probabilities}"
            )


def _short(path: Path) -> str:
    """The path as it is named from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
