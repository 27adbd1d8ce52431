"""One pass of the calibration images through a model, forward and backward: what the criteria are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.errors import DataError
from slimvit.models.family import AttentionBlock, TimmModule, ToStream, as_it_is, attention_blocks
from slimvit.models.modes import device_of
from slimvit.progress import track
from slimvit.prune.room import images_at_once

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images [B, C, H, W], labels [B]; -1 where there is none), iterable more than once."""

NO_IMAGES = "no calibration images: the data has no training images to draw them from"


@dataclass
class PartStatistics:
    """Means over the calibration set for one branch: an attention (units: heads, d channels wide) or an MLP (units:
    neurons, d = 1). Its last linear layer has k = units * d inputs z (centred) and C outputs, with loss gradients g.

    ``covariance`` [k, k]: of z, over tokens. ``inputs`` [k, k] and ``outputs`` [C, C]: means over images of A A^T and
    A^T A, where A = sum over the image's tokens of z g^T is its gradient of that layer's weights (k to C); in float32,
    with z centred by the mean of the images up to it.
    ``gate_abs`` and ``gate_square`` [units]: means over images of abs(dLoss/dm) and (dLoss/dm)^2, m a multiplier on the
    unit's output.
    """

    covariance: Tensor
    inputs: Tensor
    outputs: Tensor
    gate_abs: Tensor
    gate_square: Tensor


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class _Sums:
    """What has been added up so far for one branch; ``features`` waits for its gradient;
    ``size`` is the stream's without batch and channels."""

    out: nn.Linear
    units: int
    to_stream: ToStream
    images: int = 0
    tokens: int = 0
    shift: Tensor | None = None
    z: Tensor = field(default_factory=_zero)
    zz: Tensor = field(default_factory=_zero)
    inputs: Tensor = field(default_factory=lambda: torch.zeros(()))
    outputs: Tensor = field(default_factory=lambda: torch.zeros(()))
    gate_abs: Tensor = field(default_factory=_zero)
    gate_square: Tensor = field(default_factory=_zero)
    features: Tensor | None = None
    size: tuple[int, ...] = ()


def observe(
    model: nn.Module, batches: Batches, loss: str, seed: int = 0, parts: Sequence[str] = ("heads",)
) -> dict[str, list[PartStatistics]]:
    """Statistics of ``parts`` (`heads`, `mlp`) of every block, in forward order, from one forward and backward pass.

    ``loss``: ``labels`` (cross-entropy with the given labels), ``signs`` (a random root of the model's own Fisher
    information, no labels needed) or ``features`` (a random direction of the features before the classifier: their
    Gauss-Newton matrix, no classifier needed).
    """
    blocks = attention_blocks(model)
    sums = {part: [_sums_of(block, part) for block in blocks] for part in parts}
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    with ExitStack() as stack:
        stack.enter_context(_frozen_eval(model))
        stack.enter_context(torch.enable_grad())
        for totals in sums.values():
            for block, total in zip(blocks, totals, strict=True):
                stack.enter_context(_watch(block.block, total))
        at_once = None
        for images, labels in track(batches, f"scoring {' and '.join(parts)}"):
            at_once = at_once or _at_once(model, images[:1].to(device), labels[:1], loss)
            for some, theirs in zip(images.split(at_once), labels.split(at_once), strict=True):
                batch_loss(model, some.to(device), theirs, loss, generator).backward()
            seen += len(images)
    if seen == 0:
        raise DataError(NO_IMAGES)
    return {part: [_finish(total) for total in totals] for part, totals in sums.items()}


def _at_once(model: nn.Module, image: Tensor, label: Tensor, loss: str) -> int:
    """Images that one backward pass has the memory for."""
    return images_at_once(lambda: batch_loss(model, image, label, loss, torch.Generator()), image.device)


def _sums_of(block: AttentionBlock, part: str) -> _Sums:
    if part == "heads":
        return _Sums(block.attn.proj, block.attn.num_heads, block.to_stream)
    return _Sums(block.mlp.fc2, block.mlp.fc2.in_features, as_it_is)


def batch_loss(model: TimmModule, images: Tensor, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Sum over images, so that each image's gradient is its own.

    ``signs``: sum over classes c of s_c sqrt(p_c) log p_c, p the predictions, held fixed, and s_c = 1 or -1 at random.
    The mean square of its gradient is the Fisher information, as with labels drawn from p; but where the model is sure,
    drawn labels give next to no gradient nearly always, and a large one now and then.
    """
    features = model.forward_head(model.forward_features(images), pre_logits=True) if kind == "features" else None
    if features is not None:
        directions = torch.randn(features.shape, generator=generator).to(features)
        return (features * directions).sum()
    logits = model(images)
    if kind == "signs":
        log_p = logits.float().log_softmax(-1)
        signs = torch.randint(2, logits.shape, generator=generator).to(log_p) * 2 - 1
        return (signs * log_p.detach().div(2).exp() * log_p).sum()
    if (labels < 0).any():
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
def _watch(block: nn.Module, total: _Sums) -> Iterator[None]:
    """Collect a branch's sums while batches run through the model."""

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        total.size = args[0].shape[1:-1]

    def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        total.features = args[0].detach()
        if not output.requires_grad:  # the first block: nothing before it asks for gradients
            output = output.requires_grad_()
        output.register_hook(lambda grad: _add(total, grad))
        return output

    hooks = [block.register_forward_pre_hook(enter), total.out.register_forward_hook(forward)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(total: _Sums, grad: Tensor) -> None:
    """``grad`` [..., C]: dLoss/d(output) of the batch whose features [..., k] wait in ``total``."""
    z, total.features = total.features, None
    assert z is not None
    # one row an image, one column a token: padding and windows are gone
    z, grad = (total.to_stream(t, total.size).flatten(1, -2) for t in (z, grad))
    back = grad @ total.out.weight  # dLoss/dz, [B, N, k]
    gates = (z * back).sum(1).cpu().double().reshape(len(z), total.units, z.shape[-1] // max(1, total.units)).sum(-1)
    total.gate_abs = total.gate_abs + gates.abs().sum(0)
    total.gate_square = total.gate_square + gates.square().sum(0)
    total.images += len(z)
    z, grad = z.float(), grad.float()
    if total.shift is None:
        total.shift = z.flatten(0, -2).mean(0)  # reshape(-1, k) cannot take the k = 0 of no heads
    z = z - total.shift  # float32 products are exact enough of values near their mean
    flat = z.flatten(0, -2)
    total.zz = total.zz + (flat.T @ flat).cpu().double()
    sums = total.z + z.sum(1).cpu().double().cumsum(0)  # up to every image, so that batches of any size give the same
    counts = total.tokens + z.shape[1] * torch.arange(1, len(z) + 1, dtype=torch.float64)
    total.z, total.tokens = sums[-1], total.tokens + len(flat)
    inputs, outputs = _of_weight_gradients(z - (sums / counts[:, None]).to(z)[:, None], grad)
    total.inputs, total.outputs = total.inputs + inputs.cpu(), total.outputs + outputs.cpu()


def _of_weight_gradients(z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over images of A A^T [k, k] and A^T A [C, C], A [k, C] the sum over tokens of z g^T; ``z`` [B, N, k] and
    ``grad`` [B, N, C]. With few tokens by their products with each other, [B, N, N]; else by A itself."""
    if _by_tokens(z, grad):
        alike, along = grad @ grad.mT, z @ z.mT
        return z.flatten(0, 1).T @ (alike @ z).flatten(0, 1), grad.flatten(0, 1).T @ (along @ grad).flatten(0, 1)
    a = z.mT @ grad
    rows, columns = a.transpose(0, 1).flatten(1), a.flatten(0, 1)
    return rows @ rows.T, columns.T @ columns


def _by_tokens(z: Tensor, grad: Tensor) -> bool:
    """Whether what tokens have to do with each other is less than a weight gradient."""
    return z.shape[1] < min(z.shape[2], grad.shape[2])


def _finish(total: _Sums) -> PartStatistics:
    mean, images = total.z / total.tokens, total.images
    covariance = total.zz / total.tokens - torch.outer(mean, mean)
    gradients = total.inputs.div_(images), total.outputs.div_(images)  # in place: MLPs of large models have large ones
    return PartStatistics(covariance, *gradients, total.gate_abs / images, total.gate_square / images)
