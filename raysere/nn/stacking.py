"""Several modules of one shape as one: parameters and buffers get a leading dimension of folds F.

A method whose modules are made of :class:`Linear` and :class:`LayerNorm` below, and whose own
arithmetic counts dimensions from the end, runs unchanged on one fold (B, D) and on a stack of folds
(F, B, D). See :meth:`raysere.training.method.Method.stacks`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """``x W' + b`` of x (B, D), or of x (F, B, D) with stacked W (F, H, D) and b (F, H)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return F.linear(x, self.weight, self.bias)
        if self.weight[0].numel() <= x[0].numel():
            weight = self.weight.transpose(1, 2)
            return torch.bmm(x, weight) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), x, weight)
        # W x': the gradient of the larger of the two comes out in its own layout, else it is copied
        # transposed at every step
        columns = x.transpose(1, 2)
        y = torch.bmm(self.weight, columns) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(2), self.weight, columns)
        return y.transpose(1, 2)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension; stacked gain and bias are (F, D)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 1:
            return super().forward(x)
        return torch.addcmul(self.bias.unsqueeze(1), F.layer_norm(x, self.normalized_shape, None, None, self.eps), self.weight.unsqueeze(1))


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """One module that holds all; the parameters and buffers of ``models`` become views of its own,
    so training it trains them.
    """
    whole = copy.deepcopy(models[0])
    for name, module in whole.named_modules():
        parts = [model.get_submodule(name) for model in models]
        for key, parameter in list(module.named_parameters(recurse=False)):
            values = [part.get_parameter(key) for part in parts]
            joined = nn.Parameter(torch.stack([value.detach() for value in values]), requires_grad=parameter.requires_grad)
            setattr(module, key, joined)
            for value, view in zip(values, joined.detach().unbind(), strict=True):
                value.data = view
        for key, _ in list(module.named_buffers(recurse=False)):
            tensors = torch.stack([part.get_buffer(key) for part in parts])
            setattr(module, key, tensors)
            for part, view in zip(parts, tensors.unbind(), strict=True):
                setattr(part, key, view)
    return whole
