"""What a job of the built-in program leaves: metrics of a channel, the artifact, predictions, plots and the report."""

import csv
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from container import contract
from container.model import ModelFormatError, build_network, load_model, save_model
from container.train import errors, fsdp
from container.train.disk import require_free_space, state_bytes
from container.train.job import Job, local_world_size, to_device
from container.train.memory import return_free_memory
from container.train.phases import PHASES_FILE
from container.train.runtime import Runtime

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 256


@torch.no_grad()  # not inference_mode: FSDP goes on training with the buffers it gathers weights in here
def evaluate(job: Job, channel: str) -> tuple[float, float, torch.Tensor]:
    """Loss and accuracy over a channel, and on this rank the probabilities of its share.

    Returns:
        Mean loss and accuracy over all ranks; float32 [images of this rank, num_classes] on the CPU.
    """
    data, process, network = job.data[channel], job.process, job.kept_network
    if process.world_size > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)  # running statistics differ by rank; rank 0's are the ones that are saved
    network.eval()
    totals = torch.zeros(3, dtype=torch.float64)  # loss, correct, images
    probabilities = [torch.empty(0, len(job.signature.classes))]
    batches = [batch for batch in evaluation_share(job, channel).split(EVALUATION_BATCH) if len(batch)]
    for images, labels, _ in data.batches(batches):
        with job.autocast:
            logits = network(to_device(job, images))
        logits = logits.float().cpu()  # [B, num_classes]
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum(), torch.tensor(len(labels))]).double()
        probabilities.append(logits.softmax(1))
    keep_company(job, network, len(batches))
    loss_sum, correct, images_seen = process.total(totals).tolist()
    return loss_sum / max(1, images_seen), correct / max(1, images_seen), torch.cat(probabilities)


def keep_company(job: Job, network: nn.Module, done: int) -> None:
    """Call a sharded network as often as the rank with most batches does: each call needs all ranks' weights."""
    if fsdp.is_sharded(network):
        nothing = torch.zeros(1, *job.signature.image_shape, dtype=torch.uint8)
        for _ in range(max(job.process.of_all(done)) - done):
            with job.autocast:
                network(to_device(job, nothing))


def evaluation_share(job: Job, channel: str) -> torch.Tensor:
    """int64 indices of the images that this rank evaluates; each image of the job belongs to exactly one rank."""
    rank, ranks = job.process.rank, job.process.world_size
    if job.environment.channel_is_sharded(channel):
        rank, ranks = rank % local_world_size(), local_world_size()
    return torch.arange(len(job.data[channel]))[rank::ranks]


def finish(job: Job) -> None:
    """Evaluate the best network on channel test, else validation; save it, and leave report, predictions and plots."""
    return_free_memory()  # of training: export and plots come on top of it
    if job.best_weights is not None:
        fsdp.load_full_state_dict(job.kept_network, job.best_weights)
    report: dict[str, Any] = {"classes": list(job.signature.classes), "world_size": job.process.world_size}
    channel = next((name for name in ("test", "validation") if name in job.data), None)
    if channel:
        report |= assess(job, channel)
    network = whole_network(job)
    if not job.process.is_first:
        return
    with job.phases.measure("export"):
        require_free_space(job.environment.opt_ml.model, state_bytes(network.state_dict()), "the model")
        save_model(job.environment.opt_ml.model, network, job.signature)
        check_artifact(job.environment.opt_ml.model)
        plot_history(job)
    write_report(job, report)
    runtime = Runtime.from_env()
    if runtime is not None:
        runtime.write(PHASES_FILE, job.phases.seconds)  # the launcher's last line


def check_artifact(model_dir: Path) -> None:
    """Load the artifact as serving will; `SLIPWAY_REQUIRE_MODEL=false` makes a failure a warning.

    Raises:
        ModelFormatError: it cannot be served.
    """
    try:
        load_model(model_dir)
    except ModelFormatError as error:
        if os.environ.get(contract.REQUIRE_MODEL, "").lower() not in ("0", "false"):
            raise
        logger.warning("the model in %s does not load again and cannot be served: %s", model_dir, error)


def whole_network(job: Job) -> nn.Module:
    """The network to export, with all its weights on the first rank; call it on every rank."""
    if not fsdp.is_sharded(job.kept_network):
        return job.kept_network
    weights = fsdp.full_state_dict(job.kept_network)
    network = build_network(job.signature.architecture, len(job.signature.classes), job.signature.image_shape)
    if job.process.is_first:
        network.load_state_dict(weights)
    return network


def assess(job: Job, channel: str) -> dict[str, Any]:
    """Metrics of a channel, class by class, too; on rank 0 also the files about it."""
    loss, accuracy, probabilities = evaluate(job, channel)
    share, data = evaluation_share(job, channel).tolist(), job.data[channel]
    mine = [
        (data.folder.files[i], int(data.labels[i]), row) for i, row in zip(share, probabilities.tolist(), strict=True)
    ]
    rows = sorted(row for rows in job.process.of_all(mine) for row in rows)
    matrix = [[0] * len(job.signature.classes) for _ in job.signature.classes]
    for _, label, scores in rows:
        matrix[label][scores.index(max(scores))] += 1
    by_class = errors.report_by_class(matrix, job.signature.classes)
    values = {"loss": loss, "accuracy": accuracy, "macro_f1": errors.macro_f1(by_class)}
    values = {f"{channel}:{name}": value for name, value in values.items()}
    job.metrics.log(-(-job.step // job.steps_per_epoch), job.step, values)
    mistakes = [mistake for found in job.process.of_all(own_mistakes(job, channel, mine)) for mistake in found]
    if job.process.is_first:
        write_predictions(job, channel, rows)
        plot_errors(job, matrix, errors.surest(mistakes))
        for line in errors.table_lines(by_class):
            logger.info("%s", line)
    return values | {"confusion_matrix": matrix, "by_class": [dataclasses.asdict(report) for report in by_class]}


def own_mistakes(job: Job, channel: str, mine: list[tuple[str, int, list[float]]]) -> list[errors.Mistake]:
    """This rank's surest mistakes, with their pictures.

    Args:
        job: the job.
        channel: that was evaluated.
        mine: file, label and probabilities of each image in this rank's share of it.
    """
    classes, data = job.signature.classes, job.data[channel]
    wrong = [
        (max(scores), index, label, scores.index(max(scores)))
        for index, (_, label, scores) in zip(evaluation_share(job, channel).tolist(), mine, strict=True)
        if scores.index(max(scores)) != label
    ]
    return [
        errors.Mistake(
            data.folder.files[index], classes[label], classes[given], score, errors.thumbnail(data.read_image(index))
        )
        for score, index, label, given in sorted(wrong, reverse=True)[: errors.SHOWN]
    ]


def write_predictions(job: Job, channel: str, rows: list[tuple[str, int, list[float]]]) -> None:
    """`file,label,predicted,p:<class>...`, one line per image."""
    classes = job.signature.classes
    with (job.environment.opt_ml.output_data / f"{channel}_predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "predicted", *(f"p:{name}" for name in classes)])
        for name, label, scores in rows:
            predicted = classes[scores.index(max(scores))]
            writer.writerow([name, classes[label], predicted, *(f"{score:.7g}" for score in scores)])


def plot_errors(job: Job, matrix: list[list[int]], mistakes: list[errors.Mistake]) -> None:
    """The confusion matrix, and the sheet of mistakes where there are any."""
    from container.train import plots  # loads matplotlib, when nothing waits for it any more

    directory = job.environment.opt_ml.output_data
    plots.plot_confusion_matrix(directory / "confusion_matrix.png", matrix, job.signature.classes)
    if mistakes:
        plots.plot_mistakes(directory / "mistakes.png", mistakes)


def plot_history(job: Job) -> None:
    """The learning curves."""
    from container.train import plots

    plots.plot_learning_curve(job.environment.opt_ml.output_data / "learning_curve.png", job.metrics.history)


def write_report(job: Job, report: dict[str, Any]) -> None:
    """report.json: what the job measured, for programs to read."""
    epochs = [entry["train:samples_per_second"] for entry in job.metrics.history if "train:samples_per_second" in entry]
    report["samples_per_second"] = sum(epochs) / max(1, len(epochs))
    report["phases"] = {"checkpoint": 0.0, "first_step": 0.0, **job.phases.seconds}
    (job.environment.opt_ml.output_data / "report.json").write_text(json.dumps(report, indent=1))
