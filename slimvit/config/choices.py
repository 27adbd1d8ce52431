"""The words a user may choose from. No imports beyond typing: the command line's help must answer at once."""

from __future__ import annotations

from typing import Literal, get_args

Criterion = Literal["residual", "fisher", "taylor", "magnitude", "random", "tp-magnitude", "tp-taylor"]
Scope = Literal["uniform", "global"]
Part = Literal["heads", "mlp", "branches"]
RefitTarget = Literal["own", "teacher", "stream", "none"]
AdaptMode = Literal["head", "all"]
DenseMix = Literal["layer", "head"]
DenseInit = Literal["zero", "normal"]
TrainedPart = Literal["all", "head"]
Sampler = Literal["shuffle", "balanced"]
DistillKind = Literal["soft", "hard", "features"]

CRITERIA: tuple[str, ...] = get_args(Criterion)
SCOPES: tuple[str, ...] = get_args(Scope)
PARTS: tuple[str, ...] = get_args(Part)
REFIT_TARGETS: tuple[str, ...] = get_args(RefitTarget)
ADAPT_MODES: tuple[str, ...] = get_args(AdaptMode)
DENSE_MIXES: tuple[str, ...] = get_args(DenseMix)
DENSE_INITS: tuple[str, ...] = get_args(DenseInit)
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
TRACKERS = ("tensorboard", "wandb")
EXPORT_FORMATS = ("onnx", "torch-export", "timm")
