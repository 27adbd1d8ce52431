from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.train import optimizer, state
from slimvit.train.loop import TrainOptions, train
from slimvit.train.step import Diverged
from slimvit.utils.errors import RecipeError

Build = Callable[..., Any]


def labels_loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(images), targets)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


class Spy:
    """A loss that remembers the learning rate of every step, found through the optimizer it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates: list[float] = []
        self.optimizers: list[torch.optim.Optimizer] = []

        def build(*args: Any) -> torch.optim.Optimizer:
            self.optimizers.append(optimizer.build_optimizer(*args))
            return self.optimizers[-1]

        monkeypatch.setattr(state, "build_optimizer", build)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        self.rates.append(self.optimizers[-1].param_groups[0]["lr"])
        return labels_loss(model, images, targets)


def test_the_loss_falls_and_the_input_model_stays(trained: Any, section: Build, loader: Build) -> None:
    start = copy.deepcopy(trained)
    start.reset_classifier(10)
    before, mode = copy.deepcopy(start), start.training
    wanted = section(epochs=2)
    model, history = train(start, loader(start, wanted), labels_loss, wanted, TrainOptions(lr=1e-3))
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert same(start, before) and start.training == mode and not same(model, before)
    assert not any(m.training for m in model.modules())


def test_every_epoch_can_be_measured(untrained: Any, section: Build, loader: Build) -> None:
    def measure(model: nn.Module, row: dict[str, Any]) -> None:
        row["training"] = model.training

    _, history = train(
        untrained,
        loader(untrained, section(), images=32),
        labels_loss,
        section(),
        TrainOptions(lr=1e-3, after_epoch=measure),
    )
    assert history[0].keys() == {"epoch", "loss", "lr", "seconds", "training"} and history[0]["training"] is False


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_rate_warms_up_to_its_peak_and_falls_to_its_floor(
    untrained: Any, section: Build, loader: Build, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    spy = Spy(monkeypatch)
    wanted = section(epochs=epochs, lr=0.01, min_lr=1e-4, warmup_epochs=0.5)
    _, history = train(untrained, loader(untrained, wanted, batch=8), spy, wanted, TrainOptions(lr=1.0))
    steps, peak = 16 * epochs, spy.rates.index(max(spy.rates))
    assert len(spy.rates) == steps and peak == 8
    assert spy.rates[peak] == pytest.approx(0.01)
    assert spy.rates[: peak + 1] == sorted(spy.rates[: peak + 1]) and spy.rates[peak:] == sorted(spy.rates[peak:])[::-1]
    assert 1e-4 <= spy.rates[-1] < 1e-3 and history[-1]["lr"] == spy.rates[-1]


def test_one_step_is_taken_at_the_peak(
    untrained: Any, section: Build, loader: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    train(untrained, loader(untrained, section(), images=8), spy, section(), TrainOptions(lr=0.01))
    assert spy.rates == [0.01]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_loss_stops_the_training(untrained: Any, section: Build, loader: Build, value: float) -> None:
    calls = 0

    def break_at_the_sixth_step(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return labels_loss(model, images, targets) * (value if calls == 6 else 1)

    wanted = section(epochs=2, lr=1e-3, warmup_epochs=0)
    with pytest.raises(Diverged, match=rf"became {value} in epoch 2, step 2, at lr \d\.\d+e-04; give a smaller"):
        train(untrained, loader(untrained, wanted), break_at_the_sixth_step, wanted, TrainOptions(lr=1.0))
    assert all(p.isfinite().all() for p in untrained.parameters())


def test_drop_path_is_set_while_training_and_gone_after(trained: Any, section: Build, loader: Build) -> None:
    seen: list[list[float]] = []

    def look(model: Any, images: Tensor, targets: Tensor) -> Tensor:
        seen.append([getattr(b.drop_path1, "drop_prob", 0.0) for b in model.blocks])
        assert all(type(b.drop_path1) is type(b.drop_path2) for b in model.blocks)
        return labels_loss(model, images, targets)

    wanted = section(drop_path=0.2)
    model, _ = train(trained, loader(trained, wanted, images=32), look, wanted, TrainOptions(lr=1e-5))
    assert seen[0] == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert not any(isinstance(m, DropPath) for m in (*model.modules(), *trained.modules()))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_have_mixed_targets(untrained: Any, section: Build, loader: Build, kind: str) -> None:
    seen: list[Tensor] = []

    def look(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return labels_loss(model, images, targets)

    wanted = section(**{kind: 1.0})
    train(untrained, loader(untrained, wanted), look, wanted, TrainOptions(lr=1e-3))
    for targets in seen:
        assert targets.shape == (32, 10)
        assert torch.allclose(targets.sum(1), torch.ones(32))
    assert any(((t > 0).sum(1) == 2).any() for t in seen)


def test_mixing_needs_pairs(untrained: Any, section: Build, loader: Build) -> None:
    wanted = section(mixup=1.0)
    for batch, images, step in ((7, 32, 7), (32, 5, 5)):
        with pytest.raises(RecipeError, match=f"in pairs, but a step has {step}"):
            train(untrained, loader(untrained, wanted, batch, images), labels_loss, wanted, TrainOptions(lr=1e-3))


def test_the_same_seed_gives_the_same_bits(untrained: Any, section: Build, loader: Build) -> None:
    wanted = section(drop_path=0.3, mixup=0.5, cutmix=0.5, crop_scale=0.6, hflip=0.5, random_erasing=0.3, epochs=2)
    runs = [
        train(
            untrained,
            loader(untrained, wanted, images=64, seed=seed),
            labels_loss,
            wanted,
            TrainOptions(lr=1e-3, seed=seed),
        )
        for seed in (0, 0, 1)
    ]
    assert same(runs[0][0], runs[1][0]) and not same(runs[0][0], runs[2][0])
    assert [r["loss"] for r in runs[0][1]] == [r["loss"] for r in runs[1][1]]


def test_the_average_is_what_is_measured_and_returned(untrained: Any, section: Build, loader: Build) -> None:
    decay, plain = 0.5, section(lr=1e-3, warmup_epochs=0)
    steps: list[dict[str, Tensor]] = []

    def remember(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        steps.append({k: v.detach().clone() for k, v in model.state_dict().items()})
        return labels_loss(model, images, targets)

    measured: list[Any] = []
    wanted = plain.model_copy(update={"ema_decay": decay, "drop_path": 0.1})
    model, _ = train(
        untrained,
        loader(untrained, wanted),
        remember,
        wanted,
        TrainOptions(lr=1e-3, after_epoch=lambda net, row: measured.append(copy.deepcopy(net.state_dict()))),
    )
    assert not any(isinstance(m, DropPath) for m in model.modules())
    raw, _ = train(
        untrained,
        loader(untrained, wanted),
        labels_loss,
        wanted.model_copy(update={"ema_decay": None}),
        TrainOptions(lr=1e-3),
    )
    steps.append(raw.state_dict())
    for key, found in model.state_dict().items():
        average = steps[1][key]  # the average begins with the weights after the first step
        for after in steps[2:]:
            average = decay * average + (1 - decay) * after[key]
        assert torch.allclose(found, average, atol=1e-6), key
        assert torch.equal(found, measured[0][key])
    assert not same(model, raw)


def test_a_rising_decay_stays_closer_to_the_weights(untrained: Any, section: Build, loader: Build) -> None:
    def distance(**more: Any) -> float:
        wanted = section(lr=1e-3, warmup_epochs=0, **more)
        model, _ = train(untrained, loader(untrained, wanted), labels_loss, wanted, TrainOptions(lr=1e-3))
        return sum(float((v - raw.state_dict()[k]).square().sum()) for k, v in model.state_dict().items())

    plain = section(lr=1e-3, warmup_epochs=0)
    raw, _ = train(untrained, loader(untrained, plain), labels_loss, plain, TrainOptions(lr=1e-3))
    assert 0 < distance(ema_decay=0.999, ema_warmup=True) < 0.5 * distance(ema_decay=0.999)


def test_accumulated_batches_make_one_step(untrained: Any, section: Build, loader: Build) -> None:
    one = section(lr=1e-3, warmup_epochs=0, epochs=2)
    parts = one.model_copy(update={"accumulate": 4})
    whole, history = train(untrained, loader(untrained, one, batch=128), labels_loss, one, TrainOptions(lr=1e-3))
    summed, rows = train(untrained, loader(untrained, parts, batch=32), labels_loss, parts, TrainOptions(lr=1e-3))
    for key, value in whole.state_dict().items():
        assert torch.allclose(value, summed.state_dict()[key], atol=2e-5), key
    assert [r["lr"] for r in rows] == pytest.approx([r["lr"] for r in history])
    assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in history], rel=1e-4)
    assert [r["batch"] for r in rows] == [128, 128] and "batch" not in history[0]


def test_the_last_step_of_an_epoch_takes_what_is_left(
    untrained: Any, section: Build, loader: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    wanted = section(accumulate=3, lr=1e-3, warmup_epochs=0)
    train(untrained, loader(untrained, wanted), spy, wanted, TrainOptions(lr=1e-3))  # four batches: three and one
    assert len(spy.rates) == 4 and spy.rates[0] == spy.rates[2] > spy.rates[3]


@pytest.mark.parametrize("build", ["trained", "distilled", "swin"])
def test_only_the_classifier_learns(
    request: pytest.FixtureRequest, section: Build, loader: Build, digits: Any, build: str
) -> None:
    size = {"img_size": 16, "num_classes": 10, "in_chans": 1}
    if build == "trained":
        model = request.getfixturevalue("trained")
    elif build == "distilled":
        model = request.getfixturevalue("vit")("deit_tiny_distilled_patch16_224", **size, patch_size=4)
    else:
        model = request.getfixturevalue("swin")(**size, patch_size=2, drop_path_rate=0.5)
    modes: list[set[str]] = []

    def look(net: Any, images: Tensor, targets: Tensor) -> Tensor:
        modes.append({name.partition(".")[0] for name, m in net.named_modules() if m.training})
        return labels_loss(net, images, targets)

    wanted = section(train="head", lr=1e-2)
    after, _ = train(model, loader(model, wanted), look, wanted, TrainOptions(lr=1e-2))
    changed = {k for k, v in after.state_dict().items() if not torch.equal(v, model.state_dict()[k])}
    assert changed and all(k.startswith("head") for k in changed) and all(m <= {"head", "head_dist"} for m in modes)
    assert ("head_dist.weight" in changed) == (build == "distilled")
    assert all(p.requires_grad for p in (*after.parameters(), *model.parameters()))


def test_mixing_can_be_rare(untrained: Any, section: Build, loader: Build) -> None:
    seen: list[bool] = []

    def look(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        seen.append(bool(((targets > 0).sum(1) == 2).any()))
        return labels_loss(model, images, targets)

    wanted = section(mixup=1.0, mixup_prob=0.25, epochs=2)
    train(untrained, loader(untrained, wanted, batch=8), look, wanted, TrainOptions(lr=1e-3))
    assert 0 < sum(seen) < 16 and len(seen) == 32
