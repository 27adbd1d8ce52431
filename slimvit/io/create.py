"""`slimvit.create_model`: timm models and embedded ones, and narrower or dense ones to train from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.io import saved_model
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub.name import is_hub_name
from slimvit.io.hub.timm_repo import timm_repo
from slimvit.models import build
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import insert_dense_attention
from slimvit.models.parts.heads import HEADS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.ratio_search import units_per_block
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
    """Build a model in eval mode, pretrained unless `heads` is given.

    The DeiT-T of the dense attention paper is `create_model("deit_tiny_patch16_224", heads=2, dense="layer",
    init="normal")`.

    Args:
        name: A timm model, an embedded model such as `vit_digits`, or a timm model's own repository on the Hub,
            `hf-hub:user/name[@revision]`, from which only safetensors are read.
        pretrained: Whether to load the model's weights; by default unless `heads` is given.
        weights: A .safetensors or .pth file to load instead, through timm's own checkpoint filters.
        img_size: Side of the square images in pixels.
        num_classes: None keeps the classifier that comes with the weights (none, when they have none); another number
            gives a new, untrained classifier.
        args: Further arguments of timm's constructor.
        heads: Heads of every block, or one number per stage: a narrower network to train from scratch.
        dense: `layer` or `head` inserts dense attention as `slimvit.insert_dense_attention` does.
        init: How the mixes of dense attention start: `zero` or `normal`.
        seed: Seed of `normal`.

    Raises:
        ModelError: An unknown name, arguments that timm refuses, weights that do not fit, or weights together with
            `heads`.
    """
    if heads is not None and (pretrained or weights is not None):
        raise ModelError(f"{name}: heads={heads} builds a network without weights; to cut a pretrained one, prune it")
    pretrained = heads is None if pretrained is None else pretrained
    build_model = _from_hub if is_hub_name(name) else _embedded if name in EMBEDDED else _from_timm
    model = build_model(
        name, pretrained=pretrained, weights=weights, img_size=img_size, num_classes=num_classes, args=args
    )
    if heads is not None:
        model = prune_model(model, _first_heads(model, heads))
    return model if dense is None else insert_dense_attention(model, dense, init, seed=seed)


def fit_to_section(model: TimmModule, img_size: int | None, num_classes: int | None) -> TimmModule:
    """Give a loaded model another image size or a new, untrained classifier, where one is asked for."""
    if img_size is not None:
        model.set_input_size(img_size)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
        model.untrained_classifier = num_classes > 0
    return model


def _from_timm(name: str, **given: Any) -> TimmModule:
    """The timm model of that name."""
    build.check_known(name, EMBEDDED)
    return build.build_model(name, **given)


def _embedded(
    name: str,
    *,
    pretrained: bool,
    weights: str | Path | None,
    img_size: int | None,
    num_classes: int | None,
    args: dict[str, Any] | None,
) -> TimmModule:
    """The embedded model of that name; without its weights, its architecture."""
    folder = EMBEDDED[name]
    if pretrained and weights is None:
        if args:
            raise ModelError(f"{name}: a saved model brings its own arguments; drop args, or give pretrained=False")
        return fit_to_section(saved_model.load_folder(folder), img_size, num_classes)
    info = saved_model.read_description(folder)
    own = {key: value for key, value in info.model_args.items() if key != "num_classes"}
    classes = num_classes if num_classes is not None or weights is not None else info.num_classes
    model: TimmModule = build.build_model(
        info.model, pretrained=False, weights=weights, img_size=img_size, num_classes=classes,
        args=own | (args or {}), cfg=saved_model.timm_config(info.preprocessing),
    )  # fmt: skip
    model.slim_name = name
    return model


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
        message = str(error) if repo.weights is None else str(error).replace(f"{repo.weights}: ", "")
        raise ModelError(f"{name}: {message}") from None
    if file is repo.weights is not None and len(repo.class_names) == model.num_classes:
        model.class_names = repo.class_names
    return model


def _first_heads(model: nn.Module, heads: int | Sequence[int]) -> SlimPlan:
    """The heads with the lowest ids of every block: untrained heads are alike, and blocks mix the heads they share."""
    plan = plan_of(model)
    counts = units_per_block(plan, heads, HEADS.units)
    return plan.keeping(heads=[b.kept_heads[:n] for b, n in zip(plan.blocks, counts, strict=True)])
