"""Runs train.py as a job of two hosts, as plain processes: what `launcher train --local` does with its own platform."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from container.contract import OptMl
from launcher.local.opt_ml import write_training_input

HERE = Path(__file__).parent
HOSTS = ("algo-1", "algo-2")


def main() -> int:
    base = Path(tempfile.mkdtemp(prefix="train-helpers-"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    request = {
        "HyperParameters": {"epochs": "10"},
        "InputDataConfig": [{"ChannelName": "code"}],
        "CheckpointConfig": {},
    }
    processes = []
    for host in HOSTS:
        opt_ml = OptMl(base / host)
        write_training_input(opt_ml, request, host, HOSTS, "lo")
        (opt_ml.channel("code") / "train.py").write_bytes((HERE / "train.py").read_bytes())
        environ = os.environ | {"SAGEMAKER_BASE_DIR": str(opt_ml.base)}
        environ |= {"SLIPWAY_MASTER_ADDR": "127.0.0.1", "SLIPWAY_MASTER_PORT": str(port)}
        processes.append(subprocess.Popen([sys.executable, "-m", "container", "train"], env=environ))
    status = max(process.wait() for process in processes)
    print(f"exit status {status}; model: {base / HOSTS[0] / 'model' / 'model.pt'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
