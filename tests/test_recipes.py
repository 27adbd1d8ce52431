"""Every shipped recipe says how it is run, parses, and runs at toy size with its real model class, augmentation and
loss."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from accelerate.data_loader import DataLoaderShard
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.optim import get_optimizer_info
from timm.utils import ModelEmaV3
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

import slimvit
from slimvit.cli.run import run_command
from slimvit.config.options import Options
from slimvit.config.recipe import AdaptSection, FinetuneSection, ModelSection, Recipe
from slimvit.config.shipped import header, recipe_files
from slimvit.config.training import TrainSection
from slimvit.io.embedded import EMBEDDED
from slimvit.measure.flops.count import MacCount
from slimvit.models.insert_dense import mixes_of
from slimvit.models.registry import plan_of
from slimvit.utils.errors import RecipeError
from slimvit.workflows.training import ADAPT_LR, FINETUNE_LR

NAMES = list(recipe_files())
NETWORKS = ("deit_tiny", "deit_small", "swin_tiny", "swin_small")
IMAGES = {"imagenet": 1_281_167, "torch/cifar10": 50_000, "torch/cifar100": 50_000, "torch/fashion_mnist": 60_000}
"""Training images of the whole data sets."""
GPU = 30e12
"""Floating-point operations a second that the estimates of GPU-hours reckon with."""


SMALLER = {("data", key) for key in ("name", "root", "train_images", "eval_images", "batch_size")}
SMALLER |= {("model", key) for key in ("img_size", "num_classes", "weights", "args")}
SMALLER |= {(section, key) for section in ("adapt", "finetune") for key in ("epochs", "accumulate")}
SMALLER |= {("prune", "calibration_images")}
"""Section and key of what a toy may change."""


@pytest.fixture(autouse=True)
def one_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three counts of MACs cost as much as the small runs here; test_pipeline.py looks at them."""
    one = MacCount(1, {"norm": 0}, (), None, None)
    monkeypatch.setattr("slimvit.workflows.state.count_macs", lambda model: one)


def told(name: str) -> str:
    return " ".join(header(recipe_files()[name]))


def test_there_are_recipes() -> None:
    assert {f.stem for f in (Path(__file__).parents[1] / "recipes").glob("*.yaml")} == set(NAMES) and NAMES


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_its_experiments(network: str) -> None:
    pruned = [f"heads_dense_{data}" for data in ("imagenet", "imagenet_300", "cifar10", "cifar100")]
    assert {f"{network}_{what}" for what in [*pruned, "dense_scratch_imagenet"]} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_runs_it_and_the_second_says_what_it_does(name: str) -> None:
    first, second, *_ = header(recipe_files()[name])
    words = shlex.split(first)
    assert words[:3] == ["slimvit", "run", name]
    given = run_command.make_context("run", words[2:]).params
    assert given["out"] is not None
    assert len(second.split()) >= 4 and second.endswith(".")


@pytest.mark.parametrize("name", [n for n in NAMES if "digits" not in n])
def test_the_long_ones_say_what_they_cost_and_what_to_read_them_against(name: str) -> None:
    for words in ("Units: FLOPs in G with 1 multiply-add = 1, top-1 in per cent.", "Cost: ", "(estimate: ", "Read it "):
        assert words in told(name)
    recipe = Recipe.read(recipe_files()[name])
    if batches := [s.accumulate * recipe.data.batch_size for s in trained(recipe).values()]:
        assert f"Effective batch {batches[0]}" in told(name)
    for other in re.findall(r"\w+_(?:imagenet|scratch|dinov2)\w*", told(name)):
        assert other in NAMES or f"runs/{other}" in told(name)


@pytest.mark.parametrize("name", [n for n in NAMES if "GPU-hours" in told(n)])
def test_the_estimate_of_gpu_hours_follows_from_its_figures(name: str) -> None:
    recipe = Recipe.read(recipe_files()[name])
    first, last = re.search(r"per cent\. FLOPs ([\d.]+\d)(?: -> ([\d.]+\d))?", told(name)).groups()  # type: ignore
    full, slim = float(first) * 1e9, float(last or first) * 1e9
    work = recipe.adapt.epochs * 6 * full + recipe.finetune.epochs * (6 * slim + 2 * full * recipe.finetune.distill)
    hours = IMAGES[recipe.data.name] * work / GPU / 3600
    said = re.search(r"Cost: ([\d.]+) GPU-hours", told(name)).group(1)  # type: ignore
    rounding = 0.05 if "." in said else 0.5
    assert float(said) == pytest.approx(hours, abs=rounding + 0.01 * hours)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_keys_and_contradictions_are_refused_all_at_once(name: str) -> None:
    tree = yaml.safe_load(recipe_files()[name].read_text())
    wrong = {
        "model": {"heads": 0},
        "adapt": {"train": "head"},
        "prune": {"ratio": 0.5, "heads": 2, "target_macs": None},
        "dense": {"mix": None, "lr_scale": 3},
        "finetune": {"sampler": "balanced", "repeated_aug": 3},
    }
    for section, keys in wrong.items():
        tree[section] = tree.get(section, {}) | keys | {"zzz": 1}
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(tree | {"yyy": 1}, name)
    clauses = [f"unknown key {section}.zzz" for section in wrong] + [
        f"{name}: ",
        "unknown key yyy",
        "model: heads is 0",
        "adapt: train is for fine-tuning",
        "prune: ratio and heads were both given",
        "lr_scale without mix",
        "finetune: sampler balanced and repeated_aug both",
    ]
    assert [clause for clause in clauses if clause not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_toy_is_smaller_and_nothing_else(name: str, digit_folder: Any, tmp_path: Path) -> None:
    recipe = Recipe.read(recipe_files()[name])
    real, small = recipe.model_dump(), toy(recipe, digit_folder, tmp_path).model_dump()
    changed = {(s, key) for s in real if s != "seed" for key in real[s] if real[s][key] != small[s][key]}
    assert changed <= SMALLER and real["seed"] == small["seed"]
    assert set(recipe.model.args) <= set(small["model"]["args"])


def unlike() -> list[str]:
    """The first recipe of each kind: those for CIFAR-10 and CIFAR-100 become one toy."""
    found: dict[str, str] = {}
    for name in NAMES:
        tree = Recipe.read(recipe_files()[name]).model_dump()
        tree["data"] = {k: v for k, v in tree["data"].items() if ("data", k) not in SMALLER}
        tree["data"] |= {"digits": "digits" in name}
        for section in ("adapt", "finetune"):
            tree[section] |= {
                "epochs": min(1, tree[section]["epochs"]),
                "accumulate": min(2, tree[section]["accumulate"]),
            }
        found.setdefault(repr(tree | {"model": tree["model"] | {"num_classes": None}}), name)
    return list(found.values())


@pytest.mark.parametrize("name", unlike())
def test_it_runs(name: str, digit_folder: Any, tmp_path: Path, watch: Watch) -> None:
    recipe = Recipe.read(recipe_files()[name])
    now = slimvit.run(toy(recipe, digit_folder, tmp_path), Options(out=tmp_path / "run"))
    wanted = ["original"] + ["pruned", "refit"] * recipe.prune.wanted
    wanted += ["dense"] * bool(recipe.dense.mix) + ["finetuned"] * bool(recipe.finetune.epochs)
    assert [s.stage for s in now.report.stages] == wanted
    sections = trained(recipe)
    assert list(now.histories) == list(sections)
    assert watch.decays == [s.ema_decay for s in sections.values() if s.ema_decay is not None]
    for (what, section), training, loader in zip(sections.items(), watch.trainings, watch.loaders, strict=True):
        assert 2 <= training.steps <= 4
        has_the_optimizer(recipe, what, training.optimizer)
        assert set(training.events) == events_of(section, recipe)
        assert augmentation_in(loader) == augmentation_of(section)
        assert max(Counter(key[1] for key in loader.batch_sampler.sampler).values()) == section.repeated_aug
    assert all(torch.isfinite(p).all() for p in now.model.parameters())
    has_the_heads(recipe, now.model)
    if recipe.dense.mix:
        size = max(map(abs, mixes_of(now.model).values()))
        assert 0 < size < 0.05 if recipe.dense.init == "zero" else size > 0.2
    again = slimvit.load(tmp_path / "run")
    assert again.slim_plan == plan_of(now.model)
    assert (again.num_classes, type(again)) == (now.context.data.num_classes, type(now.model))


def trained(recipe: Recipe) -> dict[str, TrainSection]:
    """The sections that train through the network, not on stored features."""
    sections: dict[str, TrainSection] = {"adapt": recipe.adapt, "finetune": recipe.finetune}
    return {
        name: s for name, s in sections.items() if s.epochs and not (isinstance(s, AdaptSection) and s.mode == "head")
    }


def has_the_heads(recipe: Recipe, model: Any) -> None:
    """A number of heads that the recipe names is what every block ends with, stage by stage."""
    heads = recipe.prune.heads or recipe.model.heads
    if heads is not None:
        for block in plan_of(model).blocks:
            assert len(block.kept_heads) == (heads if isinstance(heads, int) else heads[block.stage])


def has_the_optimizer(recipe: Recipe, what: str, optimizer: Any) -> None:
    """The named optimizer, with its rate, its weight decay, and the mixes' own rate without decay."""
    section: TrainSection = getattr(recipe, what)
    lr = section.lr or {"adapt": ADAPT_LR, "finetune": FINETUNE_LR}[what]
    assert isinstance(optimizer, get_optimizer_info(section.optimizer).opt_class)
    mixes = [g for g in optimizer.param_groups if all(p.ndim == 1 and p.numel() < 8 for p in g["params"])]
    others = [g for g in optimizer.param_groups if not any(g is m for m in mixes)]
    assert {g["initial_lr"] for g in others} == {lr}
    assert {g["weight_decay"] for g in others} == {0.0, section.weight_decay}
    assert bool(mixes) == (what == "finetune" and recipe.dense.mix is not None)
    for group in mixes:
        assert group["initial_lr"] == pytest.approx(lr * recipe.dense.lr_scale) and group["weight_decay"] == 0


def events_of(section: TrainSection, recipe: Recipe) -> set[tuple[Any, ...]]:
    """What a batch goes through by its section."""
    mixed = bool(section.mixup or section.cutmix)
    found: set[tuple[Any, ...]] = {("labels", 2 if mixed else 1, section.smoothing)}
    if mixed:
        found.add(("mixup", section.mixup, section.cutmix, section.mixup_prob, section.switch_prob))
    if isinstance(section, FinetuneSection) and section.distill and recipe.changes_the_model:
        found |= {"soft": {("teacher",)}, "hard": {("labels", 1, 0.0)}, "features": set()}[section.distill_kind]
    return found


def augmentation_of(section: TrainSection) -> dict[str, Any]:
    asked = {"flip": section.hflip, "augment": section.auto_augment, "erase": section.random_erasing}
    found: dict[str, Any] = {key: value for key, value in asked.items() if value}
    if section.auto_augment:
        found["augment"] = str(rand_augment_transform(section.auto_augment, {}))
    return found | ({"crop": section.crop_scale} if found or section.crop_scale < 1 else {})


def augmentation_in(loader: DataLoaderShard) -> dict[str, Any]:
    """What the steps of a loader's transform do at random."""
    steps = {type(step).__name__: step for step in loader.dataset.transform.transform.transforms}  # type: ignore
    known = {
        "RandomResizedCropAndInterpolation": lambda step: {"crop": step.scale[0]},
        "RandomHorizontalFlip": lambda step: {"flip": step.p},
        "RandAugment": lambda step: {"augment": str(step)},
        "RandomErasing": lambda step: {"erase": step.probability},
    }
    return {k: v for name, step in steps.items() if name in known for k, v in known[name](step).items()}


@dataclass
class Training:
    """The steps of one optimizer, and what the batches between the first and the last of them went through."""

    optimizer: torch.optim.Optimizer
    steps: int = 0
    events: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass
class Watch:
    """Looks over torch's and timm's shoulders; the linear classifier on stored features is not looked at."""

    trainings: list[Training] = field(default_factory=list)
    loaders: list[DataLoaderShard] = field(default_factory=list)
    decays: list[float] = field(default_factory=list)
    since: list[tuple[Any, ...]] = field(default_factory=list)
    """Since the last step of an optimizer: before the first one, scores and evaluations too."""

    def step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        events, self.since = self.since, []
        if sum(len(group["params"]) for group in optimizer.param_groups) <= 2:
            return
        if not self.trainings or self.trainings[-1].optimizer is not optimizer:
            self.trainings.append(Training(optimizer))
            events = []
        self.trainings[-1].steps += 1
        self.trainings[-1].events += events

    def cross_entropy(self, real: Any, output: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        self.since.append(("labels", target.ndim, kwargs.get("label_smoothing", 0.0)))
        return real(output, target, *args, **kwargs)

    def kl_div(self, real: Any, *args: Any, **kwargs: Any) -> Any:
        self.since.append(("teacher",))
        return real(*args, **kwargs)

    def mixup(self, real: Any, mixup: Any, *args: Any) -> Any:
        self.since.append(("mixup", mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob))
        return real(mixup, *args)

    def average(self, real: Any, ema: Any, model: Any, decay: float, *args: Any, **kwargs: Any) -> None:
        self.decays.append(decay)
        real(ema, model, decay, *args, **kwargs)

    def batches(self, real: Any, loader: DataLoaderShard) -> Any:
        self.loaders.append(loader)
        return real(loader)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    found = Watch()
    places = (
        (F, "cross_entropy", found.cross_entropy),
        (F, "kl_div", found.kl_div),
        (Mixup, "__call__", found.mixup),
        (ModelEmaV3, "__init__", found.average),
        (DataLoaderShard, "__iter__", found.batches),
    )
    for owner, name, spy in places:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, _spy=spy, _real=real, **kwargs: _spy(_real, *args, **kwargs))
    hook = register_optimizer_step_post_hook(found.step)
    yield found
    hook.remove()


def toy(recipe: Recipe, digit_folder: Any, tmp_path: Path) -> Recipe:
    """The same recipe on a handful of digits, few pixels and blocks, one epoch of two steps; the rest as it is."""
    tree = recipe.model_dump()
    tree["data"] |= {"train_images": 8, "eval_images": 4, "batch_size": 4}
    if recipe.data.name != "digits":
        tree["data"] |= {"name": str(digit_folder(tmp_path / "data", train=4, val=2)), "root": None}
    if recipe.model.name not in EMBEDDED and recipe.data.name != "digits":
        tree["model"] |= toy_model(recipe.model, tmp_path)
    for section in ("adapt", "finetune"):
        tree[section]["epochs"] = min(1, tree[section]["epochs"])
        if tree[section]["accumulate"] > 1:  # a run's other training, with the same batch_size, takes four steps then
            tree[section]["accumulate"] = 2
            tree["data"]["batch_size"] = 2
    tree["prune"]["calibration_images"] = 4
    return Recipe.parse(tree)


def toy_model(section: ModelSection, tmp_path: Path) -> dict[str, Any]:
    """Few pixels, few narrow blocks, and made-up weights where they would be fetched."""
    swin = section.name.startswith("swin")
    size = {"img_size": 28 if "patch14" in section.name else 32}
    args = section.args | ({"depths": [2, 1, 2, 1], "embed_dim": 24} if swin else {"depth": 3, "embed_dim": 48})
    if not section.pretrained:
        return {**size, "args": args, "num_classes": 3}
    classes = 0 if "dinov2" in section.name else 3
    torch.manual_seed(1)  # the same heads go every time
    torch.save(timm.create_model(section.name, num_classes=classes, **size, **args).state_dict(), tmp_path / "w.pth")
    return {**size, "args": args, "weights": str(tmp_path / "w.pth")}
