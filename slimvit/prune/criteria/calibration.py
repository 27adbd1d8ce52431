"""One pass of the calibration images through a model, forward and backward: what the criteria are computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from slimvit.utils.errors import DataError, PlanError
from slimvit.utils.memory import SHARE, free_bytes
from slimvit.utils.progress import track

NO_IMAGES = "no calibration images: the data has no training images to draw them from"


Found = TypeVar("Found", covariant=True)


class Sums(Protocol[Found]):
    """What is added up over the batches for one branch, see statistics.py."""

    def add(self, z: Tensor, grad: Tensor, weight: Tensor, units: int) -> None:
        """Add the statistics of one batch.

        Args:
            z: Inputs of the branch's last layer [B, N, k].
            grad: Gradients of the loss with respect to its outputs [B, N, C].
            weight: Weights of the layer [C, k].
            units: Number of units that share the k inputs.
        """

    def mean(self) -> Found:
        """Return the means over all images so far."""


@dataclass
class _Branch(Generic[Found]):
    """One branch while batches run; `features` waits for its gradient; `size` is the stream's, without batch and
    channels."""

    out: nn.Linear
    units: int
    to_stream: ToStream
    sums: Sums[Found]
    features: Tensor | None = None
    size: tuple[int, ...] = ()


def observe(
    model: nn.Module,
    batches: Batches,
    loss: str,
    sums: Callable[[], Sums[Found]],
    seed: int = 0,
    parts: Sequence[str] | None = None,
) -> dict[str, list[Found]]:
    """Statistics of `parts` of every block, in forward order, from one forward and backward pass.

    `loss`: `labels` (cross-entropy with the given labels), `signs` (a random root of the model's own Fisher
    information, no labels needed) or `features` (a random direction of the features before the classifier: their
    Gauss-Newton matrix, no classifier needed). `sums`: `GateSums` or
    `MomentSums`.
    """
    blocks = attention_blocks(model)
    parts = parts or everywhere()
    branches = {part: [_branch(block, PARTS[part], sums()) for block in blocks] for part in parts}
    device = device_of(model)
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    with ExitStack() as stack:
        stack.enter_context(_frozen_eval(model))
        stack.enter_context(torch.enable_grad())
        for watched in branches.values():
            for block, branch in zip(blocks, watched, strict=True):
                stack.enter_context(_watch(block.block, branch))
        at_once = None
        for images, labels in track(batches, f"scoring {' and '.join(parts)}"):
            at_once = at_once or _at_once(model, images[:1].to(device), labels[:1], loss)
            for some, theirs in zip(images.split(at_once), labels.split(at_once), strict=True):
                batch_loss(model, some.to(device), theirs, loss, generator).backward()
            seen += len(images)
    if seen == 0:
        raise DataError(NO_IMAGES)
    return {part: [branch.sums.mean() for branch in watched] for part, watched in branches.items()}


def _at_once(model: nn.Module, image: Tensor, label: Tensor, loss: str) -> int:
    """Images that one backward pass has the memory for."""
    return images_at_once(lambda: batch_loss(model, image, label, loss, torch.Generator()), image.device)


def _branch(block: AttentionBlock, part: Part, sums: Sums[Found]) -> _Branch[Found]:
    out = part.out(block)
    if out is None:
        raise PlanError(f"{part.name}: has no last layer to observe; score it with a criterion of its own")
    return _Branch(out, part.count(block), part.to_stream(block), sums)


def batch_loss(model: TimmModule, images: Tensor, labels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Sum over images, so that each image's gradient is its own.

    `signs`: sum over classes c of s_c sqrt(p_c) log p_c, p the predictions, held fixed, and s_c = 1 or -1 at random.
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
def _watch(block: nn.Module, branch: _Branch[Found]) -> Iterator[None]:
    """Add to a branch's sums while batches run through the model."""

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        branch.size = args[0].shape[1:-1]

    def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        branch.features = args[0].detach()
        if not output.requires_grad:  # the first block: nothing before it asks for gradients
            output = output.requires_grad_()
        output.register_hook(lambda grad: _add(branch, grad))
        return output

    hooks = [block.register_forward_pre_hook(enter), branch.out.register_forward_hook(forward)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(branch: _Branch[Found], grad: Tensor) -> None:
    """`grad` [..., C]: dLoss/d(output) of the batch whose features [..., k] wait in `branch`."""
    z, branch.features = branch.features, None
    assert z is not None
    # one row an image, one column a token: padding and windows are gone
    z, grad = (branch.to_stream(t, branch.size).flatten(1, -2) for t in (z, grad))
    branch.sums.add(z, grad, branch.out.weight, branch.units)


def images_at_once(forward: Callable[[], torch.Tensor], device: torch.device) -> int:
    """How many images may be in one backward pass, given `forward`, which makes the loss of one image: as many as
    take half of the free memory of `device`, and at least one. Where it is not known, any number."""
    free = free_bytes(device)
    if free is None:
        return 2**31
    return max(1, int(SHARE * free / max(1, _saved_bytes(forward))))


def _saved_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, weights and other leaves left out."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf or tensor.requires_grad:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()  # kept until the count is done: a freed storage's place may be given to another
    del loss
    return sum(seen.values())
