"""Saves a module as TorchScript: its code and its weights in one file."""

from pathlib import Path

import torch

module = torch.nn.Linear(3, 1)
with torch.no_grad():
    module.weight.copy_(torch.tensor([[1.0, 2, 3]]))
    module.bias.zero_()
Path("ml/model").mkdir(parents=True, exist_ok=True)
torch.jit.save(torch.jit.trace(module.eval(), torch.zeros(1, 3)), "ml/model/model.pt")
