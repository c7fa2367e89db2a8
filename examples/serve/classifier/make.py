"""Stands for a training job of the built-in program: leaves the artifact it would leave, of an untrained network."""

from pathlib import Path

import torch
from PIL import Image

from container.model import ModelSignature, build_network, save_model

torch.manual_seed(0)
signature = ModelSignature("convnet", ("cat", "dog"), channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.25,) * 3)
save_model(Path("ml/model"), build_network("convnet", 2, signature.image_shape), signature)
Image.new("RGB", (100, 80), "orange").save("picture.png")
