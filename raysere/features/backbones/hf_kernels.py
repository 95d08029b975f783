"""Faster computation of the costly parts of a transformers speech encoder; the numbers are the
same.

What the profile of a WavLM-base on a CPU said, and what stands here instead:

* :class:`Product` for ``nn.Linear``: PyTorch hands float32 products to MKL, which keeps to half of
  the vector width on processors that are not Intel's; oneDNN with weights packed once is more than
  twice as fast there;
* :class:`Convolution` for ``nn.Conv1d``, and :class:`WaveExtractor` for the whole extractor:
  time-major layout, in which the convolutions are faster, the norms need no transposition and the
  first convolution, of one channel, is a product;
* :class:`GatedAttention` for WavLM's: transformers has it in the eager form that returns the
  weights; here one projection for query, key and value, and scaled dot-product attention with the
  gated position bias as its additive mask.

``precision`` ``bfloat16`` rounds the factors of products and of the extractor's convolutions to
bfloat16 (sums are float32 inside); attention, softmax, norms, residuals and the positional
convolution stay in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def replace_parts(model: nn.Module, precision: torch.dtype = torch.float32) -> None:
    """Put the modules of this file in the place of transformers' in a speech encoder, for
    inference.

    Args:
        model: a model of the wav2vec2 kind or the encoder of a Whisper model, in evaluation mode,
            on its device.
        precision: ``torch.float32`` or ``torch.bfloat16``.
    """
    if hasattr(model, "feature_extractor"):
        model.feature_extractor = WaveExtractor(model.feature_extractor, precision)
    for parent in list(model.modules()):
        for linear, activation in (("intermediate_dense", "intermediate_act_fn"), ("fc1", "activation_fn")):
            if hasattr(parent, linear) and is_gelu(getattr(parent, activation)):
                setattr(parent, linear, Product(getattr(parent, linear), precision, gelu=True))
                setattr(parent, activation, nn.Identity())
        for name, child in list(parent.named_children()):
            if hasattr(child, "gru_rel_pos_linear"):
                setattr(parent, name, GatedAttention(child, precision))
            elif isinstance(child, nn.Linear) and not hasattr(parent, "gru_rel_pos_linear"):
                setattr(parent, name, Product(child, precision))
            elif isinstance(child, nn.Conv1d):
                # in groups as narrow as those of the positional convolution bfloat16 gains nothing
                # on a CPU
                exact = child.groups > 1 and child.weight.device.type == "cpu"
                setattr(parent, name, Convolution(child, torch.float32 if exact else precision))


def is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, by what it does: transformers has several classes and functions
    for it.
    """
    x = torch.linspace(-4, 4, 17)
    return bool(torch.equal(activation(x), F.gelu(x)))


def _packs(device: torch.device, precision: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this precision; for bfloat16 it needs a processor that
    multiplies it.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return precision != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Product(nn.Module):
    """``x @ weight.T + bias`` of a ``nn.Linear``, x (..., inputs), the product in ``precision``.

    ``gelu`` applies it before the result is rounded, and leaves that in ``precision`` for the
    product that follows; else the result has the dtype of x.
    """

    def __init__(self, linear: nn.Linear, precision: torch.dtype, *, gelu: bool = False) -> None:
        super().__init__()
        self.precision, self.gelu = precision, gelu
        self.packed = _packs(linear.weight.device, precision)
        weight = linear.weight.detach().to(precision).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight
        self.bias = None if linear.bias is None else linear.bias.detach().to(precision)

    def forward(self, x: Tensor) -> Tensor:
        factor = x.to(self.precision)
        if self.packed:
            y = torch.ops.mkldnn._linear_pointwise(factor, self.weight, self.bias, *_post(self.gelu))
        else:
            y = F.linear(factor, self.weight, self.bias)
            y = F.gelu(y) if self.gelu else y
        return y if self.gelu else y.to(x.dtype)


class Convolution(nn.Module):
    """A ``nn.Conv1d`` with zero padding, (B, C, T) to (B, C', T'), time-major in memory; a
    reparametrised weight is computed once.

    ``gelu`` as in :class:`Product`, but the result has the dtype of x in any case.
    """

    def __init__(self, conv: nn.Conv1d, precision: torch.dtype, *, gelu: bool = False) -> None:
        super().__init__()
        assert conv.padding_mode == "zeros"
        self.precision, self.gelu = precision, gelu
        self.packed = _packs(conv.weight.device, precision)
        self.weight = conv.weight.detach()[:, :, None].to(precision).contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(precision)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        plane = x[:, :, None].to(self.precision).contiguous(memory_format=torch.channels_last)
        stride, padding, dilation = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        if self.packed:
            y = torch.ops.mkldnn._convolution_pointwise(
                plane, self.weight, self.bias, padding, stride, dilation, self.groups, *_post(self.gelu)
            )
        else:
            y = F.conv2d(plane, self.weight, self.bias, stride, padding, dilation, self.groups)
            y = F.gelu(y) if self.gelu else y
        return y[:, :, 0].to(x.dtype)


def _post(gelu: bool) -> tuple[str, list[float], str]:
    """What oneDNN does to a result before it leaves the registers."""
    return ("gelu", [], "none") if gelu else ("none", [], "")


class WaveExtractor(nn.Module):
    """The convolutional extractor of a model of the wav2vec2 kind: (B, samples) to (B, C, T).

    ``valid`` (B,) are the steps of each clip after the first convolution that are no padding; None:
    all of them. They matter to a group norm alone, whose statistics run over time.
    """

    def __init__(self, extractor: Any, precision: torch.dtype) -> None:
        super().__init__()
        first, *others = extractor.conv_layers
        self.precision = precision
        self.kernel, self.stride = first.conv.kernel_size[0], first.conv.stride[0]
        # samples are not rounded: a bfloat16 wave has the noise of 8 bits
        self.first = Product(_as_linear(first.conv), torch.float32)
        norm = getattr(first, "layer_norm", nn.Identity())
        self.groups = isinstance(norm, nn.GroupNorm)
        self.norm = ValidGroupNorm(norm) if isinstance(norm, nn.GroupNorm) else norm
        self.activation = first.activation
        self.convolutions, self.rest = nn.ModuleList(), []
        for layer in others:
            fused = not hasattr(layer, "layer_norm") and is_gelu(layer.activation)
            self.convolutions.append(Convolution(layer.conv, precision, gelu=fused))
            self.rest.append(None if fused else (getattr(layer, "layer_norm", nn.Identity()), layer.activation))
        self.valid: Tensor | None = None

    def forward(self, waves: Tensor) -> Tensor:
        x = self.first(waves.unfold(-1, self.kernel, self.stride))  # (B, T, C) from here on
        x = self.activation(self.norm(x, self.valid) if self.groups else self.norm(x))
        for convolution, rest in zip(self.convolutions, self.rest, strict=True):
            x = convolution(x.to(self.precision).transpose(1, 2)).transpose(1, 2)
            if rest is not None:
                norm, activation = rest
                x = activation(norm(x.float()))
        return x.float().transpose(1, 2)


def _as_linear(conv: nn.Conv1d) -> nn.Linear:
    """A convolution of one channel as a product with windows of the wave."""
    linear = nn.Linear(conv.kernel_size[0], conv.out_channels, bias=conv.bias is not None, device="meta")
    linear.weight, linear.bias = nn.Parameter(conv.weight.detach()[:, 0], requires_grad=False), conv.bias  # type: ignore[assignment]
    return linear


class ValidGroupNorm(nn.Module):
    """Group norm of (B, T, C), a group a channel, over the first ``valid`` (B,) steps of each clip;
    over all where that is None.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        if norm.num_groups != norm.num_channels:
            raise ValueError("made for one channel a group, as in the extractors of the wav2vec2 family")
        self.norm = norm

    def forward(self, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is None:
            return self.norm(hidden.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
        mask = (torch.arange(hidden.shape[1], device=hidden.device) < valid[:, None])[..., None]
        count = valid[:, None, None]
        mean = (hidden * mask).sum(dim=1, keepdim=True) / count
        variance = ((hidden - mean).square() * mask).sum(dim=1, keepdim=True) / count
        return (hidden - mean) * torch.rsqrt(variance + self.norm.eps) * self.norm.weight + self.norm.bias


class GatedAttention(nn.Module):
    """WavLM's self-attention with gated relative position bias (Chen et al. 2022, "WavLM", section
    III-A), (B, T, D) to (B, T, D).

    Called as transformers calls its own; in the place of the attention weights it returns None, and
    the position bias, which the first block computes and all others gate, is (1, heads, T, T).
    """

    def __init__(self, attention: Any, precision: torch.dtype) -> None:
        super().__init__()
        self.heads, self.width = attention.num_heads, attention.head_dim
        self.project = Product(_side_by_side(attention.q_proj, attention.k_proj, attention.v_proj), precision)
        self.out = Product(attention.out_proj, precision)
        # the gates are sums of four outputs each, so four rows of weights add up to one
        gate = attention.gru_rel_pos_linear
        self.gate_weight, self.gate_bias = gate.weight.detach().view(2, 4, -1).sum(1), gate.bias.detach().view(2, 4).sum(1)
        self.gate_scale = attention.gru_rel_pos_const.detach().view(self.heads)
        if hasattr(attention, "rel_attn_embed"):
            self.positions = attention  # keeps only what compute_bias needs
            for name in ("q_proj", "k_proj", "v_proj", "out_proj", "gru_rel_pos_linear"):
                delattr(attention, name)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None, index: int = 0, **_: Any
    ) -> tuple[Tensor, None, Tensor]:
        batch, steps, _width = hidden_states.shape
        if position_bias is None:
            position_bias = self.positions.compute_bias(steps, steps)[None]
        gates = torch.sigmoid(F.linear(hidden_states.view(batch, steps, self.heads, self.width), self.gate_weight, self.gate_bias))
        gate = gates[..., 0] * (gates[..., 1] * self.gate_scale - 1.0) + 2.0
        bias = gate.transpose(1, 2)[..., None] * position_bias
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask.ne(1)[:, None, None], -torch.inf)
        query, key, value = self.project(hidden_states).view(batch, steps, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(batch, steps, -1)), None, position_bias


def _side_by_side(*linears: nn.Linear) -> nn.Linear:
    """One product in the place of several of the same input."""
    joint = nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears), device="meta")
    joint.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
    joint.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return joint
