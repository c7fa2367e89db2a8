"""RecordIO through a FIFO beside the same bytes read raw: .venv/bin/python bench/train/records.py [--rounds 5].

Per record size and round a writer process sends the same bytes through a FIFO of 1 MiB to each reader in turn: `raw`,
which throws them away as `cat` would, `slipway`, which is PipeChannel with RecordIO framing, and `toolkit`, the reader
of sagemaker-training. Each number is the median over the rounds; ratios are to `raw` of the same run.
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from container.train.pipe import BUFFER_BYTES, PipeChannel

MAGIC = 0xCED7230A
RECORD_BYTES = (256, 3_000, 30_000, 300_000, 3_000_000)
EPOCH_BYTES = 256 * 1024**2
FORK = multiprocessing.get_context("fork")


def encoded(record_bytes: int) -> bytes:
    """About 8 MiB of records of one size."""
    record = struct.pack("<II", MAGIC, record_bytes) + bytes(record_bytes) + bytes(-record_bytes % 4)
    return record * max(1, 8 * 1024**2 // len(record))


def write(fifo: Path, block: bytes, count: int) -> None:
    with fifo.open("wb", buffering=0) as file:
        fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, BUFFER_BYTES)
        for _ in range(count):
            for start in range(0, len(block), BUFFER_BYTES):
                file.write(memoryview(block)[start : start + BUFFER_BYTES])


def read_raw(fifo: Path, record_bytes: int) -> int:
    buffer, total = bytearray(BUFFER_BYTES), 0
    with fifo.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def read_slipway(fifo: Path, record_bytes: int) -> int:
    padded = 8 + record_bytes + -record_bytes % 4
    channel = PipeChannel(fifo.with_name(fifo.name.removesuffix("_0")), records=True)
    return sum(padded for record in channel if len(record) == record_bytes)


def read_toolkit(fifo: Path, record_bytes: int) -> int:
    from sagemaker_training.recordio import _read_recordio

    padded = 8 + record_bytes + -record_bytes % 4
    with fifo.open("rb") as file:
        return sum(padded for record in _read_recordio(file) if len(record) == record_bytes)


READERS: dict[str, Callable[[Path, int], int]] = {"raw": read_raw, "slipway": read_slipway, "toolkit": read_toolkit}


def megabytes_per_second(name: str, block: bytes, record_bytes: int) -> float:
    count = max(1, EPOCH_BYTES // len(block))
    with tempfile.TemporaryDirectory() as directory:
        os.environ["SLIPWAY_RUNTIME_DIR"] = directory
        fifo = Path(directory, "train_0")
        os.mkfifo(fifo)
        writer = FORK.Process(target=write, args=(fifo, block, count))
        writer.start()
        started = time.perf_counter()
        total = READERS[name](fifo, record_bytes)
        seconds = time.perf_counter() - started
        writer.join()
    assert total == count * len(block), f"{name} read {total} bytes of {count * len(block)}"
    return total / 1e6 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    result = {}
    print(
        f"{'record bytes':>12} {'raw MB/s':>9} "
        + " ".join(f"{name:>9} {'ratio':>6}" for name in READERS if name != "raw")
    )
    for record_bytes in RECORD_BYTES:
        block = encoded(record_bytes)
        rates: dict[str, list[float]] = {name: [] for name in READERS}
        for turn in range(rounds):
            for name in list(READERS)[:: -1 if turn % 2 else 1]:
                rates[name].append(megabytes_per_second(name, block, record_bytes))
        median = {name: statistics.median(values) for name, values in rates.items()}
        ratios = {name: median[name] / median["raw"] for name in READERS if name != "raw"}
        columns = " ".join(f"{median[name]:9.0f} {ratio:6.2f}" for name, ratio in ratios.items())
        print(f"{record_bytes:12d} {median['raw']:9.0f} {columns}")
        result[record_bytes] = {"megabytes_per_second": median, "ratio_to_raw": ratios}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
