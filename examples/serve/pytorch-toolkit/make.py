"""Writes the weights and puts the code where the server looks for it."""

import shutil
from pathlib import Path

import torch

model = Path("ml/model")
(model / "code").mkdir(parents=True, exist_ok=True)
shutil.copy("inference.py", model / "code")
torch.save({"weight": torch.tensor([[1.0, 0, 0], [1, 1, 1]]), "bias": torch.tensor([0.0, 0.5])}, model / "model.pth")
