"""The sections of a recipe that describe training, and the contradictions between their settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from slimvit.config.choices import Sampler, TrainedPart
from slimvit.utils.errors import nearest

FIELDS_ALONE = "fields alone"
"""Validation context without contradictions, which `defects_of` collects for a whole file."""


class Section(BaseModel):
    """A section of a recipe: immutable, without unknown keys or contradictions."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def contradictions(self) -> list[str]:
        """Return one clause for each setting that excludes another or has no effect without another."""
        return []

    @model_validator(mode="after")
    def _no_contradictions(self, info: ValidationInfo) -> Section:
        if info.context != FIELDS_ALONE and (clauses := self.contradictions()):
            raise ValueError("; ".join(clauses))
        return self


class TrainSection(Section):
    """One training: AdamW by default, cosine schedule, timm's augmentation."""

    epochs: int = Field(0, ge=0)
    eval_every: int = Field(1, gt=0)
    """Epochs between two evaluations; the last epoch is always evaluated."""
    train: TrainedPart = "all"
    """Trained weights: `all`, or `head`, the classifier alone with the body in eval mode."""
    optimizer: str = "adamw"
    """Name of an optimizer of timm's `create_optimizer_v2`."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Momentum of an optimizer that has one; None takes timm's 0.9."""
    betas: list[float] | None = None
    """Betas of an optimizer that has them; None takes the optimizer's own."""
    eps: float | None = Field(None, gt=0)
    lr: float | None = Field(None, gt=0)
    """Peak learning rate; None takes the default of the stage."""
    min_lr: float = Field(0.0, ge=0)
    warmup_epochs: float = Field(0.5, ge=0)
    warmup_lr: float = Field(0.0, ge=0)
    """Learning rate of the first step."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Learning rate of a block over that of the next block; mixes of dense attention are exempt."""
    weight_decay: float = Field(0.05, ge=0)
    """Weight decay; norms, biases, tokens, position tables and mixes are exempt."""
    clip_grad: float | None = Field(1.0, gt=0)
    """Largest gradient norm."""
    accumulate: int = Field(1, gt=0)
    """Batches per optimizer step: the effective batch is accumulate * batch_size images."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay per step of a moving average of the weights, which is evaluated and returned in their place."""
    ema_warmup: bool = False
    """Let the decay rise from 0, so that the initial weights do not dominate a short training."""
    sampler: Sampler = "shuffle"
    """`balanced` draws images with replacement, every class equally often."""
    repeated_aug: int = Field(1, gt=0)
    """Differently augmented copies of an image in a row; an epoch keeps its length, with fewer distinct images."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    mixup_prob: float = Field(1.0, gt=0, le=1)
    """Share of the batches that are mixed."""
    switch_prob: float = Field(0.5, ge=0, le=1)
    """Share of cutmix among the mixed batches, where both are on."""
    crop_scale: float = Field(0.7, gt=0, le=1)
    """Smallest share of the image area in a random resized crop; 1 with hflip 0 leaves images unaugmented."""
    hflip: float = Field(0.5, ge=0, le=1)
    color_jitter: float = Field(0.0, ge=0)
    auto_augment: str | None = None
    """timm's notation, e.g. rand-m9-mstd0.5-inc1."""
    random_erasing: float = Field(0.0, ge=0, le=1)

    @property
    def numbered(self) -> bool:
        """Whether batches hold the number of every image beside its label."""
        return False

    def contradictions(self) -> list[str]:
        frozen = self.train == "head"
        rules = {
            "min_lr is above lr; give a smaller min_lr": self.lr is not None and self.min_lr > self.lr,
            "warmup_lr is above lr; give a smaller warmup_lr": self.lr is not None and self.warmup_lr > self.lr,
            "ema_warmup without ema_decay; give both or neither": self.ema_warmup and self.ema_decay is None,
            "sampler balanced and repeated_aug both choose the images; give one": self.sampler == "balanced"
            and self.repeated_aug > 1,
            "mixup_prob without mixup or cutmix": self.mixup_prob != 1 and not (self.mixup or self.cutmix),
            "switch_prob switches between mixup and cutmix; give both": self.switch_prob != 0.5
            and not (self.mixup and self.cutmix),
            "train head leaves the body as it is; drop layer_decay": frozen and self.layer_decay is not None,
            "train head leaves the body as it is; drop drop_path": frozen and self.drop_path > 0,
        }
        return [clause for clause, broken in rules.items() if broken] + optimizer_defects(self)


def optimizer_defects(section: TrainSection) -> list[str]:
    """Return the defects of the optimizer's name and arguments; only settings other than the default import timm."""
    given = [name for name in ("momentum", "betas", "eps") if getattr(section, name) is not None]
    if section.optimizer == "adamw" and not given:
        return []
    from timm.optim import get_optimizer_info, list_optimizers

    name = section.optimizer.lower().removeprefix("lookahead_")
    known = [str(optimizer) for optimizer in list_optimizers()]
    if name not in known:
        hint = nearest(name, known) or "; e.g. adamw, sgd, lamb, lion"
        return [f"optimizer is {section.optimizer!r}, which timm does not know{hint}"]
    info = get_optimizer_info(name)
    if info.second_order:
        return [f"optimizer {name} needs second derivatives, which are not computed; choose another, e.g. adamw"]
    defects = [f"optimizer {name} has no {arg}; drop it" for arg in given if not getattr(info, f"has_{arg}")]
    if section.betas is not None and info.has_betas:
        wrong = len(section.betas) != info.num_betas or not all(0 <= b < 1 for b in section.betas)
        clause = f"betas is {section.betas}, but {name} takes {info.num_betas} numbers of 0 or more and under 1"
        defects += [clause] * wrong
    return defects
