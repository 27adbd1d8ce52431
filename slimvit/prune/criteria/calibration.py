"""Calibration: forward and backward passes that collect the statistics of the criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.data.loaders import Batches
from slimvit.models.base import AttentionBlock, TimmModule, ToStream
from slimvit.models.modes import device_of
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS, everywhere
from slimvit.models.registry import attention_blocks
from slimvit.utils.device import SHARE, free_bytes
from slimvit.utils.errors import DataError, PlanError
from slimvit.utils.progress import track

NO_IMAGES = "no calibration images: the data has no training images to draw them from"

Statistics = TypeVar("Statistics", covariant=True)


class Sums(Protocol[Statistics]):
    """Running statistics of one branch over the batches; statistics.py implements them."""

    def add(self, z: Tensor, grad: Tensor, weight: Tensor, units: int) -> None:
        """Add the statistics of one batch.

        Args:
            z: Inputs of the branch's last layer [B, N, k].
            grad: Gradients of the loss with respect to its outputs [B, N, C].
            weight: Weights of the layer [C, k].
            units: Number of units among the k inputs.
        """

    def mean(self) -> Statistics:
        """Return the means over all images so far."""


@dataclass
class _Branch(Generic[Statistics]):
    """One branch during the passes."""

    out: nn.Linear
    units: int
    to_stream: ToStream
    sums: Sums[Statistics]
    features: Tensor | None = None
    """Inputs of `out`, until their gradient arrives."""
    size: tuple[int, ...] = ()
    """Shape of the stream without batch and channels."""


def observe(
    model: nn.Module,
    batches: Batches,
    loss: str,
    sums: Callable[[], Sums[Statistics]],
    seed: int = 0,
    parts: Sequence[str] | None = None,
) -> dict[str, list[Statistics]]:
    """Collect statistics of every block from a forward and backward pass over the images.

    Args:
        model: The model, left unchanged.
        batches: Calibration images [B, C, H, W] with labels [B].
        loss: `labels`: cross-entropy with the given labels. `signs`: samples the Fisher information of the model's
            predictions, without labels. `features`: samples the Gauss-Newton matrix of the features before the
            classifier, without a classifier.
        sums: Class of the running statistics: `GateSums` or `MomentSums`.
        seed: Seed of the samples.
        parts: Parts to observe; by default the heads.

    Returns:
        Statistics by part, block by block.

    Raises:
        DataError: There are no images, or labels are missing that `loss` needs.
        PlanError: A part has no last layer to observe.
    """
    blocks = attention_blocks(model)
    parts = parts or everywhere()
    branches = {part: [_branch(block, PARTS[part], sums()) for block in blocks] for part in parts}
    hooks = [
        partial(_watch, block.block, branch)
        for watched in branches.values()
        for block, branch in zip(blocks, watched, strict=True)
    ]
    backward_pass(model, batches, loss, seed, hooks, f"scoring {' and '.join(parts)}")
    return {part: [branch.sums.mean() for branch in watched] for part, watched in branches.items()}


def backward_pass(
    model: nn.Module,
    batches: Batches,
    loss: str,
    seed: int,
    hooks: Sequence[Callable[[], AbstractContextManager[None]]],
    words: str,
) -> None:
    """Run the batches through the model and the gradients of their losses back, in eval mode with frozen weights.

    Args:
        model: The model, left unchanged.
        batches: Calibration images [B, C, H, W] with labels [B].
        loss: See `observe`.
        seed: Seed of the samples.
        hooks: Each opens a context that watches the passes.
        words: What is done, for the progress bar.

    Raises:
        DataError: There are no images, or no labels where `loss` needs them.
    """
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    images_seen = 0
    with ExitStack() as stack:
        stack.enter_context(_frozen_eval(model))
        stack.enter_context(torch.enable_grad())
        for hook in hooks:
            stack.enter_context(hook())
        chunk = None
        for images, labels in track(batches, words):
            chunk = chunk or _images_at_once(model, images[:1].to(device), labels[:1], loss)
            for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
                batch_loss(model, x.to(device), y, loss, generator).backward()
            images_seen += len(images)
    if images_seen == 0:
        raise DataError(NO_IMAGES)


def _images_at_once(model: nn.Module, image: Tensor, label: Tensor, loss: str) -> int:
    """Number of images whose backward pass fits into memory."""
    return images_at_once(lambda: batch_loss(model, image, label, loss, torch.Generator()), image.device)


def _branch(block: AttentionBlock, part: Part, sums: Sums[Statistics]) -> _Branch[Statistics]:
    out = part.out(block)
    if out is None:
        raise PlanError(f"{part.name}: has no last layer to observe; score it with its own criterion")
    return _Branch(out, part.count(block), part.to_stream(block), sums)


def batch_loss(model: TimmModule, images: Tensor, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Compute the loss as a sum over images, so that the gradients of an image do not depend on the others.

    The loss `signs` is the sum over classes c of s_c sqrt(p_c) log p_c, with random signs s_c and no gradient through
    the root. The mean square of its gradient is the Fisher information. Labels drawn from p have the same mean with a
    higher variance: for confident predictions, almost all draws give a tiny gradient and a few a large one.

    Args:
        model: A model with or without a classifier.
        images: [B, C, H, W].
        labels: [B]; -1 for images without a label.
        kind: `labels`, `signs` or `features`, see `observe`.
        generator: Source of the random signs and directions.

    Returns:
        A scalar [].
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
    """Set eval mode and freeze the weights in the block; restore both afterwards."""
    training = [m for m in model.modules() if m.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        for m in training:
            m.training = True


@contextmanager
def _watch(block: nn.Module, branch: _Branch[Statistics]) -> Iterator[None]:
    """Update the statistics of a branch while batches run through the model."""

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        branch.size = args[0].shape[1:-1]

    def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        branch.features = args[0].detach()
        if not output.requires_grad:  # in the first block, since no layer before it has gradients
            output = output.requires_grad_()
        output.register_hook(lambda grad: _add(branch, grad))
        return output

    hooks = [block.register_forward_pre_hook(enter), branch.out.register_forward_hook(forward)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(branch: _Branch[Statistics], grad: Tensor) -> None:
    """Add a batch: gradients `grad` [..., C] of the layer's outputs, with its inputs [..., k] in `branch.features`."""
    z, branch.features = branch.features, None
    assert z is not None
    # [B, N, k] and [B, N, C]: one row per image and one column per token, without windows and padding
    z, grad = (branch.to_stream(t, branch.size).flatten(1, -2) for t in (z, grad))
    branch.sums.add(z, grad, branch.out.weight, branch.units)


def images_at_once(forward: Callable[[], torch.Tensor], device: torch.device) -> int:
    """Return the number of images whose backward pass fits into half of the free memory of `device`.

    Args:
        forward: Function that computes the loss [] of one image.
        device: The device of the model.

    Returns:
        At least 1; 2^31 if the free memory is unknown.
    """
    free = free_bytes(device)
    if free is None:
        return 2**31
    return max(1, int(SHARE * free / max(1, _saved_bytes(forward))))


def _saved_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd saves in a forward pass, without weights and other leaves."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf or tensor.requires_grad:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()  # kept alive, since a freed address may be used again
    del loss
    return sum(sizes.values())
