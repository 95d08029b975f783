"""The optimiser against torch's own."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from raysere.training.steps import AdamW


def test_adamw_is_torchs() -> None:
    torch.manual_seed(0)
    starts = [torch.randn(7, 5), torch.randn(5), torch.randn(3)]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    mine = AdamW([ours[:2], ours[2:]], lr=1e-2, weight_decay=0.1)
    reference = torch.optim.AdamW([{"params": theirs[:2]}, {"params": theirs[2:]}], lr=1e-2, weight_decay=0.1, fused=True)
    for step in range(6):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            idle = number == 1 and step % 2 == 1  # a parameter without a gradient takes no step
            a.grad = None if idle else torch.randn_like(a)
            b.grad = None if a.grad is None else a.grad.clone()
        mine.rates = [1e-2 / (step + 1), 1e-3]
        for group, rate in zip(reference.param_groups, mine.rates, strict=True):
            group["lr"] = rate
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_training_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from raysere.training.steps import AdamW; p = torch.nn.Parameter(torch.ones(2)); p.grad = p.detach(); "
        "AdamW([[p]], lr=0.1, weight_decay=0.0).step(); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
