"""What scores and the refit hold of the calibration images, beside the memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TYPE_CHECKING

import torch

from slimvit.models.base import Branch, State, Step
from slimvit.utils.memory import free_memory
from slimvit.utils.progress import say

if TYPE_CHECKING:
    from slimvit.prune.criteria.calibration import Batches

SHARE = 0.5
"""Of the free memory, that may be taken."""


def fits(walk: Sequence[Branch | Step], batches: Batches, device: torch.device) -> bool:
    """Whether the streams of all ``batches`` in two networks and the features of one branch fit into the memory of
    ``device``, of which half is left for all else; True where either is not known. That they do not is said."""
    free = free_bytes(device)
    if free is None or not isinstance(batches, Sized):
        return True
    first = next(iter(batches))[0]
    images = len(first) * len(batches)
    needed = images * bytes_per_image(walk, first[:1].to(device))
    if needed <= SHARE * free:
        return True
    say(
        f"refit: what it would keep of {images:,} images takes {needed / 2**30:,.1f} GiB, but {free / 2**30:,.1f} are "
        "free; it is computed anew for every branch, which takes several times as long; fewer calibration images fit"
    )
    return False


def images_at_once(forward: Callable[[], torch.Tensor], device: torch.device) -> int:
    """How many images may be in one backward pass, given ``forward``, which makes the loss of one image: as many as
    take half of the free memory of ``device``, and at least one. Where it is not known, any number."""
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


def bytes_per_image(walk: Sequence[Branch | Step], image: torch.Tensor) -> int:
    """The most that is held of one image [1, C, H, W] at any step: two streams, the features and values of a branch."""
    state, most = State(image), 0
    for step in walk:
        features = 0
        if isinstance(step, Branch):
            seen, values = step.run_with_features(state)
            features = _bytes(seen) + _bytes(values)
        most = max(most, features + 2 * sum(map(_bytes, (state.stream, *state.values))))
        state = step.apply(state)
    return most


def free_bytes(device: torch.device) -> int | None:
    """Of a GPU's memory, or of what this process may take of the machine's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None


def _bytes(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
