"""The small parts of a training step: learning-rate schedule, gradient clipping, seeds, and what to do without memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from raysere.errors import InfeasibleTrial


def schedule(step: int, total: int, warmup: float, kind: str) -> float:
    """Factor of the learning rate: linear warm-up, then constant, or half a cosine down to 0 at the last step."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 1.0 if kind == "constant" else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def clip(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale all gradients so that their norm is at most ``limit``, without waiting for a GPU."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if norm.device.type == "cpu" and float(norm) <= limit:
        return
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp_max(1.0))


def keep(kept: dict[str, Tensor], model: nn.Module) -> None:
    """Copy the model's state into ``kept``, reusing its tensors."""
    for name, value in model.state_dict().items():
        if name in kept:
            kept[name].copy_(value)
        else:
            kept[name] = value.detach().clone()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators follow from ``seed`` inside, and are as before outside."""
    cuda = device.type == "cuda"
    before, before_cuda = torch.default_generator.get_state(), torch.cuda.get_rng_state(device) if cuda else None
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it asks every kind of device, at a millisecond each
    if cuda:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
        if before_cuda is not None:
            torch.cuda.set_rng_state(before_cuda, device)


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 where the device is a GPU, nothing elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def infeasible_when_full() -> Iterator[None]:
    """Out of memory, on the card or off it, is a configuration that cannot run here: InfeasibleTrial."""
    remedy = "A smaller batch, fewer layers or utterance granularity need less."
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise InfeasibleTrial("The GPU has not enough memory for this configuration", remedy=remedy) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise InfeasibleTrial("The machine has not enough memory for this configuration", remedy=remedy) from error
        raise
