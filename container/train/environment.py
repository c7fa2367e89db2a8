"""The files SageMaker lays under `/opt/ml`, read once into one frozen value; and the `SM_*` variables made of it."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from container import contract
from container.contract import OptMl

# Consumed by the toolkit itself; every other `sagemaker_*` hyperparameter is one of SM_FRAMEWORK_PARAMS.
_TOOLKIT_HYPERPARAMETERS = frozenset(
    {
        contract.PROGRAM_HYPERPARAMETER,
        contract.SUBMIT_DIRECTORY_HYPERPARAMETER,
        contract.LOG_LEVEL_HYPERPARAMETER,
        contract.TUNING_OBJECTIVE_METRIC,
        "sagemaker_enable_cloudwatch_metrics",
        "sagemaker_region",
        "sagemaker_job_name",
        "sagemaker_s3_output",
        "default_user_module_name",
    }
)
# With one of these, the toolkit counts the current instance group as the one that trains.
_DISTRIBUTION_SWITCHES = (
    "sagemaker_mpi_enabled",
    "sagemaker_parameter_server_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_torch_distributed_enabled",
)
MASK = "******"


class ConfigError(Exception):
    """A file under `input/config` is missing or is not what SageMaker writes."""


@dataclass(frozen=True)
class TrainingEnvironment:
    """What SageMaker tells a training container, decoded."""

    opt_ml: OptMl
    hyperparameters: Mapping[str, Any]
    """The user's own, decoded."""
    reserved_hyperparameters: Mapping[str, Any]
    """`sagemaker_*` and the tuner's, decoded; a user's parser must not see them."""
    channels: Mapping[str, Mapping[str, Any]]
    """Channel name -> its entry of inputdataconfig.json."""
    resource_config: Mapping[str, Any]
    """resourceconfig.json as it stands."""
    job_name: str | None
    num_gpus: int
    num_cpus: int

    @property
    def current_host(self) -> str:
        return self.resource_config["current_host"]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host of the job, sorted as strings, so that all hosts agree on the order (`algo-10` < `algo-2`)."""
        return tuple(sorted(self.resource_config["hosts"]))

    @property
    def network_interface(self) -> str:
        return self.resource_config.get("network_interface_name", contract.DEFAULT_NETWORK_INTERFACE)

    @property
    def current_group(self) -> str:
        """`current_group_name`, in some writings `current_instance_group`."""
        resources = self.resource_config
        named = resources.get("current_group_name", resources.get("current_instance_group"))
        return named or contract.HOMOGENEOUS_GROUP

    @property
    def instance_groups(self) -> dict[str, tuple[str, ...]]:
        """Group name -> its hosts; entries that repeat a name are one group."""
        groups: dict[str, tuple[str, ...]] = {}
        for group in self.resource_config.get("instance_groups", []):
            name = group["instance_group_name"]
            groups[name] = tuple(dict.fromkeys((*groups.get(name, ()), *group["hosts"])))
        return groups

    @property
    def training_hosts(self) -> tuple[str, ...]:
        """Sorted hosts of the process group: all, or those of `sagemaker_distribution_instance_groups`."""
        wanted = self.reserved_hyperparameters.get(contract.DISTRIBUTION_GROUPS_HYPERPARAMETER)
        if not wanted:
            return self.hosts
        return tuple(sorted(host for name in wanted for host in self.instance_groups.get(name, ())))

    @property
    def is_training_host(self) -> bool:
        return self.current_host in self.training_hosts

    @property
    def checkpoint_dir(self) -> Path | None:
        """Where SageMaker syncs checkpoints from; None when the job has no CheckpointConfig."""
        config = read_json(self.opt_ml.checkpoint_config)
        directory = self.opt_ml.checkpoints
        if self.opt_ml.base == contract.BASE_DIR and config.get("LocalPath"):
            directory = Path(config["LocalPath"])
        return directory if directory.is_dir() else None

    def channel_is_sharded(self, name: str) -> bool:
        """Whether every host got other objects of this channel, so that it must not be split over hosts again."""
        return self.channels[name].get("S3DistributionType") == "ShardedByS3Key" and len(self.hosts) > 1


def read_environment(opt_ml: OptMl, environ: Mapping[str, str]) -> TrainingEnvironment:
    """The training environment described by the files of `opt_ml` and by the process environment.

    Raises:
        ConfigError: resourceconfig.json is missing, names no host, or a file is not JSON.
    """
    decoded = {
        name: contract.decode_hyperparameter(value) if isinstance(value, str) else value
        for name, value in read_json(opt_ml.hyperparameters).items()
    }
    resources = read_json(opt_ml.resource_config)
    for key in ("current_host", "hosts"):
        if not resources.get(key):
            raise ConfigError(
                f"{opt_ml.resource_config} has no {key!r}; the least that SageMaker writes there is "
                '{"current_host": "algo-1", "hosts": ["algo-1"]}'
            )
    return TrainingEnvironment(
        opt_ml=opt_ml,
        hyperparameters={k: v for k, v in decoded.items() if not contract.is_reserved_hyperparameter(k)},
        reserved_hyperparameters={k: v for k, v in decoded.items() if contract.is_reserved_hyperparameter(k)},
        channels=read_json(opt_ml.input_data_config),
        resource_config=resources,
        job_name=environ.get(contract.TRAINING_JOB_NAME),
        num_gpus=count_gpus(),
        num_cpus=os.cpu_count() or 1,
    )


def training_environment() -> TrainingEnvironment:
    """The environment of the job this process belongs to: for a user's script.

    Where there is no job, because somebody runs the script by itself, it is one of a single host without settings.

    Raises:
        ConfigError: see `read_environment`.
    """
    opt_ml = OptMl.from_env()
    if opt_ml.resource_config.parent.is_dir():
        return read_environment(opt_ml, os.environ)
    alone = {"current_host": "algo-1", "hosts": ["algo-1"]}
    return TrainingEnvironment(opt_ml, {}, {}, {}, alone, None, count_gpus(), os.cpu_count() or 1)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file's object; empty where there is no such file, or nothing in it.

    Raises:
        ConfigError: it is not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes() or b"{}")
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def count_gpus() -> int:
    """GPUs the driver lists; 0 where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def usable_cores() -> int:
    """CPU cores this container may use: its affinity mask, further limited by cgroup v2's or v1's quota."""
    cores = float(len(os.sched_getaffinity(0)))
    for quota_file, period_file in (
        (Path("/sys/fs/cgroup/cpu.max"), None),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    ):
        if quota_file.is_file():
            words = quota_file.read_text().split() + (period_file.read_text().split() if period_file else [])
            if words[0] not in ("max", "-1"):
                cores = min(cores, int(words[0]) / int(words[1]))
    return max(1, int(cores))


def user_arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    """Hyperparameters as a user script's arguments, spelled as sagemaker-training does.

    Sorted by name, `--name value`, one-letter names `-n value`, None as an empty string, objects as `a=1,b=2`.
    """
    arguments: list[str] = []
    for name in sorted(hyperparameters):
        value = hyperparameters[name]
        if isinstance(value, Mapping):
            text = ",".join(f"{k}={v}" for k, v in sorted(value.items()))
        else:
            text = "" if value is None else str(value)
        arguments += [f"--{name}" if len(name) > 1 else f"-{name}", text]
    return arguments


def sm_variables(environment: TrainingEnvironment, program: str | None) -> dict[str, str]:
    """Every `SM_*` variable a user script may read.

    The values of sagemaker-training's `Environment`, plus the names and spellings that only SDK v3's driver has
    (`SM_HP_BATCH_SIZE` beside `SM_HP_BATCH-SIZE`).

    Args:
        environment: read from `/opt/ml`.
        program: the user's script, package or command; None for the built-in program.
    """
    values = _toolkit_values(environment, program)
    values |= {f"hp_{name}": value for name, value in environment.hyperparameters.items()}
    values |= {f"channel_{name}": path for name, path in values["training_env"]["channel_input_dirs"].items()}
    for name, value in _v3_values(environment, program).items():
        values.setdefault(name, value)
    return {contract.sm_variable(name): _variable(value) for name, value in values.items()}


def _variable(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _toolkit_values(environment: TrainingEnvironment, program: str | None) -> dict[str, Any]:
    shared = _shared_values(environment, program)
    paths = environment.opt_ml
    training_env = shared | {
        "additional_framework_parameters": _framework_parameters(environment),
        "channel_input_dirs": {name: str(paths.channel(name)) for name in environment.channels},
        "distribution_hosts": _distribution_hosts(environment),
        "hyperparameters": dict(environment.hyperparameters),
        "is_master": environment.current_host == _master_hostname(environment),
        "is_modelparallel_enabled": _model_parallel(environment),
        "is_smddpmprun_installed": shutil.which("smddpmprun") is not None,
        "is_smddprun_installed": shutil.which("smddprun") is not None,
        "job_name": environment.job_name,
        "master_hostname": _master_hostname(environment),
        "topology": environment.resource_config.get("topology", []),
    }
    values = shared | {
        "channels": sorted(environment.channels),
        "hps": dict(environment.hyperparameters),
        "framework_params": _framework_parameters(environment),
        "training_env": training_env,
        "user_args": user_arguments(environment.hyperparameters),
    }
    if training_env["topology"]:
        values["topology"] = training_env["topology"]
    return values


def _shared_values(environment: TrainingEnvironment, program: str | None) -> dict[str, Any]:
    """What the toolkit gives both as a variable of its own and inside SM_TRAINING_ENV."""
    resources, paths = environment.resource_config, environment.opt_ml
    reserved = environment.reserved_hyperparameters
    groups = {group["instance_group_name"]: group for group in resources.get("instance_groups", [])}
    return {
        "current_host": environment.current_host,
        "current_instance_group": environment.current_group,
        "current_instance_group_hosts": list(environment.instance_groups.get(environment.current_group, ())),
        "current_instance_type": resources.get("current_instance_type", "local"),
        "distribution_instance_groups": _distribution_groups(environment),
        "framework_module": None,
        "hosts": list(resources["hosts"]),
        "input_config_dir": str(paths.config),
        "input_data_config": dict(environment.channels),
        "input_dir": str(paths.input),
        "instance_groups": list(environment.instance_groups),
        "instance_groups_dict": groups,
        "is_hetero": len(environment.instance_groups) > 1,
        "log_level": reserved.get(contract.LOG_LEVEL_HYPERPARAMETER, 20),
        "model_dir": str(paths.model),
        "module_dir": str(reserved.get(contract.SUBMIT_DIRECTORY_HYPERPARAMETER) or paths.code),
        "module_name": (program or "").removesuffix(".py"),
        "network_interface_name": environment.network_interface,
        "num_cpus": environment.num_cpus,
        "num_gpus": environment.num_gpus,
        "num_neurons": 0,
        "output_data_dir": str(paths.output_data),
        "output_dir": str(paths.output),
        "output_intermediate_dir": str(paths.output_intermediate),
        "resource_config": dict(resources),
        "user_entry_point": program,
    }


def _v3_values(environment: TrainingEnvironment, program: str | None) -> dict[str, Any]:
    paths, hosts = environment.opt_ml, environment.training_hosts
    values: dict[str, Any] = {
        "input_data_dir": str(paths.data),
        "output_failure": str(paths.failure),
        "host_count": len(environment.hosts),
        "current_host_rank": environment.hosts.index(environment.current_host),
        "master_addr": hosts[0],
        "master_port": contract.DEFAULT_MASTER_PORT,
        "source_dir": str(paths.channel(contract.CODE_CHANNEL)),
        "entry_script": program,
    }
    for name, value in environment.hyperparameters.items():
        values.setdefault(f"hp_{name.replace('-', '_')}", value)
    return values


def _framework_parameters(environment: TrainingEnvironment) -> dict[str, Any]:
    reserved = environment.reserved_hyperparameters
    return {name: value for name, value in reserved.items() if name not in _TOOLKIT_HYPERPARAMETERS}


def _distribution_groups(environment: TrainingEnvironment) -> Sequence[str]:
    reserved = environment.reserved_hyperparameters
    if contract.DISTRIBUTION_GROUPS_HYPERPARAMETER in reserved:
        return reserved[contract.DISTRIBUTION_GROUPS_HYPERPARAMETER]
    switched_on = any(reserved.get(switch) for switch in _DISTRIBUTION_SWITCHES)
    return [environment.current_group] if switched_on else []


def _distribution_hosts(environment: TrainingEnvironment) -> list[str]:
    if not environment.instance_groups:
        return list(environment.resource_config["hosts"])
    groups = _distribution_groups(environment)
    return [host for name, hosts in environment.instance_groups.items() if name in groups for host in hosts]


def _master_hostname(environment: TrainingEnvironment) -> str:
    """The toolkit's answer, which user scripts expect in SM_TRAINING_ENV: the file's order, not the sorted one."""
    return (_distribution_hosts(environment) or environment.resource_config["hosts"])[0]


def _model_parallel(environment: TrainingEnvironment) -> bool | None:
    parameters = environment.hyperparameters.get("mp_parameters")
    return bool(parameters) or None


def masked(values: Mapping[str, Any]) -> dict[str, Any]:
    """For the log: the same mapping, with the values of secret-looking names replaced."""
    return {name: MASK if contract.SECRET_NAME.search(name) else value for name, value in values.items()}
