"""slimvit.load_into: a saved model into an instance of the user's own class."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from slimvit.io.load import named, saved_folder
from slimvit.io.saved_model import WEIGHTS, check_weights, cut_to, fill, plan_in, read_description, shapes_of
from slimvit.models.registry import plan_of
from slimvit.models.wrappers import check_unwrapped
from slimvit.utils.errors import SlimvitError, StoreError


def load_into(model: nn.Module, folder: str | Path) -> nn.Module:
    """Cut a fresh, uncut model to a saved one's plan and fill it with the saved weights.

    This is the way back for a model of your own class that subclasses one of timm's, which `slimvit.load` cannot build.

    Args:
        model: An uncut instance of the saved model's class, built with the same arguments. It is not changed.
        folder: A folder that `slimvit.save` or a run wrote, or `hf-hub:user/name`.

    Returns:
        The pruned model with the saved weights, in eval mode on the CPU.

    Raises:
        StoreError: The folder is no saved model or is damaged, or the model is not its uncut form; the message names
            the blocks or tensors that differ.
        ModelError: The model is not supported, or a compiled or parallel wrapper.

    Example:
        >>> slimvit.save(slimvit.prune(MyViT(), loader, ratio=0.5).model, "runs/mine")
        >>> small = slimvit.load_into(MyViT(), "runs/mine")
    """
    check_unwrapped(model)
    place = saved_folder(str(folder)) or Path(folder)
    with named(folder, place):
        info = read_description(place)
        plan = plan_in(info, place)
        if plan_of(model).is_cut:
            raise StoreError(f"{folder}: the given model is pruned already; give a fresh, uncut one")
        try:
            slim = cut_to(model, plan, info.dense)
        except SlimvitError as error:
            raise StoreError(f"{folder}: does not fit the given {type(model).__name__}: {error}") from None
        check_weights(place / WEIGHTS, shapes_of(slim), info.weights_sha256)
        return fill(slim.cpu(), info, place)
