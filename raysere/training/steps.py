"""Small parts of a training step: learning-rate schedule, gradient clipping, seeds, lack of memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from raysere.base.errors import ConfigError, InfeasibleTrial, out_of_memory


def schedule(step: int, total: int, warmup: float, kind: str) -> float:
    """Factor of the learning rate: linear warm-up, then constant, or half a cosine down to 0 at the
    last step.
    """
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 1.0 if kind == "constant" else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101) in torch's fused
    kernel, one call a group.

    The same arithmetic as ``torch.optim.AdamW(fused=True)``, whose constructor imports torch's
    compiler: two seconds of each worker's start, for nothing that is used here.

    Args:
        groups: lists of leaf parameters, all float32; ``rates``: learning rate of each group, to be
            set before each step.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], *, lr: float, weight_decay: float) -> None:
        self.groups, self.weight_decay, self.rates = [list(group) for group in groups], weight_decay, [lr] * len(groups)
        self._state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step of every parameter that has a gradient."""
        for group, rate in zip(self.groups, self.rates, strict=True):
            moving: list[Tensor] = [parameter for parameter in group if parameter.grad is not None]
            if not moving:
                continue
            for parameter in moving:
                if parameter not in self._state:
                    count = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    self._state[parameter] = (torch.zeros_like(parameter), torch.zeros_like(parameter), count)
            first, second, counts = ([state[part] for state in map(self._state.__getitem__, moving)] for part in range(3))
            torch._foreach_add_(counts, 1)
            torch._fused_adamw_(
                moving,
                [parameter.grad for parameter in moving if parameter.grad is not None],
                first,
                second,
                [],
                counts,
                lr=rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=self.weight_decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


def clip(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale all gradients so that their norm is at most ``limit``, without waiting for a GPU."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if norm.device.type == "cpu" and float(norm) <= limit:
        return
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp_max(1.0))


def clip_by_fold(parameters: Sequence[Tensor], limit: float) -> None:
    """:func:`clip` of stacked parameters (F, ...), each fold by the norm of its own gradients."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value.flatten(1), dim=1) for value in gradients]), dim=0)
    if norms.device.type == "cpu" and float(norms.max()) <= limit:
        return
    for value in gradients:
        value.mul_((limit / (norms + 1e-6)).clamp_max(1.0).view(-1, *[1] * (value.dim() - 1)))


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


PRECISIONS = ("auto", "float32", "bfloat16")


def matmul_dtype(device: torch.device, precision: str) -> torch.dtype:
    """What matrix products are computed in: ``auto`` is bfloat16 on a GPU and float32 elsewhere.
    ConfigError for another name.

    bfloat16 works on every CPU; it pays on those that multiply it (AVX512-BF16, AMX).
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"There is no precision {precision!r}", where="precision", choices=PRECISIONS)
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and device.type == "cuda") else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Matrix products in ``dtype``, nothing for float32; weights, losses and norms stay float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@contextlib.contextmanager
def infeasible_when_full() -> Iterator[None]:
    """Out of memory, on the card or off it, is a configuration that cannot run here:

    InfeasibleTrial.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        full = "GPU" if isinstance(error, torch.cuda.OutOfMemoryError) else "machine"
        if full == "GPU":
            torch.cuda.empty_cache()
        raise InfeasibleTrial(
            f"The {full} has not enough memory for this configuration",
            remedy="A smaller batch, fewer layers or utterance granularity need less.",
        ) from error
