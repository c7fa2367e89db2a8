"""Exports a module as a program: its graph and its weights in one file, for batches of any size."""

from pathlib import Path

import torch

module = torch.nn.Linear(3, 1)
with torch.no_grad():
    module.weight.copy_(torch.tensor([[1.0, 2, 3]]))
    module.bias.zero_()
batch = torch.export.Dim("batch")
program = torch.export.export(module.eval(), (torch.zeros(2, 3),), dynamic_shapes=({0: batch},))
Path("ml/model").mkdir(parents=True, exist_ok=True)
torch.export.save(program, "ml/model/model.pt2")
