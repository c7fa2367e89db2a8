"""What decoding and the forward pass reach in one process without a server: python bench/serve/limit.py DATA SECONDS.

The same predictor as the server's, driven by one thread per core; prints images per second.
"""

import os
import sys
import threading
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from container.serve.call import Call
from container.serve.exchange import Request
from container.serve.load import place_of
from container.serve.plan import plan_server, read_machine
from container.serve.predictor import load_predictor


def main(data: Path, seconds: float) -> None:
    plan = plan_server(read_machine(), {}, 0)
    predictor = load_predictor(data / "resnet18" / "model", {}, place_of(plan, "cpu"))
    predictor.tune()
    bodies = [path.read_bytes() for path in sorted((data / "bodies" / "resnet18").iterdir())]
    counts = []

    def work() -> None:
        count, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            call = Call(Request("POST", "", {"content-type": "image/jpeg"}, bodies[count % len(bodies)]), print)
            call.data = predictor.decode(call)
            predictor.encode(predictor.predict([call])[0], call)
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=work) for _ in os.sched_getaffinity(0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts) / seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
