"""create_model as users call it: timm's models, and the narrower, densely attending ones to train from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.io.hub.name import is_hub_name
from slimvit.io.hub.timm_repo import timm_repo
from slimvit.models import build
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import insert_dense_attention
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.ratio_search import heads_per_block
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import ModelError


def create_model(
    name: str,
    *,
    pretrained: bool | None = None,
    weights: str | Path | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
    args: dict[str, Any] | None = None,
    heads: int | Sequence[int] | None = None,
    dense: str | None = None,
    init: str = "zero",
    seed: int = 0,
) -> nn.Module:
    """A timm model in eval mode, pretrained unless ``heads`` is given. ``name`` may also be a timm model's own
    repository on the Hub, `hf-hub:user/name[@revision]`, of which safetensors alone are read.

    ``weights``: a .safetensors or .pth file, read through timm's own checkpoint filters, instead of timm's
    pretrained weights. ``num_classes``: None keeps the classifier that comes with the weights (none, when they have
    none); another number gives a new, untrained classifier. ``args``: further arguments of timm's constructor.

    ``heads``: heads of every block, or one number a stage: a narrower network, to be trained from scratch. ``dense``
    (``layer`` or ``head``) and ``init`` insert dense attention as :func:`slimvit.insert_dense_attention` does. The
    paper's DeiT-T is ``create_model("deit_tiny_patch16_224", heads=2, dense="layer", init="normal")``.

    Raises :class:`ModelError` for an unknown name, arguments timm refuses, weights that do not fit, or weights asked
    for together with ``heads``.
    """
    if heads is not None and (pretrained or weights is not None):
        raise ModelError(f"{name}: heads={heads} builds a network without weights; to cut a pretrained one, prune it")
    pretrained = heads is None if pretrained is None else pretrained
    build_model = _from_hub if is_hub_name(name) else build.build_model
    model = build_model(
        name, pretrained=pretrained, weights=weights, img_size=img_size, num_classes=num_classes, args=args
    )
    if heads is not None:
        model = prune_model(model, _first_heads(model, heads))
    return model if dense is None else insert_dense_attention(model, dense, init, seed=seed)


def _from_hub(
    name: str,
    *,
    pretrained: bool,
    weights: str | Path | None,
    img_size: int | None,
    num_classes: int | None,
    args: dict[str, Any] | None,
) -> TimmModule:
    """The timm model that a repository on the Hub describes."""
    repo = timm_repo(name, weights=pretrained and weights is None)
    file = weights if weights is not None else repo.weights
    classes = num_classes if file is not None or num_classes is not None else repo.num_classes
    try:
        model: TimmModule = build.build_model(
            repo.architecture, pretrained=False, weights=file, img_size=img_size, num_classes=classes,
            args=repo.args | (args or {}), cfg=repo.cfg,
        )  # fmt: skip
    except ModelError as error:
        told = str(error) if repo.weights is None else str(error).replace(f"{repo.weights}: ", "")
        raise ModelError(f"{name}: {told}") from None
    if file is repo.weights is not None and len(repo.class_names) == model.num_classes:
        model.class_names = repo.class_names
    return model


def _first_heads(model: nn.Module, heads: int | Sequence[int]) -> SlimPlan:
    """The heads with the lowest ids of every block: untrained ones are all alike, and blocks must share theirs to
    mix."""
    plan = plan_of(model)
    counts = heads_per_block(plan, heads)
    return plan.keeping([b.kept_heads[:n] for b, n in zip(plan.blocks, counts, strict=True)])
