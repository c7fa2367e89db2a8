"""The life of one batch transform job: start the model, split, send, assemble, and the true end."""

import gzip
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any
from uuid import uuid4

from container import contract
from launcher.local.buckets import BucketError, parse_s3_uri
from launcher.local.containers import ContainerStartError
from launcher.local.data_capture import write_batch_capture
from launcher.local.errors import JobFailed
from launcher.local.inputs import InputObject, shard, source_objects
from launcher.local.logs import TRANSFORM_GROUP
from launcher.local.platform import SHUTDOWN_REASON, JobControl, Platform, together
from launcher.local.record_filters import DataProcessing, FilterError
from launcher.local.records import RecordError, assemble, groups, request_body, split
from launcher.local.served_container import InvocationBroken, InvocationTimeout, Reply
from launcher.local.serving import Invocation, ModelServer, ServingPlan
from launcher.local.store import MODEL, TRANSFORM_JOB, Document
from launcher.local.transform_settings import TransformSettings, batch_environment, transform_settings

RETRY_SECONDS = 0.5  # times the attempt
DEFAULT_RETRIES = 3  # ModelClientConfig.InvocationsMaxRetries: "The default value is 3"
DEFAULT_TIMEOUT_SECONDS = 600  # ModelClientConfig.InvocationsTimeoutInSeconds
WINDOW = 4  # requests prepared per request that may be in flight


class ObjectFailed(Exception):
    """One input object could not be transformed; the others go on."""


class TransformJob:
    """Runs one job; `run` is called once, on a thread of the job queue."""

    def __init__(self, platform: Platform, request: Document) -> None:
        self._platform = platform
        self._request = request
        self._name = request["TransformJobName"]
        self._input = request["TransformInput"]
        self._output = request["TransformOutput"]
        self._processing = DataProcessing.of(request)
        self._log = platform.logs.stream(TRANSFORM_GROUP, f"{self._name}/data-log")
        self._servers: list[ModelServer] = []
        self._written: list[str] = []
        self._failures: list[str] = []
        self._lock = threading.Lock()
        self._control = JobControl()

    def run(self, control: JobControl) -> None:
        self._control = control
        self._platform.store.update(TRANSFORM_JOB, self._name, TransformStartTime=time.time())
        try:
            status, reason = self._transform()
        except (JobFailed, BucketError, ContainerStartError) as error:
            status, reason = "Failed", str(error) if isinstance(error, JobFailed) else f"ClientError: {error}"
        except Exception as error:
            self._end("Failed", f"InternalServerError: {type(error).__name__}: {error}")
            raise
        finally:
            together(self._servers, ModelServer.stop)
            self._log.close()
        self._end(status, reason)

    def _transform(self) -> tuple[str, str | None]:
        objects = source_objects(self._platform.buckets, self._input["DataSource"]["S3DataSource"])
        if not self._is_cancelled():
            self._start_servers()
        if not self._is_cancelled():
            settings = transform_settings(self._request, self._execution_parameters())
            self._run_instances(objects, settings)
        if self._control.shutdown_requested:
            raise JobFailed(SHUTDOWN_REASON)
        if self._control.stop_requested:
            bucket, _ = parse_s3_uri(self._output["S3OutputPath"])
            for key in self._written:  # "Amazon SageMaker doesn't store the job's output" of a stopped job
                self._platform.buckets.delete(bucket, key)
            return "Stopped", None
        if self._failures:
            count = f"{len(self._failures)} of {len(objects)} input objects failed"
            self._capture(objects)
            return "Failed", f"AlgorithmError: {count}: {self._failures[0]}. See job logs for more information"
        self._capture(objects)
        return "Completed", None

    def _capture(self, objects: Sequence[InputObject]) -> None:
        destination = self._request.get("DataCaptureConfig", {}).get("DestinationS3Uri")
        if destination is None:
            return
        outputs = set(self._written)
        done = [item for item in objects if self._output_key(item) in outputs]
        if not done:
            return
        bucket, _ = parse_s3_uri(self._output["S3OutputPath"])
        write_batch_capture(
            self._platform.buckets,
            destination,
            [f"s3://{item.bucket}/{item.key}" for item in done],
            [f"s3://{bucket}/{self._output_key(item)}" for item in done],
        )

    def _output_key(self, item: InputObject) -> str:
        _, folder = parse_s3_uri(self._output["S3OutputPath"])
        return f"{folder.rstrip('/')}/{item.path}.out".lstrip("/")

    def _is_cancelled(self) -> bool:
        return self._control.stop_requested or self._control.shutdown_requested

    # --- the containers ---------------------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        model = self._platform.store.find(MODEL, self._request["ModelName"])
        if model is None:
            raise JobFailed(f"ClientError: Could not find model {self._request['ModelName']!r}: it was deleted")
        instances = [f"i-{uuid4().hex[:17]}" for _ in range(self._request["TransformResources"]["InstanceCount"])]
        stamp = int(time.time() * 1000)
        for instance in instances:
            plan = ServingPlan(
                name=f"{self._name}-{instance}",
                environment=batch_environment(self._request),
                stream_name=lambda hostname, instance=instance: self._stream_name(instance, hostname, stamp),  # type: ignore[misc]
            )
            server = ModelServer(self._platform, model, plan)
            self._servers.append(server)
            server.start()
        for server in self._servers:
            self._wait_until_ready(server)

    def _stream_name(self, instance: str, hostname: str, stamp: int) -> tuple[str, str]:
        return TRANSFORM_GROUP, f"{self._name}/{instance}-{hostname}-{stamp}"

    def _wait_until_ready(self, server: ModelServer) -> None:
        try:
            server.wait_until_ready(contract.STARTUP_TIMEOUT_SECONDS, self._is_cancelled)
        except JobFailed as error:
            if not self._is_cancelled():
                raise JobFailed(
                    f"AlgorithmError: The model container did not pass the ping health check: {error}"
                ) from error

    def _execution_parameters(self) -> dict[str, Any]:
        try:
            reply = self._servers[0].containers[0].request("GET", contract.EXECUTION_PARAMETERS_PATH)
            answer = json.loads(reply.body) if reply.status == 200 else {}
        except (InvocationBroken, InvocationTimeout, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    # --- the objects ------------------------------------------------------------------------------------------------

    def _run_instances(self, objects: Sequence[InputObject], settings: TransformSettings) -> None:
        with ThreadPoolExecutor(len(self._servers)) as executor:
            count = len(self._servers)
            shards = [shard(objects, index, count, "ShardedByS3Key") for index in range(count)]
            run = partial(self._run_instance, settings=settings)
            list(executor.map(run, self._servers, shards))  # the list raises what a run raised

    def _run_instance(self, server: ModelServer, objects: Sequence[InputObject], settings: TransformSettings) -> None:
        """Send the requests of all objects in order, some at once; write each object's output when it is whole."""
        in_flight: deque[tuple[InputObject, list[Future[bytes]]]] = deque()
        with ThreadPoolExecutor(settings.max_concurrent) as executor:
            for item in objects:
                if self._is_cancelled():
                    break
                in_flight.append((item, self._submit(executor, server, item, settings)))
                while sum(len(futures) for _, futures in in_flight) > settings.max_concurrent * WINDOW:
                    self._write(*in_flight.popleft())
            while in_flight:
                self._write(*in_flight.popleft())

    def _submit(
        self, executor: ThreadPoolExecutor, server: ModelServer, item: InputObject, settings: TransformSettings
    ) -> "list[Future[bytes]]":
        split_type = self._input.get("SplitType", "None")
        try:
            content = self._platform.buckets.read(item.bucket, item.key)
            if self._input.get("CompressionType") == "Gzip":
                content = gzip.decompress(content)
            records = split(content, split_type)
            sent = [self._processing.before(record) for record in records] if self._processing else records
            together = list(groups(sent, split_type, settings.strategy, settings.max_payload_bytes))
        except (RecordError, FilterError, BucketError, UnicodeDecodeError, OSError, EOFError) as error:
            return [_failed(ObjectFailed(str(error)))]
        futures = []
        originals = iter(records)
        for group in together:
            body = request_body(group, split_type, settings.strategy)
            futures.append(executor.submit(self._answer, server, body, list(islice(originals, len(group)))))
        return futures

    def _answer(self, server: ModelServer, body: bytes, originals: list[bytes]) -> bytes:
        """The output for some records: the container's answer, joined and filtered where the job asks for it."""
        answer = self._invoke(server, body)
        try:
            return self._processing.after(originals, answer) if self._processing else answer
        except (FilterError, UnicodeDecodeError) as error:
            raise ObjectFailed(str(error)) from error

    def _invoke(self, server: ModelServer, body: bytes) -> bytes:
        client = self._request.get("ModelClientConfig", {})
        timeout = client.get("InvocationsTimeoutInSeconds", DEFAULT_TIMEOUT_SECONDS)
        retries = client.get("InvocationsMaxRetries", DEFAULT_RETRIES)
        problem = ""
        for attempt in range(retries + 1):
            if self._is_cancelled():
                break
            try:
                reply, _ = server.invoke(Invocation(body, self._headers(), timeout))
            except (InvocationBroken, InvocationTimeout) as error:
                problem = str(error)
            else:
                if reply.status < 400:
                    return reply.body
                problem = _bad_status(reply)
                if reply.status < 500:
                    break
            self._control.wake.wait(RETRY_SECONDS * attempt)
        raise ObjectFailed(problem)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": self._input.get("ContentType"), "Accept": self._output.get("Accept")}
        return {name: value for name, value in headers.items() if value}

    def _write(self, item: InputObject, futures: "list[Future[bytes]]") -> None:
        try:
            answers = [future.result() for future in futures]
        except ObjectFailed as error:
            if not self._is_cancelled():
                self._fail_object(item, str(error))
            return
        bucket, _ = parse_s3_uri(self._output["S3OutputPath"])
        key = self._output_key(item)
        body = assemble(answers, self._output.get("AssembleWith", "None"))
        self._platform.buckets.write(bucket, key, body, self._output.get("Accept"))
        with self._lock:
            self._written.append(key)

    def _fail_object(self, item: InputObject, problem: str) -> None:
        line = f"{item.bucket}/{item.key}: {problem}"
        self._log.write(f"[sagemaker logs]: {line}")
        with self._lock:
            self._failures.append(line)

    def _end(self, status: str, reason: str | None) -> None:
        members = {"FailureReason": contract.truncate_utf8(reason, contract.FAILURE_REASON_LIMIT)} if reason else {}
        self._platform.store.update(
            TRANSFORM_JOB, self._name, TransformJobStatus=status, TransformEndTime=time.time(), **members
        )


def _bad_status(reply: Reply) -> str:
    text = reply.body[:500].decode("utf-8", "replace").strip()
    return f"Bad HTTP status received from algorithm: {reply.status} {text}"


def _failed(error: Exception) -> "Future[bytes]":
    future: Future[bytes] = Future()
    future.set_exception(error)
    return future
