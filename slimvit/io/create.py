"""`slimvit.create_model`: builds timm and embedded models, also with fewer heads or dense attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.io import saved_model
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub.name import is_hub_name
from slimvit.io.hub.timm_repo import timm_repo
from slimvit.io.slim_file import read_description, timm_config
from slimvit.models.base import TimmModule
from slimvit.models.build import build_model, check_known, with_preprocessing
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
    weights_key: str | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
    args: dict[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
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
        pretrained: Whether to load the model's weights. The default is True, and False with `heads`.
        weights: A .safetensors file or a checkpoint of torch.save to load instead; no code of it is run. What is
            assumed of it is said on stderr, and `model.class_names` holds the class names that it brings.
        weights_key: The set of weights to take where the file holds several, such as `state_dict_ema` or `teacher`.
        img_size: Side of the square images in pixels. None takes the size that a weight file was trained at, where its
            shapes tell, and the model's default elsewhere.
        num_classes: None keeps the classifier of the weights, if they have one. A number that differs from theirs gives
            a new, untrained classifier.
        args: Further arguments of timm's constructor.
        preprocessing: `mean`, `std`, `interpolation` and `crop_pct` in place of the model's own.
        heads: Heads of every block, or one number per stage, for a narrower network to train from scratch.
        dense: `layer` or `head` inserts dense attention as `slimvit.insert_dense_attention` does.
        init: Initial mixes of dense attention: `zero` or `normal`.
        seed: Seed of `normal`.

    Raises:
        ModelError: An unknown name, arguments that timm refuses, weights that do not fit, or weights together with
            `heads`.
    """
    if heads is not None and (pretrained or weights is not None):
        raise ModelError(f"{name}: heads={heads} builds a network without weights; to cut a pretrained one, prune it")
    pretrained = heads is None if pretrained is None else pretrained
    request = _Request(pretrained, weights, weights_key, img_size, num_classes, args or {}, preprocessing or {})
    build = _from_hub if is_hub_name(name) else _embedded if name in EMBEDDED else _from_timm
    model = build(name, request)
    if heads is not None:
        model = prune_model(model, _first_heads(model, heads))
    return model if dense is None else insert_dense_attention(model, dense, init, seed=seed)


def fit_to_section(
    model: TimmModule, img_size: int | None, num_classes: int | None, preprocessing: Mapping[str, Any]
) -> TimmModule:
    """Set image size and preprocessing of a loaded model, and give it a new, untrained classifier.

    None, and a value that `preprocessing` lacks, keeps what the model has.
    """
    if img_size is not None:
        model.set_input_size(img_size)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
        model.untrained_classifier = num_classes > 0
        model.class_names = ()
    return with_preprocessing(model, preprocessing)


@dataclass(frozen=True)
class _Request:
    """Arguments of `create_model` for the uncut model."""

    pretrained: bool
    weights: str | Path | None
    weights_key: str | None
    img_size: int | None
    num_classes: int | None
    args: dict[str, Any]
    preprocessing: Mapping[str, Any]

    def build(
        self,
        architecture: str,
        args: dict[str, Any],
        num_classes: int | None,
        cfg: dict[str, Any],
        weights: str | Path | None,
    ) -> TimmModule:
        """Build an architecture of timm with the arguments, number of classes and preprocessing of a description.

        The request's arguments and number of classes override them. A weight file keeps its own classifier.
        """
        if weights is not None or self.num_classes is not None:
            num_classes = self.num_classes
        return build_model(
            architecture, pretrained=False, weights=weights, weights_key=self.weights_key, img_size=self.img_size,
            num_classes=num_classes, args=args | self.args, cfg=cfg, preprocessing=self.preprocessing,
            described=weights is not self.weights,
        )  # fmt: skip


def _from_timm(name: str, request: _Request) -> TimmModule:
    """Build a model by its timm name."""
    check_known(name, EMBEDDED)
    return build_model(name, **vars(request))


def _embedded(name: str, request: _Request) -> TimmModule:
    """Build an embedded model, or without its weights only its architecture."""
    folder = EMBEDDED[name]
    if request.pretrained and request.weights is None:
        if request.args:
            raise ModelError(f"{name}: a saved model brings its own arguments; drop args, or give pretrained=False")
        return fit_to_section(
            saved_model.load_folder(folder), request.img_size, request.num_classes, request.preprocessing
        )
    info = read_description(folder)
    args = {key: value for key, value in info.model_args.items() if key != "num_classes"}
    model = request.build(info.model, args, info.num_classes, timm_config(info.preprocessing), request.weights)
    model.slim_name = name
    return model


def _from_hub(name: str, request: _Request) -> TimmModule:
    """Build the timm model that a repository on the Hub describes."""
    repo = timm_repo(name, weights=request.pretrained and request.weights is None)
    weights = request.weights if request.weights is not None else repo.weights
    try:
        model = request.build(repo.architecture, repo.args, repo.num_classes, repo.cfg, weights)
    except ModelError as error:
        message = str(error) if repo.weights is None else str(error).replace(f"{repo.weights}: ", "")
        raise ModelError(f"{name}: {message}") from None
    if weights is repo.weights is not None and len(repo.class_names) == model.num_classes:
        model.class_names = repo.class_names
    return model


def _first_heads(model: nn.Module, heads: int | Sequence[int]) -> SlimPlan:
    """Keep the heads with the lowest ids of every block, so that dense attention finds the same ids in all blocks."""
    plan = plan_of(model)
    counts = units_per_block(plan, heads, HEADS.units)
    return plan.keeping(heads=[b.kept_heads[:n] for b, n in zip(plan.blocks, counts, strict=True)])
