"""The recipe: everything that decides what a run computes. How it is carried out (device, workers) is `Options`."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from slimvit.config.arguments import defects_of_arguments
from slimvit.config.choices import (
    AdaptMode,
    BudgetKind,
    Criterion,
    DenseInit,
    DenseMix,
    DistillKind,
    Interpolation,
    PartWord,
    RefitTarget,
    Scope,
)
from slimvit.config.data_names import defects_of_data
from slimvit.config.preprocessing import defects_of_preprocessing
from slimvit.config.training import Section, TrainSection
from slimvit.config.validation import Document


class ModelSection(Section):
    """The model to prune: its name, its weights, and the arguments of its constructor."""

    name: str
    """A timm model, an embedded model (`slimvit models --embedded`), the folder of an earlier run, or
    `hf-hub:user/name[@revision]`. In the recipe of a run folder the revision is a commit."""
    weights: str | None = None
    """A .safetensors file or a checkpoint of torch.save with the weights, instead of timm's pretrained ones."""
    weights_key: str | None = None
    """Key of the weights in a file with several sets, such as `state_dict_ema` or `teacher`."""
    pretrained: bool = True
    img_size: int | None = Field(None, gt=0)
    """Side of the square input, in pixels; None is the side of the weights' training."""
    mean: list[float] | None = None
    """Mean of the pixel values, 0-1, which is subtracted: one number, or one per channel; None is the model's value."""
    std: list[float] | None = None
    """Standard deviation of the pixel values, by which they are divided; None is the model's value."""
    interpolation: Interpolation | None = None
    """Interpolation of resized images; None is the model's value."""
    crop_pct: float | None = None
    """Side of the input over the side of the resized image before the centre crop; None is the model's value."""
    class_order: str | None = None
    """Order of the classes of weights without class names: `natural` (2 before 10, as in
    timm), `string` (10 before 2, as in torchvision), or a file with one name per line."""
    num_classes: int | None = Field(None, ge=0)
    heads: int | list[int] | None = None
    """Heads of every block, or one number per stage, of a narrower network without pretrained weights."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's `create_model`."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The values that replace the model's own, under timm's names."""
        values = {key: getattr(self, key) for key in ("mean", "std", "interpolation", "crop_pct")}
        return {key: value for key, value in values.items() if value is not None}

    def contradictions(self) -> list[str]:
        found = defects_of_arguments(self.args, "args") + defects_of_preprocessing(self.preprocessing)
        found += ["weights_key chooses among the weights of a file; give weights"] * (
            self.weights_key is not None and self.weights is None
        )
        if self.heads is None:
            return found
        counts = [self.heads] if isinstance(self.heads, int) else self.heads
        rules = {
            f"heads is {self.heads}, but every block needs at least 1 head": any(n < 1 for n in counts),
            f"heads {self.heads} builds a network without weights; give pretrained false and no weights, "
            "or cut a pretrained one with prune": self.pretrained or self.weights is not None,
        }
        return found + [clause for clause, broken in rules.items() if broken]


class DataSection(Section):
    """The data set: its name, its splits, and the number of images to use."""

    name: str
    """A folder with train/CLASS/ and val/CLASS/, `digits`, or a timm data name (`torch/...`, `hfds/...`)."""
    root: str | None = None
    """Local folder of a named data set."""
    train_split: str = "train"
    val_split: str = "validation"
    train_images: int | None = Field(None, gt=0)
    """Number of training images to use, drawn with the seed."""
    eval_images: int | None = Field(None, gt=0)
    """Number of validation images to use, drawn with a fixed seed."""
    batch_size: int = Field(64, gt=0)
    """Images per step, in training and in evaluation."""
    skip_bad_images: bool = False

    def contradictions(self) -> list[str]:
        splits = {"train_split": self.train_split, "val_split": self.val_split}
        return defects_of_data(self.name, self.root, splits)


class AdaptSection(TrainSection):
    """Train a classifier for the data's classes before anything is cut."""

    mode: AdaptMode = "head"
    """`head` trains the classifier alone, on frozen features of unaugmented images and with its own learning rate;
    `all` trains the classifier first, then the whole network."""

    def contradictions(self) -> list[str]:
        clauses = super().contradictions()
        if self.train != "all":
            clauses.append("train is for fine-tuning; here mode says what is trained")
        if self.mode == "head":  # it has an optimizer of its own, and features that are computed once
            idle = ("optimizer", "momentum", "betas", "eps", "warmup_lr", "layer_decay", "accumulate", "ema_decay")
            changed = [
                k
                for k in (*idle, "repeated_aug", "eval_every")
                if getattr(self, k) != type(self).model_fields[k].default
            ]
            clauses += [f"{' and '.join(changed)} without mode all; drop it or give mode all"] * bool(changed)
        return clauses


class FinetuneSection(TrainSection):
    """Train the pruned network."""

    distill: bool = True
    """Learn from a teacher as well: the uncut network (self-distillation), or the model of `teacher`."""
    teacher: ModelSection | None = None
    """Another teacher: a timm model or run folder with the same classes. `slimvit finetune`, which cuts nothing, puts
    the uncut network here."""
    distill_kind: DistillKind = "soft"
    """Target of the distillation: `soft`, the teacher's probabilities at a temperature; `hard`, its best class as a
    label (DeiT); `features`, its residual stream after every block, for a teacher with the same blocks."""
    distill_weight: float = Field(0.5, ge=0, le=1)
    """Share of the distillation term in the loss."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of soft distillation."""
    cache_teacher: bool = False
    """Compute the teacher's predictions once, not in every epoch; the images must be unaugmented."""

    @property
    def numbered(self) -> bool:
        return self.cache_teacher

    def contradictions(self) -> list[str]:
        clauses = super().contradictions()
        if self.cache_teacher:
            taught = self.distill and self.distill_kind != "features"
            clauses += ["cache_teacher keeps a teacher's predictions; give distill, soft or hard"] * (not taught)
            changed = ("color_jitter", "auto_augment", "random_erasing", "mixup", "cutmix", "hflip")
            idle = [name for name in changed if getattr(self, name)] + ["crop_scale"] * (self.crop_scale < 1)
            clause = f"cache_teacher needs unaugmented images, but {', '.join(idle)} changes them; drop one of them"
            clauses += [clause] * bool(idle)
        if self.distill_kind != "soft":
            rules = {
                f"distill_kind {self.distill_kind} without distill; give both or neither": not self.distill,
                f"temperature is for soft distillation, not {self.distill_kind}; drop it": self.temperature != 2.0,
                "train head leaves the stream as it is, so features cannot be learnt": self.distill_kind == "features"
                and self.train == "head",
            }
            clauses += [clause for clause, broken in rules.items() if broken]
        return clauses


TARGETS = ("target_macs", "target_params", "target_latency")
BUDGETS = ("ratio", "heads", "mlp_ratio", *TARGETS, "target", "plan")


class AskedBudget(NamedTuple):
    """The target that a recipe asks for."""

    kind: str
    """Kind of budget, such as `macs`."""
    fraction: float
    """Largest cost of the pruned model, as a fraction of the original's."""


class PruneSection(Section):
    """The budget, the parts that may be cut, and the criterion."""

    ratio: float | None = None
    """Fraction of heads to remove, between 0 and 1."""
    heads: int | list[int] | None = None
    """Heads to keep in every block, or one number per stage."""
    mlp_ratio: float | None = None
    """Fraction of the MLPs' hidden neurons to remove, between 0 and 1."""
    target_macs: float | None = None
    """MACs of the pruned model, as a fraction of the original's."""
    target_params: float | None = None
    """Parameters of the pruned model, as a fraction of the original's."""
    target_latency: float | None = None
    """Time per batch of the pruned model on the run's device, as a fraction of the original's."""
    target: dict[BudgetKind, float] | None = None
    """The same for any kind of budget: `{macs: 0.5}`."""
    latency_batch: int = Field(1, gt=0)
    """Images per batch of target_latency."""
    plan: str | None = None
    """A plan file written by --dry-run --out."""
    parts: list[PartWord] | None = None
    """Parts that may be cut to meet a target: `heads`, `mlp` (its neurons), `qk` (width of queries and keys), `tokens`
    (merged tokens), `branches` (whole attentions and MLPs). None: heads, and neurons too where heads alone cannot meet
    the target."""
    scope: Scope = "global"
    min_heads: int = Field(1, ge=0)
    """Fewest heads that a block keeps; 0 lets a block lose its attention."""
    neuron_group: int = Field(8, gt=0)
    """Neurons are removed in groups of this size."""
    criterion: Criterion = "residual"
    calibration_images: int = Field(512, gt=0)
    """Training images for the scores and the refit."""
    steps: int = Field(1, gt=0)
    """Rounds of scoring, cutting and refitting on the way to the budget."""
    step_epochs: int = Field(0, ge=0)
    """Epochs of fine-tuning after every round but the last, with the settings of finetune."""

    def contradictions(self) -> list[str]:
        given = [k for k in BUDGETS if getattr(self, k) is not None]
        both = [k for k in given if k != "mlp_ratio"] if {*given} & {"ratio", "heads"} else given
        one = f"one of {', '.join(BUDGETS)} decides (mlp_ratio goes with ratio and heads)"
        clauses = [f"{' and '.join(both)} were both given; {one}"] * (len(both) > 1)
        for key in ("ratio", "mlp_ratio", *TARGETS):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1:
                clauses.append(f"{key} is {value}, but must lie between 0 and 1, both excluded")
        clauses += self._defects_of_target()
        counts = self.heads if isinstance(self.heads, list) else [] if self.heads is None else [self.heads]
        if any(n < 0 for n in counts):
            clauses.append(f"heads is {self.heads}, but a block cannot keep fewer than 0 heads")
        rules = {
            f"parts is for {', '.join(TARGETS)}; drop it": self.parts is not None and self.wanted and not self.budget,
            "parts is empty; name heads, mlp, qk, tokens or branches": self.parts == [],
            "latency_batch is for target_latency; drop it": self.latency_batch != 1 and not self.asks_for("latency"),
            "steps is for ratios and targets; drop it": self.steps > 1
            and (self.heads is not None or self.plan is not None),
            "step_epochs without steps; give at least 2 steps": self.step_epochs > 0 and self.steps == 1,
        }
        return clauses + [clause for clause, broken in rules.items() if broken]

    @property
    def wanted(self) -> bool:
        """Whether the recipe names a budget."""
        return any(getattr(self, key) is not None for key in BUDGETS)

    @property
    def budget(self) -> AskedBudget | None:
        """The target in MACs, parameters, time or another cost; None for a ratio, numbers of heads or a plan."""
        keys = {key.removeprefix("target_"): getattr(self, key) for key in TARGETS}
        given = [AskedBudget(*item) for item in (keys | (self.target or {})).items() if item[1] is not None]
        return given[0] if given else None

    def asks_for(self, kind: str) -> bool:
        """Whether the target is of this kind."""
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
    """The refit of every branch's last linear layer after the cut."""

    target: RefitTarget = "stream"
    ridge: float | None = Field(0.1, gt=0)
    """Ridge penalty towards the old weights, in units of the mean feature variance. None chooses it for each layer by
    the error on calibration images that are left out."""
    class_token: float = Field(1.0, gt=0)
    """Weight of the class token in the regression, where each other token has 1."""


class DenseSection(Section):
    """Dense attention: each attention block also attends to the values of the earlier blocks of its stage."""

    mix: DenseMix | None = None
    """Learnable weights: one per pair of blocks (`layer`), or per pair and head (`head`); None inserts nothing."""
    init: DenseInit = "zero"
    """`zero` leaves the network's function as it is until training; `normal` is for training from scratch."""
    lr_scale: float = Field(10.0, gt=0)
    """Learning rate of the mixes, as a multiple of that of the other weights."""

    def contradictions(self) -> list[str]:
        idle = [k for k, field in type(self).model_fields.items() if getattr(self, k) != field.default]
        return [f"{' and '.join(idle)} without mix; give mix layer or head"] if self.mix is None and idle else []


class Recipe(Document):
    """One run: the model, the data, the cut, the refit and the training."""

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
            "model.class_order is for a classifier that adapt.epochs replaces; drop one of them": self.adapt.epochs > 0
            and self.model.class_order is not None,
            "finetune.train is head, but the mixes of dense are in the body; give train all": self.dense.mix is not None
            and section.epochs > 0
            and section.train == "head",
            "finetune.teacher teaches nothing without finetune.epochs and distill; drop it": section.teacher is not None
            and self.changes_the_model
            and not (section.epochs and section.distill),
        }
        return [clause for clause, broken in rules.items() if broken]

    @property
    def reads_training_images(self) -> bool:
        """Whether anything is scored, repaired or trained; otherwise validation images are enough."""
        return self.prune.wanted or self.finetune.epochs > 0 or self.adapt.epochs > 0

    @property
    def changes_the_model(self) -> bool:
        """Whether the run prunes or inserts dense attention, so that its starting model can be the teacher."""
        return self.prune.wanted or self.dense.mix is not None
