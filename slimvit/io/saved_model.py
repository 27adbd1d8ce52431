"""Saved models: slim.json describes the model, model.safetensors holds the weights under timm's names. No pickle."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import cast

import timm
from safetensors.torch import load_file, save_file
from torch import nn

from slimvit.config.choices import DenseMix
from slimvit.io.embedded import EMBEDDED
from slimvit.io.slim_file import (
    DESCRIPTION,
    FORMAT_VERSION,
    SlimFile,
    description_of,
    own_class,
    plan_in,
    preprocessing_in,
    read_description,
    timm_config,
)
from slimvit.io.weight_file import (
    LISTED,
    WEIGHTS,
    check_buffers,
    check_weights,
    checksum,
    largest_file,
    safetensors_errors,
    shape_differences,
    shapes_of,
)
from slimvit.models.base import TimmModule
from slimvit.models.build import ModelSource, check_timm, is_timm_model
from slimvit.models.insert_dense import dense_mix, insert_dense_attention
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import check_unwrapped, names_of, plan_of
from slimvit.models.shapes import shapes_alone
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import SlimvitError, StoreError
from slimvit.utils.files import write_whole
from slimvit.utils.output import link_target, new_folder


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    class_names: tuple[str, ...] | list[str] = (),
    force: bool = False,
) -> None:
    """Save a model, pruned or not, as a folder without pickle: slim.json and model.safetensors.

    `slimvit.load` reads a timm model back bit for bit, `slimvit.load_into` a model of your own class.

    Args:
        model: A timm model, or a model of your own class that subclasses one of timm's.
        folder: Folder to write.
        class_names: Names of the classes, in the order of the logits; by default those of `model.class_names`.
        force: Replace an earlier folder.

    Raises:
        StoreError: The folder is in use, the disk is full, or timm could not build the model again.
        ModelError: The model is a compiled or parallel wrapper.

    Example:
        >>> slimvit.save(model, "runs/small", class_names=["cat", "dog"])
    """
    check_unwrapped(model)
    with new_folder(link_target(Path(folder)), force) as partial:
        write_model(model, partial, class_names)


def write_model(model: TimmModule, folder: Path, class_names: tuple[str, ...] | list[str] = ()) -> None:
    """Write slim.json and model.safetensors into an existing folder."""
    own, source = own_class(model), checked_source(model)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with safetensors_errors():
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes through a private temporary file
    info = SlimFile(
        format_version=FORMAT_VERSION,
        model=source.name,
        name=getattr(model, "slim_name", None),
        model_args=source.args,
        num_classes=model.num_classes,
        own_class=own,
        plan=plan_of(model).to_json(),
        dense=cast("DenseMix | None", dense_mix(model)),
        preprocessing=preprocessing_in(model),
        class_names=list(class_names or names_of(model)),
        weights_sha256=checksum(folder / WEIGHTS),
    )
    data = info.model_dump(exclude={key for key in ("name", "own_class") if getattr(info, key) is None})
    write_whole(folder / DESCRIPTION, json.dumps(data, indent=1) + "\n")


def load_folder(folder: str | Path) -> nn.Module:
    """Load the model of a folder in eval mode on the CPU: a timm model, only narrower.

    Format version, names, bounds, tensor shapes and checksum are checked before anything is built.

    Raises:
        StoreError: The folder holds no model, or a damaged one; the message names every difference.
    """
    folder = Path(folder)
    check_timm()
    info = read_description(folder)
    source, plan, skeleton = _skeleton_of(info, folder)
    check_weights(folder / WEIGHTS, shapes_of(skeleton), info.weights_sha256)
    uncut: TimmModule = timm.create_model(source.name, pretrained=False, **source.args)
    uncut.slim_name = info.name
    model = cut_to(uncut, plan, info.dense)
    model.slim_source = source
    model.pretrained_cfg = dict(model.pretrained_cfg, **timm_config(info.preprocessing), num_classes=info.num_classes)
    return fill(model, info, folder)


def fill(model: TimmModule, info: SlimFile, folder: Path) -> nn.Module:
    """Load the weights and class names of a folder into a cut model; `check_weights` must have passed.

    Returns:
        The model itself, in eval mode.
    """
    # copies, since tensors of a file have any alignment, and matrix products round by alignment
    state = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    model.load_state_dict(state, strict=True, assign=True)
    model.class_names = tuple(info.class_names)
    return model.eval()


def largest_weights(folder: Path) -> int:
    """Return an upper bound, in bytes, of the weights that the description in a folder allows."""
    check_timm()
    return largest_file(_skeleton_of(read_description(folder), folder)[2])


def cut_to(model: nn.Module, plan: SlimPlan, dense: str | None) -> TimmModule:
    """Cut a model to a plan and insert dense attention with the mix `dense`, if any."""
    slim = prune_model(model, plan)
    return slim if dense is None else insert_dense_attention(slim, dense)


def embedded_models(pattern: str = "*") -> list[dict[str, str]]:
    """List name and description of every embedded model whose name matches `pattern`."""
    rows = []
    for name, folder in EMBEDDED.items():
        if not fnmatch(name, pattern):
            continue
        info = read_description(folder)
        args = ", ".join(
            f"{k} {v}" for k, v in info.model_args.items() if k in ("embed_dim", "depth", "depths", "num_heads")
        )
        rows.append({"model": name, "about": f"{info.model} ({args}), {info.num_classes} classes"})
    return rows


def _skeleton_of(info: SlimFile, folder: Path) -> tuple[ModelSource, SlimPlan, nn.Module]:
    """The unpruned model's source, the plan, and the pruned model on the meta device."""
    if info.own_class is not None:
        raise StoreError(
            f"{folder}: a model of your own class {info.own_class}, which slimvit cannot build; build it uncut and "
            f'fill it: slimvit.load_into(model, "{folder}")'
        )
    source, plan = ModelSource(info.model, info.model_args), plan_in(info, folder)
    return source, plan, _skeleton(source, plan, info.dense, folder)


def _skeleton(source: ModelSource, plan: SlimPlan, dense: str | None, folder: Path | None = None) -> nn.Module:
    """The pruned model on the meta device: names and shapes, no memory."""
    where = f"{folder / DESCRIPTION}: " if folder else ""
    if not is_timm_model(source.name):  # timm would fetch a model named hf-hub:...
        raise StoreError(f"{where}timm {timm.__version__} has no model {source.name}")
    with shapes_alone():
        try:
            uncut = timm.create_model(source.name, pretrained=False, **source.args)
        except Exception as error:  # the arguments come from a file, so any error is possible
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StoreError(f"{where}timm cannot build {source.name} with {source.args}: {reason}") from None
        try:
            skeleton = cut_to(uncut, plan, dense)
            check_buffers(skeleton)
        except SlimvitError as error:
            raise StoreError(f"{where}{error}") from None
    return skeleton


def checked_source(model: TimmModule) -> ModelSource:
    """Return what a model is built from; raises `StoreError` unless timm builds it again from that."""
    if own_class(model):
        return ModelSource(type(model).__name__, {})
    source = description_of(model)
    _check_repeatable(model, source)
    return source


def _check_repeatable(model: TimmModule, source: ModelSource) -> None:
    """Raise `StoreError` unless timm builds this model again from its description."""
    try:
        skeleton = _skeleton(source, plan_of(model), dense_mix(model))
        if differences := shape_differences(shapes_of(skeleton), shapes_of(model)) or _replaced(skeleton, model):
            changed = "this model was changed after timm built it, so it could not be loaded again"
            raise StoreError(f"{source.name}: {changed}: {differences}")
    except StoreError:
        if hasattr(model, "slim_source") or hasattr(model, "_model_args"):
            raise
        raise StoreError(
            f"{source.name}: timm {timm.__version__} does not keep the arguments that this model was built with; build "
            "it with slimvit.create_model, or use timm >= 1.0.31"
        ) from None


def _replaced(skeleton: nn.Module, model: nn.Module) -> str:
    """Modules of another class than timm builds, in one line; drop-path is left out, since training sets it."""
    expected = {k: type(m) for k, m in skeleton.named_modules()}
    actual = {k: type(m) for k, m in model.named_modules()}
    names = [k for k in expected | actual if expected.get(k) is not actual.get(k) and "drop_path" not in k]
    return "; ".join(f"{k} is {getattr(actual.get(k), '__name__', 'missing')}" for k in names[:LISTED])
