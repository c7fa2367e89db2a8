"""DataCaptureConfig of endpoints: requests and answers as JSON Lines in S3; of batch transform jobs: manifests.

Source of the form: "Data capture" of the Developer Guide. Records are collected for a moment, so that a file holds
several; each variant has files of its own, named by time: `<destination>/<endpoint>/<variant>/yyyy/mm/dd/hh/...jsonl`.
"""

import base64
import json
import os
import random
import threading
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from container import contract
from launcher.local.buckets import Buckets, parse_s3_uri
from launcher.local.served_container import Reply
from launcher.local.serving import Invocation

FLUSH_SECONDS = 1.0
DEFAULT_CSV, DEFAULT_JSON = ["text/csv"], ["application/json", "application/jsonlines"]


class DataCapture:
    """Captures the invocations of one endpoint."""

    def __init__(self, buckets: Buckets, endpoint_name: str, config: Mapping[str, Any]) -> None:
        self._buckets = buckets
        self._endpoint_name = endpoint_name
        self._config = config
        self._lock = threading.Lock()
        self._records: dict[str, list[str]] = defaultdict(list)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"capture {endpoint_name}", daemon=True)
        self._thread.start()

    def add(self, variant: str, invocation: Invocation, reply: Reply) -> None:
        """Keep one invocation, if the sampling picks it."""
        if random.random() * 100 >= self._config["InitialSamplingPercentage"]:
            return
        record = capture_record(self._config, invocation, reply)
        with self._lock:
            self._records[variant].append(json.dumps(record))

    def stop(self) -> None:
        """Write what is left."""
        self._ended.set()
        self._thread.join()
        self._flush()

    def _run(self) -> None:
        while not self._ended.wait(FLUSH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            records, self._records = self._records, defaultdict(list)
        bucket, prefix = parse_s3_uri(self._config["DestinationS3Uri"])
        for variant, lines in records.items():
            time = datetime.now(UTC)
            name = f"{time:%Y/%m/%d/%H/%M-%S}-{time.microsecond // 1000:03d}-{uuid4()}.jsonl"
            key = "/".join(part for part in (prefix.strip("/"), self._endpoint_name, variant, name) if part)
            self._buckets.write(bucket, key, "".join(line + "\n" for line in lines).encode())


def capture_record(config: Mapping[str, Any], invocation: Invocation, reply: Reply) -> dict[str, Any]:
    """One line of a capture file."""
    modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
    captured = {}
    if modes & {"Input", "InputAndOutput"}:
        content_type = invocation.headers.get("Content-Type", "application/octet-stream")
        captured["endpointInput"] = _side(config, content_type, "INPUT", invocation.body)
    if modes & {"Output", "InputAndOutput"}:
        captured["endpointOutput"] = _side(config, reply.content_type, "OUTPUT", reply.body)
    metadata = {"eventId": str(uuid4()), "inferenceTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    inference_id = invocation.headers.get(contract.INFERENCE_ID_HEADER)
    if inference_id:
        metadata["inferenceId"] = inference_id
    return {"captureData": captured, "eventMetadata": metadata, "eventVersion": "0"}


def _side(config: Mapping[str, Any], content_type: str, mode: str, data: bytes) -> dict[str, str]:
    encoding = capture_encoding(config.get("CaptureContentTypeHeader", {}), content_type)
    text = base64.b64encode(data).decode() if encoding == "BASE64" else data.decode("utf-8", "replace")
    return {"observedContentType": content_type, "mode": mode, "data": text, "encoding": encoding}


def write_batch_capture(buckets: Buckets, destination: str, inputs: list[str], outputs: list[str]) -> None:
    """What a batch transform job captures: manifests of its inputs and outputs, which lie in S3 already.

    Source: "Capture data from batch transform job" of the Developer Guide: `input/` and `output/`, and no copies.

    Args:
        buckets: where everything lies.
        destination: DestinationS3Uri.
        inputs: S3 URIs of the objects that were transformed.
        outputs: S3 URIs of what was made of them.
    """
    bucket, folder = parse_s3_uri(destination)
    time = datetime.now(UTC)
    for kind, uris in (("input", inputs), ("output", outputs)):
        key = "/".join(part for part in (folder.strip("/"), kind, f"{time:%Y/%m/%d/%H}", f"{uuid4()}.json") if part)
        buckets.write(bucket, key, json.dumps(manifest_of(uris)).encode(), "application/json")


def manifest_of(uris: list[str]) -> list[Any]:
    """A manifest: the folder that all URIs share, and the rest of each."""
    prefix = os.path.commonprefix(uris).rpartition("/")[0] + "/"
    return [{"prefix": prefix}, *(uri.removeprefix(prefix) for uri in uris)]


def capture_encoding(types: Mapping[str, list[str]], content_type: str) -> str:
    """CSV, JSON or BASE64, by the configured content types."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in types.get("CsvContentTypes", DEFAULT_CSV):
        return "CSV"
    return "JSON" if media_type in types.get("JsonContentTypes", DEFAULT_JSON) else "BASE64"
