"""The sets of weights in a checkpoint, the choice among them, and the names of the classes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimvit.models.weights.file import HOW_TO_SAVE, pickled_object, read_content, stands_for
from slimvit.utils.errors import ModelError, name_list, nearest

STEM = "patch_embed.proj.weight"
"""A tensor of every network with timm's names. A prefix of this name is a wrapper."""
WRAPPERS = ("module", "_orig_mod", "model", "backbone", "encoder", "net", "network", "0")
"""Prefixes of wrappers, for networks without timm's names."""
TOWERS = ("visual", "vision_encoder", "beit3", "radio_model")
"""Prefixes of image towers of larger models, which timm extracts itself."""
EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
PREFERRED = (*EMA, "state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "module")
"""Names of sets, in order of preference: the moving average first, as in timm."""
NO_WEIGHTS = ("optim", "sched", "scaler", "amp", "rng", "loops")
"""Prefixes of the names of training state."""
CLASS_KEYS = ("classes", "class_names", "class_to_idx", "idx_to_class", "label_names", "id2label", "label2id", "labels")
DEPTH = 3
"""Depth to which nested mappings are searched."""


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a checkpoint."""

    key: str
    """Path in the checkpoint, such as `state_dict_ema` or `teacher.backbone`; empty where the file is the set."""
    tensors: dict[str, Tensor]
    """The weights by name, without the prefix of a wrapper."""
    left_out: tuple[str, ...] = ()
    """Names of tensors beside the wrapped network."""


@dataclass(frozen=True)
class Checkpoint:
    """The chosen weights of a file, and its other content."""

    weights: WeightSet
    others: tuple[str, ...] = ()
    """Keys of the other sets."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of the outputs; empty where the file has none."""

    def summary(self) -> str:
        """Return the choice and the tensors that were left out, in words; empty where neither occurred."""
        key, left_out = self.weights.key, self.weights.left_out
        chosen = f"loaded {key}, not {_listed(self.others)} (--weights-key)" if self.others else ""
        left = f"left out {name_list(left_out)}, outside the network" if left_out else ""
        return "; ".join(filter(None, (chosen, left)))


def read_checkpoint(file: Path, key: str | None = None) -> Checkpoint:
    """Read the weights of a file without running code.

    Args:
        file: A .safetensors file, or a checkpoint of torch.save.
        key: Key of the set to load from a file with several, such as `state_dict_ema` or `teacher`.

    Raises:
        ModelError: The file is missing, unreadable or without weights, or has several sets and `key` chooses none.
    """
    content = read_content(file)
    sets = weight_sets(content)
    if not sets:
        raise ModelError(f"{file}: {_why_none(content)}")
    chosen = _chosen(file, sets, key)
    return Checkpoint(chosen, tuple(s.key for s in sets if s is not chosen), class_names_in(content))


def weight_sets(content: Any) -> list[WeightSet]:
    """Return the sets of weights in a checkpoint: those with timm's names, or all where none has them."""
    sets = [s for path, inner in _mappings(content) for s in _networks(path, _tensors(path, inner))]
    return [s for s in sets if any(name.endswith(STEM) for name in s.tensors)] or sets


def _mappings(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping of a checkpoint once, with its path, the outer ones first."""
    level: list[tuple[str, Any]] = [("", content)]
    seen: set[int] = set()
    for _ in range(DEPTH + 1):
        mappings = [(path, vars(v) if isinstance(v, Namespace) else v) for path, v in level]
        mappings = [(path, v) for path, v in mappings if isinstance(v, Mapping)]
        fresh = {id(v): (path, v) for path, v in mappings if id(v) not in seen}
        seen |= fresh.keys()
        yield from fresh.values()
        items = [(path, name, v) for path, inner in fresh.values() for name, v in inner.items()]
        level = [(f"{path}.{name}" if path else name, v) for path, name, v in items if isinstance(name, str)]


def _tensors(path: str, inner: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a mapping by name; empty for a mapping that is no set of weights."""
    if any(word.lower().startswith(NO_WEIGHTS) for word in path.split(".")):
        return {}
    tensors = {k: t for k, v in inner.items() if isinstance(k, str) and (t := _tensor(v)) is not None}
    return tensors if any(tensor.ndim > 1 for tensor in tensors.values()) else {}


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.from_numpy(value)
    return value.detach() if isinstance(value, Tensor) else None


def _networks(path: str, tensors: dict[str, Tensor]) -> list[WeightSet]:
    """The networks in one mapping, without the prefixes of their wrappers."""
    if not tensors:
        return []
    tensors = _unwrapped(tensors, ("module", "_orig_mod"))
    prefixes = sorted({k.removesuffix(STEM) for k in tensors if k == STEM or k.endswith(f".{STEM}")}, key=len)
    if not prefixes:
        return [WeightSet(path, _unwrapped(tensors, WRAPPERS))]
    parts = [_under(path, prefix, tensors, prefixes) for prefix in prefixes]
    return [replace(parts[0], key=path)] if len(parts) == 1 else [replace(part, left_out=()) for part in parts]


def _under(path: str, prefix: str, tensors: dict[str, Tensor], prefixes: list[str]) -> WeightSet:
    """The network under a prefix."""
    key = ".".join(filter(None, (path, prefix.rstrip("."))))
    longer = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    inside = {k: v for k, v in tensors.items() if k.startswith(prefix) and not k.startswith(longer)}
    outside = tuple(k for k in tensors if not k.startswith(prefix))
    if outside and prefix.startswith(TOWERS):
        return WeightSet(key, tensors)
    return WeightSet(key, {k.removeprefix(prefix): v for k, v in inside.items()}, outside)


def _unwrapped(tensors: dict[str, Tensor], wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors without the wrappers that prefix all names."""
    while wrapper := next((w for w in wrappers if all(k.startswith(f"{w}.") for k in tensors)), None):
        tensors = {k.removeprefix(f"{wrapper}."): v for k, v in tensors.items()}
    return tensors


def _chosen(file: Path, sets: list[WeightSet], key: str | None) -> WeightSet:
    known = [s.key for s in sets]
    if key is not None:
        matching = [s for s in sets if s.key == key] or [s for s in sets if key in _ends(s.key)]
        if len(matching) != 1:
            listed = _listed(s.key for s in matching or sets)
            problem = "names several sets of weights" if matching else "no such set of weights"
            raise ModelError(f"{file}: --weights-key {key}: {problem}{nearest(key, known)}; sets in the file: {listed}")
        return matching[0]
    ranks = [_rank(s.key) for s in sets]
    if ranks.count(min(ranks)) > 1:
        raise ModelError(f"{file}: holds several sets of weights: {_listed(known)}; choose one with --weights-key KEY")
    return sets[ranks.index(min(ranks))]


def _ends(key: str) -> list[str]:
    """The beginnings and ends of a key: a.b.c -> a, a.b, b.c, c."""
    words = key.split(".")
    cuts = range(1, len(words))
    return [".".join(words[:n]) for n in cuts] + [".".join(words[n:]) for n in cuts]


def _rank(key: str) -> int:
    """Index in `PREFERRED` of the first name that a key contains."""
    return min((PREFERRED.index(word) for word in key.split(".") if word in PREFERRED), default=len(PREFERRED))


def _why_none(content: Any) -> str:
    kinds = [k for v in content.values() if (k := stands_for(v))] if isinstance(content, Mapping) else []
    models = [kind for kind in kinds if kind.startswith(("timm.", "torch.", "torchvision."))]
    if kinds := (models or kinds)[:1]:
        return f"{pickled_object(kinds[0])}, and no weights by name; {HOW_TO_SAVE}"
    return f"holds no weights (expected tensors by name, alone or under state_dict, model, ...); {HOW_TO_SAVE}"


def class_names_in(content: Any) -> tuple[str, ...]:
    """Return the class names of a checkpoint in the order of the outputs; empty where it has none."""
    for _, inner in _mappings(content):
        values = {str(k).lower(): v for k, v in inner.items()}
        if names := next((n for key in CLASS_KEYS if key in values and (n := _names(values[key]))), ()):
            return names
    return ()


def _names(value: Any) -> tuple[str, ...]:
    """Names from a list, from a mapping name -> number, or from a mapping number -> name."""
    if isinstance(value, Mapping):
        by_number = {_number(number): name for pair in value.items() for name, number in (pair, pair[::-1])}
        named = {k: v for k, v in by_number.items() if k is not None and isinstance(v, str)}
        return tuple(named[i] for i in range(len(named))) if named and set(named) == set(range(len(value))) else ()
    names = value.tolist() if isinstance(value, np.ndarray) else value
    texts = isinstance(names, list | tuple) and len(names) > 0 and all(isinstance(n, str) for n in names)
    return tuple(names) if texts else ()


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _listed(keys: Iterable[str]) -> str:
    """Keys of sets in words, the empty one as `the top level`."""
    return name_list(key or "the top level" for key in keys)
