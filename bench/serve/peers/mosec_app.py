"""mosec: BENCH_WORKERS processes, no batching unless BENCH_BATCH says so."""

import os

from mosec import Server, Worker
from work import Work


class Model(Worker):
    resp_mime_type = "application/json"

    def __init__(self):
        super().__init__()
        self.work = Work()

    def deserialize(self, data):
        return self.work.decode(data)

    def serialize(self, data):
        return self.work.encode(data)

    def forward(self, data):
        return self.work.predict(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=int(os.environ["BENCH_WORKERS"]), timeout=60, route="/invocations")
    server.run()
