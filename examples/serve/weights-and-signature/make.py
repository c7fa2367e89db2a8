"""Saves a torchvision classifier's state dict; `model.json` says which network it is of, and what goes in and out."""

import json
from pathlib import Path

import torch
from PIL import Image
from torchvision.models import shufflenet_v2_x0_5

model_dir = Path("ml/model")
model_dir.mkdir(parents=True, exist_ok=True)
torch.save(shufflenet_v2_x0_5(num_classes=2).state_dict(), model_dir / "weights.pth")
signature = {"architecture": "shufflenet_v2_x0_5", "classes": ["cat", "dog"], "height": 64, "width": 64}
(model_dir / "model.json").write_text(json.dumps(signature))
Image.new("RGB", (100, 80), "orange").save("picture.png")
