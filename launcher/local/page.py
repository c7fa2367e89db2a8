"""What the web page at `/` shows: jobs with live logs and metrics, endpoints with a form to invoke them.

`page.html` is one file without dependencies; it asks for these values again and again. Whatever comes from a job is set
as text there, never as markup.
"""

import time
from functools import cache
from pathlib import Path

from launcher.local.endpoint_metrics import variant_points
from launcher.local.errors import ResourceNotFound
from launcher.local.jobs import BEGUN
from launcher.local.logs import ENDPOINT_GROUP, PROCESSING_GROUP, TRAINING_GROUP, TRANSFORM_GROUP
from launcher.local.metrics import Points, metric_points
from launcher.local.platform import Platform
from launcher.local.store import ENDPOINT, JOBS, PROCESSING_JOB, TRAINING_JOB, TRANSFORM_JOB, Document, Kind

LOG_LINES = 500
KINDS = {kind.arn_type: kind for kind in (*JOBS, ENDPOINT)}
GROUPS = {
    TRAINING_JOB: TRAINING_GROUP,
    TRANSFORM_JOB: TRANSFORM_GROUP,
    PROCESSING_JOB: PROCESSING_GROUP,
}


@cache
def html() -> bytes:
    """The page itself."""
    return Path(__file__).with_suffix(".html").read_bytes()


def overview(platform: Platform) -> Document:
    """Every job and endpoint in a line, the newest first, and before them the jobs that run."""
    found = {kind: [_line(kind, document) for document in platform.store.all(kind)] for kind in KINDS.values()}
    jobs = [line for kind in JOBS for line in found[kind]]
    return {
        "jobs": sorted(jobs, key=lambda line: (line["status"] in ("InProgress", "Stopping"), line["created"]))[::-1],
        "endpoints": found[ENDPOINT][::-1],
    }


def _line(kind: Kind, document: Document) -> Document:
    variants = [variant["VariantName"] for variant in document.get("ProductionVariants", [])]
    return {
        "kind": kind.arn_type,
        "name": document[kind.name],
        "status": _status(kind, document),
        "created": document["CreationTime"],
        "note": ("variants " if len(variants) > 1 else "variant ") + ", ".join(variants) if variants else "",
    }


def _status(kind: Kind, document: Document) -> str:
    status = str(document[kind.status])
    return "Waiting" if kind in JOBS and status == "InProgress" and BEGUN not in document else status


def details(platform: Platform, kind_name: str, name: str) -> Document:
    """One job or endpoint: status, why it failed, and facts as pairs of name and text.

    Raises:
        ResourceNotFound: there is none.
    """
    kind, document = _find(platform, kind_name, name)
    facts = _endpoint_facts(document) if kind is ENDPOINT else _job_facts(kind, document)
    secondary = document.get("SecondaryStatus", "")
    status = _status(kind, document)
    return {
        "status": f"{status}, {secondary}" if status == "InProgress" and secondary else status,
        "reason": document.get("FailureReason", ""),
        "asynchronous": "AsyncInferenceConfig" in document,
        "facts": [[label, str(text)] for label, text in facts.items() if text],
    }


def _find(platform: Platform, kind_name: str, name: str) -> tuple[Kind, Document]:
    kind = KINDS.get(kind_name)
    if kind is None:
        raise ResourceNotFound(f"{kind_name} is none of {', '.join(KINDS)}")
    document = platform.store.find(kind, name)
    if document is None:
        raise ResourceNotFound(f"There is no {kind.words} {name!r} any more.")
    return kind, document


def _job_facts(kind: Kind, document: Document) -> dict[str, object]:
    word = kind.resource.removesuffix("Job")
    began, ended = document.get(f"{word}StartTime"), document.get(f"{word}EndTime")
    hyperparameters = document.get("HyperParameters", {})
    algorithm, application = document.get("AlgorithmSpecification", {}), document.get("AppSpecification", {})
    output = document.get("TransformOutput") or document.get("OutputDataConfig") or {}
    return {
        "Ran": f"{(ended or time.time()) - began:.0f} s" if began else "",
        "Image": algorithm.get("TrainingImage") or application.get("ImageUri"),
        "Model": document.get("ModelName"),
        "Hyperparameters": ", ".join(f"{key}={value}" for key, value in hyperparameters.items()),
        "Artifact": document.get("ModelArtifacts", {}).get("S3ModelArtifacts"),
        "Output": output.get("S3OutputPath"),
    }


def _endpoint_facts(document: Document) -> dict[str, object]:
    variants = [
        f"{item['VariantName']}: {item.get('CurrentInstanceCount', 'serverless')} of "
        f"{item.get('DesiredInstanceCount', 'serverless')} instances, weight {item['CurrentWeight']:g}"
        for item in document.get("ProductionVariants", [])
    ]
    pending = document.get("PendingDeploymentSummary", {})
    steps = [step for item in pending.get("ProductionVariants", []) for step in item.get("VariantStatus", [])]
    progress = [f"{step['Status']}, {step['StatusMessage']}" for step in steps]
    return {
        "Configuration": document["EndpointConfigName"],
        "Variants": "; ".join(variants).replace("serverless of serverless instances", "serverless"),
        "Update": f"to {pending['EndpointConfigName']}: {'; '.join(progress)}" if pending else "",
        "Answers": document.get("AsyncInferenceConfig", {}).get("OutputConfig", {}).get("S3OutputPath"),
        "Data capture": document.get("DataCaptureConfig", {}).get("DestinationS3Uri"),
    }


def points(platform: Platform, kind_name: str, name: str) -> dict[str, Points]:
    """Metrics of a training job by name, of an endpoint by variant; errors as `details`."""
    kind, _ = _find(platform, kind_name, name)
    if kind is ENDPOINT:
        return variant_points(platform.region, name)
    return metric_points(platform.region, name) if kind is TRAINING_JOB else {}


def log(platform: Platform, kind_name: str, name: str) -> Document:
    """The last lines of a job's or endpoint's logs, and where all of them lie; errors as `details`."""
    kind, _ = _find(platform, kind_name, name)
    group, prefix = (f"{ENDPOINT_GROUP}/{name}", "") if kind is ENDPOINT else (GROUPS[kind], f"{name}/")
    lines, is_cut = platform.logs.tail(group, prefix, LOG_LINES)
    folder = platform.logs.path(group, prefix + "any").parent
    return {"lines": lines, "isCut": is_cut, "folder": str(folder)}
