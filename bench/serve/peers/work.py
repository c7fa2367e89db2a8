"""What every peer computes, with the same fast decoding and encoding that our server uses.

BENCH_MODEL names the model directory's kind (echo, mlp, resnet18), BENCH_DATA where the models lie, BENCH_THREADS
torch's threads in one process.
"""

import os
from pathlib import Path

KIND = os.environ["BENCH_MODEL"]
DATA = Path(os.environ["BENCH_DATA"])


class Work:
    def __init__(self):
        import orjson

        self.loads, self.dumps = orjson.loads, orjson.dumps
        if KIND == "echo":
            return
        import torch

        torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
        if KIND == "mlp":
            self.network = torch.nn.Sequential(
                torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10), torch.nn.Softmax(1)
            )
            self.network.load_state_dict(torch.load(DATA / "mlp/model/mlp.pt", weights_only=True))
            self.network.eval()
        else:
            import torchvision
            from safetensors.torch import load_file

            self.network = torchvision.models.resnet18()
            self.network.load_state_dict(load_file(DATA / "resnet18/model/model.safetensors"))
            self.network.eval()
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            self.mean, self.std = (torch.tensor(values)[:, None, None] * 255 for values in (mean, std))

    def decode(self, body):
        import numpy as np

        if KIND == "echo":
            return self.loads(body)
        import torch

        if KIND == "resnet18":
            import torchvision

            image = torchvision.io.decode_image(torch.frombuffer(bytearray(body), dtype=torch.uint8))
            return ((image.float() - self.mean) / self.std)[None]
        if body[:6] == b"\x93NUMPY":  # version 1.0, float32 [1, 784]
            start = 10 + int.from_bytes(body[8:10], "little")
            return torch.from_numpy(np.frombuffer(body, np.float32, offset=start).reshape(1, 784).copy())
        return torch.from_numpy(np.array(self.loads(body)["instances"], np.float32))

    def predict(self, data):
        if KIND == "echo":
            return data
        import torch

        with torch.inference_mode():
            output = self.network(data)
            return torch.softmax(output, 1) if KIND == "resnet18" else output

    def encode(self, prediction):
        if KIND == "echo":
            return self.dumps(prediction)
        rows = prediction.numpy()
        if KIND == "mlp":
            return self.dumps(rows.tolist())
        best = int(rows[0].argmax())
        record = {"label": str(best), "score": float(rows[0][best]), "probabilities": rows[0].tolist()}
        return self.dumps({"predictions": [record]})
