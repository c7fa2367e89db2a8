"""The training container: `launch` per host, `rank` per process, and the helpers a user's script may use.

A user's script imports the helpers from here; nothing is imported, and no torch loaded, until a name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from container.recordio import RecordIOError, read_records
    from container.train.checkpoint import Checkpoints
    from container.train.disk import DiskFullError, export_weights, require_free_space, state_bytes
    from container.train.environment import TrainingEnvironment, training_environment
    from container.train.files import ChannelError, channel_directory, list_files
    from container.train.fsdp import full_state_dict, load_full_state_dict, shard
    from container.train.health import Health
    from container.train.hyperparameters import HyperparameterError, build_config, nest_hyperparameters
    from container.train.manifest import AugmentedManifest, AugmentedManifestFile, ImageLabel
    from container.train.metrics import Metrics
    from container.train.pipe import PipeChannel
    from container.train.processing import ProcessingEnvironment, processing_environment, whole_file
    from container.train.sharded import CheckpointMismatchError, ShardedCheckpoints
    from container.train.shards import Share, TarShards, agreed_steps, channel_share, equal_steps
    from container.train.shared_memory import loader_options
    from container.train.stop import GracefulStop
    from container.train.tabular import Table, Target, read_csv, read_parquet

_HOMES = {
    "Checkpoints": "checkpoint",
    "DiskFullError": "disk",
    "export_weights": "disk",
    "require_free_space": "disk",
    "state_bytes": "disk",
    "TrainingEnvironment": "environment",
    "training_environment": "environment",
    "ChannelError": "files",
    "channel_directory": "files",
    "list_files": "files",
    "full_state_dict": "fsdp",
    "load_full_state_dict": "fsdp",
    "shard": "fsdp",
    "Health": "health",
    "HyperparameterError": "hyperparameters",
    "build_config": "hyperparameters",
    "nest_hyperparameters": "hyperparameters",
    "AugmentedManifest": "manifest",
    "AugmentedManifestFile": "manifest",
    "ImageLabel": "manifest",
    "Metrics": "metrics",
    "PipeChannel": "pipe",
    "ProcessingEnvironment": "processing",
    "processing_environment": "processing",
    "whole_file": "processing",
    "RecordIOError": ".recordio",  # one up: serving reads it, too
    "read_records": ".recordio",
    "CheckpointMismatchError": "sharded",
    "ShardedCheckpoints": "sharded",
    "Share": "shards",
    "TarShards": "shards",
    "agreed_steps": "shards",
    "channel_share": "shards",
    "equal_steps": "shards",
    "loader_options": "shared_memory",
    "GracefulStop": "stop",
    "Table": "tabular",
    "Target": "tabular",
    "read_csv": "tabular",
    "read_parquet": "tabular",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
