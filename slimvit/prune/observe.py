"""One pass of the calibration images through a model, forward and backward: what the criteria are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.errors import DataError
from slimvit.models.family import AttentionBlock, TimmModule, attention_blocks
from slimvit.progress import track

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images [B, C, H, W], labels [B]; -1 where there is none), iterable more than once."""

NO_IMAGES = "no calibration images: the data has no training images to draw them from"


@dataclass
class HeadStatistics:
    """Sums over the calibration set for one attention with H heads of width d, k = H*d, output width C.

    ``covariance`` [k, k] and ``gradient`` [C, C] are second moments per token, of the concatenated head outputs
    (centred) and of the loss gradient at ``proj``'s output; ``gate_gradient`` [images, H] is dLoss/dm_h.
    """

    covariance: Tensor
    gradient: Tensor
    gate_gradient: Tensor


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class _Sums:
    """What has been added up so far for one block; ``features`` waits for its gradient;
    ``size`` is the stream's without batch and channels."""

    tokens: int = 0
    shift: Tensor | None = None
    z: Tensor = field(default_factory=_zero)
    zz: Tensor = field(default_factory=_zero)
    gg: Tensor = field(default_factory=_zero)
    gates: list[Tensor] = field(default_factory=list)
    features: Tensor | None = None
    size: tuple[int, ...] = ()


def observe(model: nn.Module, batches: Batches, loss: str, seed: int = 0) -> list[HeadStatistics]:
    """Statistics of every attention block, in forward order, from one forward and backward pass.

    ``loss``: ``labels`` (cross-entropy with the given labels), ``sampled`` (labels drawn from the model's own
    predictions: the true Fisher information, no labels needed) or ``features`` (a random direction of the features
    before the classifier: their Gauss-Newton matrix, no classifier needed).
    """
    blocks = attention_blocks(model)
    sums = [_Sums() for _ in blocks]
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        stack.enter_context(_frozen_eval(model))
        stack.enter_context(torch.enable_grad())
        for block, total in zip(blocks, sums, strict=True):
            stack.enter_context(_watch(block, total))
        for images, labels in track(batches, "scoring heads"):
            images = images.to(device)
            value = batch_loss(model, images, labels, loss, generator)
            value.backward()
    if not sums or sums[0].tokens == 0:
        raise DataError(NO_IMAGES)
    return [_finish(total) for total in sums]


def batch_loss(model: TimmModule, images: Tensor, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Sum over images, so that each image's gradient is its own."""
    features = model.forward_head(model.forward_features(images), pre_logits=True) if kind == "features" else None
    if features is not None:
        directions = torch.randn(features.shape, generator=generator).to(features)
        return (features * directions).sum()
    logits = model(images)
    if kind == "sampled":
        labels = torch.multinomial(logits.detach().softmax(-1).cpu().float(), 1, generator=generator).squeeze(1)
    elif (labels < 0).any():
        raise DataError("this criterion needs labels, but the calibration images have none; use residual or magnitude")
    return F.cross_entropy(logits, labels.to(logits.device), reduction="sum")


@contextmanager
def _frozen_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode and no weight gradients inside; everything as before afterwards."""
    training = [m for m in model.modules() if m.training]
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        for m in training:
            m.training = True


@contextmanager
def _watch(block: AttentionBlock, total: _Sums) -> Iterator[None]:
    """Collect this block's sums while batches run through the model."""

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        total.size = args[0].shape[1:-1]

    def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        total.features = args[0].detach()
        if not output.requires_grad:  # the first block: nothing before it asks for gradients
            output = output.requires_grad_()
        output.register_hook(lambda grad: _add(block, total, grad))
        return output

    hooks = [block.block.register_forward_pre_hook(enter), block.attn.proj.register_forward_hook(forward)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(block: AttentionBlock, total: _Sums, grad: Tensor) -> None:
    """``grad`` [..., C]: dLoss/d(output of proj) of the batch whose head outputs [..., k] wait in ``total``."""
    z, total.features = total.features, None
    assert z is not None
    # one row an image, one column a token: padding and windows are gone
    z, grad = (block.to_stream(t, total.size).flatten(1, -2) for t in (z, grad))
    back = grad @ block.attn.proj.weight  # dLoss/dZ, [B, N, k]
    by_head = (z * back).unflatten(-1, (block.attn.num_heads, block.head_dim))
    total.gates.append(by_head.sum(dim=(1, 3)).cpu().double())
    g, z = grad.flatten(0, -2).float(), z.flatten(0, -2).float()  # reshape(-1, k) cannot take the k = 0 of no heads
    if total.shift is None:
        total.shift = z.mean(0)
    z = z - total.shift  # float32 products are exact enough of values near their mean
    total.tokens += len(z)
    total.z = total.z + z.sum(0).cpu().double()
    total.zz = total.zz + (z.T @ z).cpu().double()
    total.gg = total.gg + (g.T @ g).cpu().double()


def _finish(total: _Sums) -> HeadStatistics:
    mean = total.z / total.tokens
    covariance = total.zz / total.tokens - torch.outer(mean, mean)
    return HeadStatistics(covariance, total.gg / total.tokens, torch.cat(total.gates))
