"""The models and the request bodies: python bench/serve/workloads.py DIRECTORY. Deterministic, nothing downloaded."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torchvision.io import encode_jpeg

from container.model import ModelSignature, build_network, save_model

BODIES = 8
ECHO = "def predict_fn(data, model):\n    return data\n"
MLP = """
import torch

def model_fn(model_dir):
    network = torch.nn.Sequential(
        torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10), torch.nn.Softmax(1)
    )
    network.load_state_dict(torch.load(f"{model_dir}/mlp.pt", weights_only=True))
    return network
"""


def main(directory: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for name, code in (("echo", ECHO), ("mlp", MLP)):
        (directory / name / "model" / "code").mkdir(parents=True, exist_ok=True)
        (directory / name / "model" / "code" / "inference.py").write_text(code)
    mlp = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    torch.save(mlp.state_dict(), directory / "mlp" / "model" / "mlp.pt")
    signature = ModelSignature(
        "resnet18", tuple(map(str, range(1000))), 3, 224, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    save_model(directory / "resnet18" / "model", build_network("resnet18", 1000, (3, 224, 224)), signature)
    for index in range(BODIES):
        rows = rng.random((1, 784)).round(4)
        write(directory, "echo", index, json.dumps({"echo": [index, "é", {"a": [1, 2.5, None]}]}).encode())
        write(directory, "mlp_json", index, json.dumps({"instances": rows.tolist()}).encode())
        write(directory, "mlp_npy", index, npy(rows.astype(np.float32)))
        write(directory, "resnet18", index, encode_jpeg(natural_image(rng), quality=90).numpy().tobytes())


def write(directory: Path, workload: str, index: int, body: bytes) -> None:
    path = directory / "bodies" / workload / f"{index:02}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def natural_image(rng: np.random.Generator, size: int = 224) -> torch.Tensor:
    """Coloured 1/f noise, uint8 [3, size, size]: the statistics and the JPEG size of a photograph."""
    frequency = np.sqrt(np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None, :] ** 2)
    frequency[0, 0] = 1.0
    planes = []
    for _ in range(3):
        phase = np.exp(1j * rng.uniform(0, 2 * np.pi, frequency.shape))
        plane = np.fft.irfft2(phase / frequency**1.2, s=(size, size))
        planes.append((plane - plane.mean()) / plane.std() * 48 + 118)
    return torch.from_numpy(np.clip(np.stack(planes), 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
