"""Saved models: slim.json describes the model, model.safetensors holds the weights under timm's names. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import timm
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from slimvit.config.arguments import defects_of_arguments
from slimvit.config.choices import DenseMix
from slimvit.io.embedded import EMBEDDED
from slimvit.measure.flops.count import input_size_of
from slimvit.models.base import TimmModule
from slimvit.models.build import ModelSource, check_timm, is_timm_model
from slimvit.models.insert_dense import dense_mix, insert_dense_attention
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import architecture_of, arguments_of, check_unwrapped, plan_of
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import PlanError, SlimvitError, StoreError, nearest
from slimvit.utils.files import Unreadable, check_regular, read_json
from slimvit.utils.output import new_folder

FORMAT_VERSION = 1
DESCRIPTION, WEIGHTS = "slim.json", "model.safetensors"
TABLES = 2**28
"""Most entries that a saved model's buffers may have, such as tables of positions."""
HEADER, LINE = 2**16, 256
"""Bytes allowed for the header of a safetensors file, and per tensor in it besides its name."""


class SlimFile(BaseModel):
    """The content of slim.json: everything needed to build the model again, apart from the weights."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    format_version: int
    model: str
    """The name of the architecture in timm."""
    name: str | None = None
    """The model's own name, such as that of an embedded model; None where it has none."""
    model_args: dict[str, Any]
    """Arguments of timm's create_model, number of classes and image size included."""
    num_classes: int
    own_class: str | None = None
    """`module.Class` of a model of the user's own class, which timm cannot build; None for a timm model."""
    plan: dict[str, Any]
    dense: DenseMix | None = None
    """The kind of dense attention; None without."""
    preprocessing: dict[str, Any] = {}
    """The result of timm's resolve_model_data_config: input size, mean, std, interpolation, crop."""
    class_names: list[str] = []
    weights_sha256: str

    @model_validator(mode="after")
    def _one_number_of_classes(self) -> SlimFile:
        if defects := defects_of_arguments(self.model_args):
            raise ValueError("; ".join(defects))
        if self.model_args.get("num_classes", self.num_classes) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}, but model_args has {self.model_args['num_classes']}")
        return self


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
        class_names: Names of the classes, in the order of the logits.
        force: Replace an earlier folder.

    Raises:
        StoreError: The folder is in use, the disk is full, or timm could not build the model again.
        ModelError: The model is a compiled or parallel wrapper.

    Example:
        >>> slimvit.save(model, "runs/small", class_names=["cat", "dog"])
    """
    check_unwrapped(model)
    with new_folder(Path(folder), force) as partial:
        write_model(model, partial, class_names)


def write_model(model: TimmModule, folder: Path, class_names: tuple[str, ...] | list[str] = ()) -> None:
    """Write slim.json and model.safetensors into an existing folder."""
    own = own_class(model)
    source = ModelSource(type(model).__name__, {}) if own else description_of(model)
    if own is None:
        _check_repeatable(model, source)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with safetensors_errors():
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes through a private temporary file
    text = SlimFile(
        format_version=FORMAT_VERSION,
        model=source.name,
        name=getattr(model, "slim_name", None),
        model_args=source.args,
        num_classes=model.num_classes,
        own_class=own,
        plan=plan_of(model).to_json(),
        dense=cast("DenseMix | None", dense_mix(model)),
        preprocessing=_preprocessing(model),
        class_names=list(class_names),
        weights_sha256=_sha256(folder / WEIGHTS),
    )
    written = text.model_dump(exclude={key for key in ("name", "own_class") if getattr(text, key) is None})
    (folder / DESCRIPTION).write_text(json.dumps(written, indent=1) + "\n")


def own_class(model: nn.Module) -> str | None:
    """Return `module.Class` of a model of the user's own class; None for one that timm builds by name.

    The package of a class may register it with timm.
    """
    cls, name = type(model), architecture_of(model)
    builder = timm.model_entrypoint(name).__module__ if timm.is_model(name) else "timm"
    packages = {module.partition(".")[0] for module in ("timm", "slimvit", builder)}
    return None if cls.__module__.partition(".")[0] in packages else f"{cls.__module__}.{cls.__qualname__}"


def _check_repeatable(model: TimmModule, source: ModelSource) -> None:
    """Raise `StoreError` unless timm would build this model again from its description."""
    try:
        skeleton = _skeleton(source, plan_of(model), dense_mix(model))
        if differences := _differences(shapes_of(skeleton), shapes_of(model)) or _replaced(skeleton, model):
            changed = "this model was changed after timm built it, so it could not be loaded again"
            raise StoreError(f"{source.name}: {changed}: {differences}")
    except StoreError:
        if hasattr(model, "slim_source") or hasattr(model, "_model_args"):
            raise
        raise StoreError(
            f"{source.name}: timm {timm.__version__} does not keep the arguments that this model was built with; build "
            "it with slimvit.create_model, or use timm >= 1.0.31"
        ) from None


@contextmanager
def safetensors_errors() -> Iterator[None]:
    """Turn safetensors' error about a full disk into an OSError."""
    try:
        yield
    except SafetensorError as error:
        if "No space left" in str(error) or "StorageFull" in str(error):
            raise OSError(28, "No space left on device") from None
        raise


def description_of(model: TimmModule) -> ModelSource:
    """Return the timm name and the arguments that build the unpruned form of this model."""
    source = getattr(model, "slim_source", None)
    if source is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        if not cfg.get("architecture"):
            raise StoreError(
                f"{type(model).__name__}: not built by timm's create_model, so it cannot be described; "
                "build it with slimvit.create_model"
            )
        source = ModelSource(cfg["architecture"], dict(getattr(model, "_model_args", {})))
    args = dict(source.args, num_classes=model.num_classes)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:
        args["img_size"] = size[0] if size[0] == size[1] else list(size)
    args |= arguments_of(model)
    try:
        json.dumps(args)
    except TypeError:
        raise StoreError(f"{source.name}: its model arguments {args} cannot be written as JSON") from None
    if defects := defects_of_arguments(args):
        raise StoreError(f"{source.name}: cannot be described: {'; '.join(defects)}")
    return ModelSource(source.name, args)


def load_folder(folder: str | Path) -> nn.Module:
    """Load the model of a folder in eval mode on the CPU: a timm model, only narrower.

    Format version, names, bounds, tensor shapes and checksum are checked before anything is built.

    Raises:
        StoreError: The folder holds no model, or a damaged one; all differences in one line.
    """
    folder = Path(folder)
    check_timm()
    info = read_description(folder)
    source, plan, skeleton = _described(info, folder)
    check_weights(folder / WEIGHTS, shapes_of(skeleton), info.weights_sha256)
    whole: TimmModule = timm.create_model(source.name, pretrained=False, **source.args)
    whole.slim_name = info.name
    model = cut_to(whole, plan, info.dense)
    model.slim_source = source
    model.pretrained_cfg = dict(model.pretrained_cfg, **timm_config(info.preprocessing), num_classes=info.num_classes)
    return fill(model, info, folder)


def _described(info: SlimFile, folder: Path) -> tuple[ModelSource, SlimPlan, nn.Module]:
    """The unpruned model's source, the plan, and the pruned model on the meta device."""
    if info.own_class is not None:
        raise StoreError(
            f"{folder}: a model of your own class {info.own_class}, which slimvit cannot build; build it uncut and "
            f'fill it: slimvit.load_into(model, "{folder}")'
        )
    source, plan = ModelSource(info.model, info.model_args), plan_in(info, folder)
    return source, plan, _skeleton(source, plan, info.dense, folder)


def plan_in(info: SlimFile, folder: Path) -> SlimPlan:
    """The plan of a description; raises `StoreError` for a damaged one."""
    try:
        return SlimPlan.from_json(info.plan, f"{folder / DESCRIPTION}: plan")
    except PlanError as error:
        raise StoreError(str(error)) from None


def fill(model: TimmModule, info: SlimFile, folder: Path) -> nn.Module:
    """A cut model with the weights and class names of a folder, in eval mode; the weights were checked before."""
    # copies, since tensors of a file have any alignment, and matrix products round by alignment
    state = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    model.load_state_dict(state, strict=True, assign=True)
    model.class_names = tuple(info.class_names)
    return model.eval()


def largest_weights(folder: Path) -> int:
    """Return the most bytes that the weights of a folder with a description can have."""
    check_timm()
    return largest_file(_described(read_description(folder), folder)[2])


def largest_file(model: nn.Module) -> int:
    """Return the most bytes of a model's safetensors file: 8 per number, and a line of the header per tensor."""
    return HEADER + sum(8 * v.numel() + len(k) + LINE for k, v in model.state_dict().items())


def is_saved(folder: str | Path) -> bool:
    """Return whether a folder holds a saved model."""
    return (Path(folder) / DESCRIPTION).is_file()


def read_description(folder: Path) -> SlimFile:
    """Read and check slim.json.

    Raises:
        StoreError: It is missing, damaged, or of another format version.
    """
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder{nearest(str(folder), EMBEDDED)}")
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise StoreError(f"{folder}: holds no {DESCRIPTION}, so it is no saved model") from None
    except Unreadable as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(f"{path}: format_version is {version!r}, this slimvit reads {FORMAT_VERSION}")
    try:
        return SlimFile.model_validate(data)
    except ValidationError as error:
        clauses = [": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors()]
        raise StoreError(f"{path}: damaged: {'; '.join(clauses)}") from None


def cut_to(model: nn.Module, plan: SlimPlan, dense: str | None) -> TimmModule:
    """Cut a model to a plan and insert dense attention of the mix `dense`, if any."""
    slim = prune_model(model, plan)
    return slim if dense is None else insert_dense_attention(slim, dense)


def _skeleton(source: ModelSource, plan: SlimPlan, dense: str | None, folder: Path | None = None) -> nn.Module:
    """The pruned model on the meta device: names and shapes, no memory."""
    where = f"{folder / DESCRIPTION}: " if folder else ""
    if not is_timm_model(source.name):  # timm would take hf-hub:... for a model to fetch
        raise StoreError(f"{where}timm {timm.__version__} has no model {source.name}")
    with torch.device("meta"):
        try:
            model = timm.create_model(source.name, pretrained=False, **source.args)
        except Exception as error:  # the arguments come from a file, so any error is possible
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise StoreError(f"{where}timm cannot build {source.name} with {source.args}: {reason}") from None
        try:
            built = cut_to(model, plan, dense)
            check_tables(built)
        except SlimvitError as error:
            raise StoreError(f"{where}{error}") from None
    return built


def check_tables(built: nn.Module) -> None:
    """Raise `StoreError` for a model whose buffers would be larger than those of any known model.

    The file's size bounds the weights, but buffers are computed from the arguments while the model is built.
    """
    entries = sum(b.numel() for b in built.buffers())
    if entries > TABLES:
        raise StoreError(f"its model_args ask for tables of {entries:,} entries, more than {TABLES:,}")


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the state dict, by name."""
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def _replaced(expected: nn.Module, found: nn.Module) -> str:
    """The first modules that timm builds otherwise, in one line; drop-path, which training sets, does not count."""
    wanted = {k: type(m) for k, m in expected.named_modules()}
    now = {k: type(m) for k, m in found.named_modules()}
    names = [k for k in wanted | now if wanted.get(k) is not now.get(k) and "drop_path" not in k]
    clauses = [f"{k} is {getattr(now.get(k), '__name__', 'missing')}" for k in names]
    return "; ".join(clauses[:8])


def check_weights(path: Path, expected: dict[str, tuple[int, ...]], sha256: str) -> None:
    """Check a weight file against the expected shapes and its checksum, without loading the weights.

    Raises:
        StoreError: The file is missing or damaged, or a tensor is missing, unexpected or of another shape.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            found = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    except (SafetensorError, OSError, Unreadable) as error:
        raise StoreError(f"{path}: damaged: {error}") from None
    if differences := _differences(expected, found):
        raise StoreError(f"{path}: does not fit slim.json: {differences}")
    if _sha256(path) != sha256:
        raise StoreError(f"{path}: damaged: its checksum is not the one in {DESCRIPTION}")


def _differences(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    """Missing, extra and wrongly shaped tensors, by path, in one line; empty when there are none."""
    clauses = [f"{k} is missing" for k in expected if k not in found]
    clauses += [f"{k} is unexpected" for k in found if k not in expected]
    clauses += [
        f"{k} has shape {list(found[k])}, expected {list(shape)}"
        for k, shape in expected.items()
        if k in found and found[k] != shape
    ]
    more = f"; and {len(clauses) - 8} more" if len(clauses) > 8 else ""
    return "; ".join(clauses[:8]) + more


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _preprocessing(model: TimmModule) -> dict[str, Any]:
    """The configuration of timm's transforms, with the input size that the model has now."""
    config = timm.data.resolve_model_data_config(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:
        config["input_size"] = (input_size_of(model)[0], *size)  # timm before 1.0.25 keeps no in_chans
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def timm_config(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of a description as entries of timm's pretrained_cfg."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in preprocessing.items()}


def embedded_models(pattern: str = "*") -> list[dict[str, str]]:
    """List name and description of every embedded model matching `pattern`."""
    rows = []
    for name, folder in EMBEDDED.items():
        if not fnmatch(name, pattern):
            continue
        info = read_description(folder)
        args = ", ".join(
            f"{k} {v}" for k, v in info.model_args.items() if k in ("embed_dim", "depth", "depths", "num_heads")
        )
        about = f"{info.model} ({args}), {info.num_classes} classes"
        rows.append({"model": name, "about": about})
    return rows
