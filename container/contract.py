"""SageMaker's container contract, written once: paths, files, names, ports and limits.

Everything both sides of the contract agree on stands here: the containers read it, the local SageMaker and the launcher
lay it out and check against it. Standard library only, and nothing of ours is imported, so that a laptop without torch
can import it in a millisecond.

Sources are the SageMaker AI Developer Guide and the API's service model; each constant names the page or shape.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# --- /opt/ml ----------------------------------------------------------------------------------------------------------

BASE_DIR = Path("/opt/ml")
BASE_DIR_VARIABLE = "SAGEMAKER_BASE_DIR"  # moves /opt/ml, as in AWS's own toolkits: for processes and tests


@dataclass(frozen=True)
class OptMl:
    """The directory tree that SageMaker shares with a container ("How SageMaker AI Provides Training Information")."""

    base: Path = BASE_DIR

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "OptMl":
        """The tree at `SAGEMAKER_BASE_DIR`, or `/opt/ml` where that is unset or empty."""
        environ = os.environ if environ is None else environ
        return cls(Path(environ.get(BASE_DIR_VARIABLE) or BASE_DIR))

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def config(self) -> Path:
        return self.input / "config"

    @property
    def hyperparameters(self) -> Path:
        return self.config / "hyperparameters.json"

    @property
    def input_data_config(self) -> Path:
        return self.config / "inputdataconfig.json"

    @property
    def checkpoint_config(self) -> Path:
        """Present only with CheckpointConfig; its LocalPath says where checkpoints go when not `checkpoints`."""
        return self.config / "checkpointconfig.json"

    @property
    def resource_config(self) -> Path:
        return self.config / "resourceconfig.json"

    @property
    def data(self) -> Path:
        return self.input / "data"

    def channel(self, name: str) -> Path:
        """Directory of a File or FastFile channel."""
        return self.data / name

    @property
    def code(self) -> Path:
        """Where script mode unpacks the user's code; toolkits create it, the platform does not."""
        return self.base / "code"

    @property
    def model(self) -> Path:
        return self.base / "model"

    @property
    def models(self) -> Path:
        """Base of multi-model mode ("Custom Containers Contract for Multi-Model Endpoints")."""
        return self.base / "models"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def output_data(self) -> Path:
        return self.output / "data"

    @property
    def output_intermediate(self) -> Path:
        return self.output / "intermediate"

    @property
    def tensorboard(self) -> Path:
        """TensorBoardOutputConfig.LocalPath's default: exists only in a job that has one."""
        return self.output / "tensorboard"

    @property
    def failure(self) -> Path:
        return self.output / "failure"

    @property
    def exit_message(self) -> Path:
        """Processing's counterpart of `failure` (ExitMessage)."""
        return self.output / "message"

    @property
    def checkpoints(self) -> Path:
        """CheckpointConfig.LocalPath's default."""
        return self.base / "checkpoints"

    @property
    def processing(self) -> Path:
        return self.base / "processing"

    @property
    def processing_config(self) -> Path:
        """Processing jobs find their configuration here, not under `input/config`."""
        return self.base / "config"

    @property
    def processing_job_config(self) -> Path:
        """The job as CreateProcessingJob got it; members that were not given are null."""
        return self.processing_config / "processingjobconfig.json"

    @property
    def processing_resource_config(self) -> Path:
        return self.processing_config / "resourceconfig.json"


CODE_CHANNEL = "code"  # the channel in which launchers deliver a user's script
ADDITIONAL_MODELS_DIR = BASE_DIR / "additional-model-data-sources"
COMPAT_DIR = Path("/usr/local/cuda/compat")  # NVIDIA's forward-compatibility libraries in the image
IMAGE_CODE_DIR = Path("/opt/slipway/code")  # where an image derived from ours bakes train.py or inference.py in

# --- environment ------------------------------------------------------------------------------------------------------

TRAINING_JOB_NAME = "TRAINING_JOB_NAME"
TRAINING_JOB_ARN = "TRAINING_JOB_ARN"
WARM_POOL_CACHE_DIR = "SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY"
PROGRAM = "SAGEMAKER_PROGRAM"  # script mode: entry script; its twin hyperparameter is sagemaker_program
SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"
CONTAINER_LOG_LEVEL = "SAGEMAKER_CONTAINER_LOG_LEVEL"
BIND_TO_PORT = "SAGEMAKER_BIND_TO_PORT"
SAFE_PORT_RANGE = "SAGEMAKER_SAFE_PORT_RANGE"
MULTI_MODEL = "SAGEMAKER_MULTI_MODEL"
BATCH = "SAGEMAKER_BATCH"
BATCH_STRATEGY = "SAGEMAKER_BATCH_STRATEGY"
MAX_PAYLOAD_IN_MB = "SAGEMAKER_MAX_PAYLOAD_IN_MB"
MAX_CONCURRENT_TRANSFORMS = "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS"
MODEL_SERVER_WORKERS = "SAGEMAKER_MODEL_SERVER_WORKERS"
MODEL_SERVER_TIMEOUT = "SAGEMAKER_MODEL_SERVER_TIMEOUT"
DEFAULT_INVOCATIONS_ACCEPT = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"

# Ours. The platform does not know them; the local SageMaker and the launcher set them.
MASTER_ADDR = "SLIPWAY_MASTER_ADDR"  # overrides the first host: several "hosts" as processes on one machine
MASTER_PORT_VARIABLE = "SLIPWAY_MASTER_PORT"
LOCAL = "SLIPWAY_LOCAL"  # "true" in the local SageMaker: the instance type says nothing about this machine
MAX_RUNTIME_SECONDS = "SLIPWAY_MAX_RUNTIME_SECONDS"  # StoppingCondition.MaxRuntimeInSeconds, which SageMaker hides
REQUIRE_MODEL = "SLIPWAY_REQUIRE_MODEL"  # "true": no model fails a job; "false": one that does not load is a warning
PEER_TIMEOUT_SECONDS_VARIABLE = "SLIPWAY_PEER_TIMEOUT_SECONDS"  # how long a training host waits for the others
HOST_LOST_SECONDS_VARIABLE = "SLIPWAY_HOST_LOST_SECONDS"  # silence after which a training host counts as dead
STOP_SECONDS_VARIABLE = "SLIPWAY_STOP_SECONDS"  # that ranks have between SIGTERM and our SIGKILL
LINGER_SECONDS_VARIABLE = "SLIPWAY_LINGER_SECONDS"  # that a host which is done waits for the others
LOG_FORMAT = "SLIPWAY_LOG_FORMAT"  # "json": one JSON object a line instead of text
HEALTH_VARIABLE = "SLIPWAY_HEALTH"  # what training's health rules do: rule=warn|stop|off, separated by commas
TRACKERS_VARIABLE = "SLIPWAY_TRACKERS"  # experiment trackers that get a training job's metrics: mlflow, wandb
RUNTIME_DIR_VARIABLE = "SLIPWAY_RUNTIME_DIR"  # where a host's launcher and its ranks meet: pids, errors, stop request
SM_PREFIX = "SM_"  # of the variables that user scripts read; the toolkits derive them from /opt/ml, and so do we


def sm_variable(name: str) -> str:
    """`model_dir` -> `SM_MODEL_DIR`: upper case, nothing else replaced, as sagemaker-training spells them."""
    return SM_PREFIX + name.upper()


SECRET_NAME = re.compile(r"secret|password|passwd|key|token|credential", re.IGNORECASE)

# --- hyperparameters --------------------------------------------------------------------------------------------------

RESERVED_PREFIX = "sagemaker_"
TUNING_OBJECTIVE_METRIC = "_tuning_objective_metric"
RESERVED_NAMES = frozenset({TUNING_OBJECTIVE_METRIC, "default_user_module_name"})
PROGRAM_HYPERPARAMETER = "sagemaker_program"
SUBMIT_DIRECTORY_HYPERPARAMETER = "sagemaker_submit_directory"
LOG_LEVEL_HYPERPARAMETER = "sagemaker_container_log_level"
DISTRIBUTION_GROUPS_HYPERPARAMETER = "sagemaker_distribution_instance_groups"
SOURCE_TARBALL = "sourcedir.tar.gz"  # how SDK v2 packs a user's code, also as the one file of a `code` channel


def decode_hyperparameter(value: str) -> Any:
    """A hyperparameter's value: JSON where it parses, else the string itself.

    SDK v2 sends JSON-encoded strings, SDK v3 and the API plain ones; both toolkits decode this way.
    """
    try:
        return json.loads(value)
    except ValueError:
        return value


def is_reserved_hyperparameter(name: str) -> bool:
    """Whether SageMaker or a toolkit put this one there, so that a user's parser must not see it."""
    return name.startswith(RESERVED_PREFIX) or name in RESERVED_NAMES


# --- metrics ----------------------------------------------------------------------------------------------------------

# What the built-in program prints, each epoch and at its end; the launcher sends MetricDefinitions of these names.
BUILTIN_METRICS = (
    "train:loss",
    "train:accuracy",
    "train:samples_per_second",
    "train:learning_rate",
    "validation:loss",
    "validation:accuracy",
    "validation:macro_f1",
    "test:loss",
    "test:accuracy",
    "test:macro_f1",
)


def format_metric(name: str, value: float) -> str:
    """One metric as it stands in a log line; `metric_regex` finds it again."""
    return f"{name}={value:.9g};"


def metric_regex(name: str) -> str:
    """Regex for `AlgorithmSpecification.MetricDefinitions`: its first group is the number (at most 500 characters)."""
    return rf'(?:^|[\s"]){re.escape(name)}=([-+]?(?:[0-9.]+(?:[eE][-+]?[0-9]+)?|nan|inf));'  # also within JSON lines


# --- serving ----------------------------------------------------------------------------------------------------------

HEALTH_PATH = "/ping"
INVOCATIONS_PATH = "/invocations"
EXECUTION_PARAMETERS_PATH = "/execution-parameters"
BIDIRECTIONAL_STREAM_PATH = "/invocations-bidirectional-stream"  # a WebSocket: "Custom Inference Code with Hosting"
BIDIRECTIONAL_STREAM_LABEL = "com.amazonaws.sagemaker.capabilities.bidirectional-streaming"
DEFAULT_PORT = 8080
CUSTOM_ATTRIBUTES_HEADER = "X-Amzn-SageMaker-Custom-Attributes"
INFERENCE_ID_HEADER = "X-Amzn-SageMaker-Inference-Id"
TARGET_MODEL_HEADER = "X-Amzn-SageMaker-Target-Model"
TARGET_VARIANT_HEADER = "X-Amzn-SageMaker-Target-Variant"
TARGET_CONTAINER_HEADER = "X-Amzn-SageMaker-Target-Container-Hostname"
SESSION_ID_HEADER = "X-Amzn-SageMaker-Session-Id"
ACCEPT_BIND_TO_PORT_LABEL = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
PING_TIMEOUT_SECONDS = 2
STARTUP_TIMEOUT_SECONDS = 480  # ContainerStartupHealthCheckTimeoutInSeconds: the page says 8 minutes
INVOCATION_TIMEOUT_SECONDS = 60  # real time
BATCH_INVOCATION_TIMEOUT_SECONDS = 3600  # ModelClientConfig.InvocationsTimeoutInSeconds' maximum
REALTIME_PAYLOAD_BYTES = 25 * 1024 * 1024  # "Inference options": 25 MB; the service model still says 6 MiB
SERVERLESS_PAYLOAD_BYTES = 4 * 1024 * 1024
SERVERLESS_IMAGE_BYTES = 10 * 10**9  # "Deploy models with Amazon SageMaker Serverless Inference": 10 GB
ASYNC_PAYLOAD_BYTES = 1024 * 1024 * 1024  # of the object in S3
BATCH_PAYLOAD_BYTES = 100 * 1024 * 1024  # MaxPayloadInMB's maximum
DEFAULT_MAX_PAYLOAD_IN_MB = 6

# --- training ---------------------------------------------------------------------------------------------------------

DEFAULT_MASTER_PORT = 7777  # what AWS's own launchers use
PEER_PORT = 7778  # where training hosts see that the others are there; the platform leaves all ports open between them
DEFAULT_NETWORK_INTERFACE = "eth0"
FAILURE_REASON_LIMIT = 1024  # FailureReason.max; we cut to as many bytes
EXIT_MESSAGE_LIMIT_BYTES = 1024  # ExitMessage
TRAINING_STOP_SECONDS = 120  # SIGTERM to SIGKILL: StopTrainingJob, MaxRuntimeInSeconds
SERVING_STOP_SECONDS = 30
HYPERPARAMETER_LIMITS = {"count": 100, "name": 256, "value": 2500}
FIRST_HOST = "algo-1"
HOMOGENEOUS_GROUP = "homogeneousCluster"  # the one instance group of a job that names none
HOST_LOST_SECONDS = 60
PEER_TIMEOUT_SECONDS = 900  # what AWS's own images wait for the other hosts' names


def truncate_utf8(text: str, limit_bytes: int) -> str:
    """The longest start of `text` that is at most `limit_bytes` in UTF-8, never cut inside a character."""
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")
