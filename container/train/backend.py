"""Which collective library the ranks talk through."""

import logging
import os
from importlib import import_module

from container import contract

logger = logging.getLogger(__name__)

SMDDP = "smdistributed.dataparallel.torch.torch_smddp"  # AWS's data parallel library; its import registers `smddp`
SMDDP_INSTANCES = ("ml.p4d.24xlarge", "ml.p4de.24xlarge")  # what its guide says it runs on, over several hosts


def process_group_backend(on_gpu: bool) -> str:
    """What `torch.distributed.init_process_group` is called with: gloo for the CPU, and NCCL, or smddp, for GPUs.

    smddp is taken where the image has it, and the job runs on several hosts of a type that it knows.
    """
    if not on_gpu:
        return "gloo"
    several_hosts = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    if several_hosts and os.environ.get(contract.sm_variable("current_instance_type")) in SMDDP_INSTANCES:
        try:
            import_module(SMDDP)
        except ModuleNotFoundError:
            return "cpu:gloo,cuda:nccl"
        except ImportError as error:
            logger.warning("smddp is in the image and cannot be loaded, so that NCCL takes its place: %s", error)
            return "cpu:gloo,cuda:nccl"
        return "cpu:gloo,cuda:smddp"
    return "cpu:gloo,cuda:nccl"
