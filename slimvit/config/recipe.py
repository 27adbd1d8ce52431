"""The typed recipe: everything that decides *what* a run computes. How it runs (device, workers) is options.py.

Unknown keys are refused with the nearest known one, and every defect of a file is reported at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from slimvit.config.choices import (
    AdaptMode,
    BudgetKind,
    Criterion,
    DenseInit,
    DenseMix,
    DistillKind,
    PartWord,
    RefitTarget,
    Scope,
)
from slimvit.config.training import Section, TrainSection
from slimvit.config.validation import Document

__all__ = ["AdaptSection", "DataSection", "FinetuneSection", "ModelSection", "Recipe", "Section", "TrainSection"]


class ModelSection(Section):
    """The model to prune: its name, its weights, and the arguments of its constructor."""

    name: str
    """A timm model name, an embedded one (`slimvit models --embedded`), the folder of an earlier run, or
    `hf-hub:user/name[@revision]`; the recipe in a run folder names the commit after the @."""
    weights: str | None = None
    """A .safetensors or .pth file with the weights, instead of timm's pretrained ones."""
    pretrained: bool = True
    img_size: int | None = Field(None, gt=0)
    """Side of the square input, pixels."""
    num_classes: int | None = Field(None, ge=0)
    heads: int | list[int] | None = None
    """Heads of every block, or one number a stage: a narrower network, built without weights."""
    args: dict[str, Any] = Field(default_factory=dict)
    """More arguments for timm's `create_model`."""

    def contradictions(self) -> list[str]:
        if self.heads is None:
            return []
        counts = [self.heads] if isinstance(self.heads, int) else self.heads
        rules = {
            f"heads is {self.heads}, but a block is built with 1 head or more": any(n < 1 for n in counts),
            f"heads {self.heads} builds a network without weights; give pretrained false and no weights, "
            "or cut a pretrained one with prune": self.pretrained or self.weights is not None,
        }
        return [clause for clause, broken in rules.items() if broken]


class DataSection(Section):
    """The data set: its name, its splits, and how many of its images to use."""

    name: str
    """A folder with train/CLASS/ and val/CLASS/, `digits`, or a timm data name (`torch/...`, `hfds/...`)."""
    root: str | None = None
    """Where a named data set lies on disk."""
    train_split: str = "train"
    val_split: str = "validation"
    train_images: int | None = Field(None, gt=0)
    """Use only this many training images (drawn with the seed)."""
    eval_images: int | None = Field(None, gt=0)
    """Evaluate on only this many validation images (drawn with a fixed seed)."""
    batch_size: int = Field(64, gt=0)
    """Images a step, in training and in evaluation."""
    skip_bad_images: bool = False


class AdaptSection(TrainSection):
    """Train a classifier for the data's classes before anything is cut."""

    mode: AdaptMode = "head"
    """`head`: the classifier alone, on the frozen features of the images as they are (no augmentation, own learning
    rate). `all`: the classifier first, then the whole network."""

    def contradictions(self) -> list[str]:
        found = super().contradictions()
        if self.train != "all":
            found.append("train is for fine-tuning; here mode says what is trained")
        if self.mode == "head":  # its own optimizer, on features that are computed once
            idle = ("optimizer", "momentum", "betas", "eps", "warmup_lr", "layer_decay", "accumulate", "ema_decay")
            changed = [
                k
                for k in (*idle, "repeated_aug", "eval_every")
                if getattr(self, k) != type(self).model_fields[k].default
            ]
            found += [f"{' and '.join(changed)} without mode all; drop it or give mode all"] * bool(changed)
        return found


class FinetuneSection(TrainSection):
    """Train the slimmed network."""

    distill: bool = True
    """Learn from a teacher too: the uncut network (self-distillation) unless another is named."""
    teacher: ModelSection | None = None
    """Any timm model or run folder that knows the same classes. Where the run itself does not cut
    (`slimvit finetune`), the uncut network."""
    distill_kind: DistillKind = "soft"
    """`soft`: the teacher's predictions at a temperature; `hard`: its best class as a label (DeiT); `features`: its
    residual stream after every block, for a teacher with the same blocks."""
    distill_weight: float = Field(0.5, ge=0, le=1)
    """Share of the distillation term in the loss."""
    temperature: float = Field(2.0, gt=0)
    """Of soft distillation."""
    cache_teacher: bool = False
    """Ask the teacher once what it says of every training image, not again in every epoch; for images as they are."""

    @property
    def numbered(self) -> bool:
        return self.cache_teacher

    def contradictions(self) -> list[str]:
        found = super().contradictions()
        if self.cache_teacher:
            taught = self.distill and self.distill_kind != "features"
            found += ["cache_teacher keeps a teacher's predictions; give distill, soft or hard"] * (not taught)
            changed = ("color_jitter", "auto_augment", "random_erasing", "mixup", "cutmix", "hflip")
            idle = [name for name in changed if getattr(self, name)] + ["crop_scale"] * (self.crop_scale < 1)
            told = f"cache_teacher wants images as they are, but {', '.join(idle)} changes them; drop one of them"
            found += [told] * bool(idle)
        if self.distill_kind != "soft":
            rules = {
                f"distill_kind {self.distill_kind} without distill; give both or neither": not self.distill,
                f"temperature is for soft distillation, not {self.distill_kind}; drop it": self.temperature != 2.0,
                "train head leaves the stream as it is, so features cannot be learnt": self.distill_kind == "features"
                and self.train == "head",
            }
            found += [clause for clause, broken in rules.items() if broken]
        return found


TARGETS = ("target_macs", "target_params", "target_latency")
BUDGETS = ("ratio", "heads", "mlp_ratio", *TARGETS, "target", "plan")


class AskedBudget(NamedTuple):
    """A target of a recipe."""

    kind: str
    """The word of a kind of budget, such as `macs`."""
    fraction: float
    """What may be left of the original's."""


class PruneSection(Section):
    """The budget, what may be cut, and how units are scored."""

    ratio: float | None = None
    """Fraction of heads to remove, between 0 and 1."""
    heads: int | list[int] | None = None
    """Heads to keep in every block, or one number a stage."""
    mlp_ratio: float | None = None
    """Fraction of the MLPs' hidden neurons to remove, between 0 and 1."""
    target_macs: float | None = None
    """MACs to end with, as a fraction of the original's."""
    target_params: float | None = None
    """Parameters to end with, as a fraction of the original's."""
    target_latency: float | None = None
    """Time of a batch to end with on the device that runs this, as a fraction of the original's."""
    target: dict[BudgetKind, float] | None = None
    """The same for any kind of budget, by its word: `{macs: 0.5}`."""
    latency_batch: int = Field(1, gt=0)
    """Images in that batch."""
    plan: str | None = None
    """A plan file written by --dry-run --out."""
    parts: list[PartWord] | None = None
    """What may go to meet a target: `heads`, `mlp` (its neurons), `branches` (whole attentions and MLPs). None: heads,
    and neurons too where heads alone cannot meet it."""
    scope: Scope = "global"
    min_heads: int = Field(1, ge=0)
    """Heads every block keeps at least; 0 lets a block lose its attention."""
    neuron_group: int = Field(8, gt=0)
    """Neurons go in groups of as many."""
    criterion: Criterion = "residual"
    calibration_images: int = Field(512, gt=0)
    """Training images that the scores and the refit see."""
    steps: int = Field(1, gt=0)
    """Rounds of scoring, cutting and refitting on the way to the budget."""
    step_epochs: int = Field(0, ge=0)
    """Epochs of fine-tuning after every round but the last, with the settings of finetune."""

    def contradictions(self) -> list[str]:
        given = [k for k in BUDGETS if getattr(self, k) is not None]
        both = [k for k in given if k != "mlp_ratio"] if {*given} & {"ratio", "heads"} else given
        one = f"one of {', '.join(BUDGETS)} decides (mlp_ratio goes with ratio and heads)"
        found = [f"{' and '.join(both)} were both given; {one}"] * (len(both) > 1)
        for key in ("ratio", "mlp_ratio", *TARGETS):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1:
                found.append(f"{key} is {value}, but must lie between 0 and 1, both excluded")
        found += self._defects_of_target()
        counts = self.heads if isinstance(self.heads, list) else [] if self.heads is None else [self.heads]
        if any(n < 0 for n in counts):
            found.append(f"heads is {self.heads}, but a block cannot keep fewer than 0 heads")
        rules = {
            f"parts is for {', '.join(TARGETS)}; drop it": self.parts is not None and self.wanted and not self.budget,
            "parts is empty; name heads, mlp or branches": self.parts == [],
            "latency_batch is for target_latency; drop it": self.latency_batch != 1 and not self.asks_for("latency"),
            "steps is for ratios and targets; drop it": self.steps > 1
            and (self.heads is not None or self.plan is not None),
            "step_epochs without steps; give at least 2 steps": self.step_epochs > 0 and self.steps == 1,
        }
        return found + [clause for clause, broken in rules.items() if broken]

    @property
    def wanted(self) -> bool:
        """Whether a budget was named at all."""
        return any(getattr(self, key) is not None for key in BUDGETS)

    @property
    def budget(self) -> AskedBudget | None:
        """The kind and the fraction of a budget in MACs, parameters, time or whatever else has a price."""
        keys = {key.removeprefix("target_"): getattr(self, key) for key in TARGETS}
        given = [AskedBudget(*item) for item in (keys | (self.target or {})).items() if item[1] is not None]
        return given[0] if given else None

    def asks_for(self, kind: str) -> bool:
        """Whether the budget is of this kind."""
        return self.budget is not None and self.budget.kind == kind

    def _defects_of_target(self) -> list[str]:
        if self.target is None:
            return []
        wrong = [
            f"target {kind} is {value}, but must lie between 0 and 1, both excluded"
            for kind, value in self.target.items()
            if not 0 < value < 1
        ]
        return wrong + ["target names one budget, as in {macs: 0.5}"] * (len(self.target) != 1)


class RefitSection(Section):
    """The refit of the last linear layer of every branch after the cut."""

    target: RefitTarget = "stream"
    ridge: float = Field(0.1, gt=0)
    """Pull towards the old weights, in units of the mean feature variance."""


class DenseSection(Section):
    """Dense attention: each attention block also attends over the values of the earlier blocks of its stage."""

    mix: DenseMix | None = None
    """One learnable scalar a pair of blocks (`layer`) or a pair and head (`head`); None inserts nothing."""
    init: DenseInit = "zero"
    """`zero` changes nothing until it is trained; `normal` is for training from scratch."""
    lr_scale: float = Field(10.0, gt=0)
    """Learning rate of the mixes, in units of the others'."""

    def contradictions(self) -> list[str]:
        idle = [k for k, field in type(self).model_fields.items() if getattr(self, k) != field.default]
        return [f"{' and '.join(idle)} without mix; give mix layer or head"] if self.mix is None and idle else []


class Recipe(Document):
    """One run: which model, which data, what to cut, how to repair and train it."""

    kind = "recipe"
    begins_with = "model: and data:"

    model: ModelSection
    data: DataSection
    adapt: AdaptSection = AdaptSection()
    prune: PruneSection = PruneSection()
    refit: RefitSection = RefitSection()
    dense: DenseSection = DenseSection()
    finetune: FinetuneSection = FinetuneSection()
    seed: int = Field(0, ge=0, lt=2**63)

    def contradictions(self) -> list[str]:
        section = self.finetune
        rules = {
            "finetune.train is head, but the mixes of dense are in the body; give train all": self.dense.mix is not None
            and section.epochs > 0
            and section.train == "head",
            "finetune.teacher teaches nothing without finetune.epochs and distill; drop it": section.teacher is not None
            and self.changes_the_model
            and not (section.epochs and section.distill),
        }
        return [clause for clause, broken in rules.items() if broken]

    @property
    def changes_the_model(self) -> bool:
        """Whether heads go or dense attention comes: then the model it starts from can teach the one it ends with."""
        return self.prune.wanted or self.dense.mix is not None
