from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import slimvit
from slimvit.models.base import Branch, State
from slimvit.models.registry import plan_of, steps
from slimvit.train.distill import stream_gap
from slimvit.train.teacher import check_same_streams, run_with_streams
from slimvit.utils.errors import ModelError

Build = Callable[..., Any]


def cut(model: Any, dense: bool = False) -> Any:
    """Without the last head of every second block and all of the last one's."""
    plan = plan_of(model)
    kept = [b.kept_heads[: -1 if i % 2 else None] for i, b in enumerate(plan.blocks)]
    small = slimvit.prune_model(model, plan.keeping(heads=[*kept[:-1], ()]))
    return slimvit.insert_dense_attention(small, "layer", "normal") if dense else small


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("change", [lambda m: m, cut, lambda m: cut(m, dense=True)], ids=["plain", "cut", "dense"])
def test_streams_are_those_of_the_walk(
    request: pytest.FixtureRequest, images: Build, gap: Build, family: str, change: Build
) -> None:
    model = change(request.getfixturevalue(family)())
    pictures = images(model)
    with torch.no_grad():
        output, found = run_with_streams(model, pictures)
        assert torch.equal(output, model(pictures))
        state, wanted = State(pictures), []
        for step in steps(model):
            state = step.apply(state)
            wanted += [state.stream] if isinstance(step, Branch) and not step.attends else []
    assert len(found) == len(wanted) == len(plan_of(model).blocks)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape and gap(mine, theirs) < 1e-5
    assert not any(block._forward_hooks for block in model.modules())


def test_hooks_go_when_the_model_fails(vit: Build) -> None:
    model = vit()
    with pytest.raises(AssertionError):
        run_with_streams(model, torch.zeros(1, 3, 8, 8))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_the_gap_closes_where_the_networks_agree(request: pytest.FixtureRequest, images: Build, family: str) -> None:
    model = request.getfixturevalue(family)()
    pictures = images(model)
    with torch.no_grad():
        theirs, mine = run_with_streams(model, pictures)[1], run_with_streams(cut(model), pictures)[1]
    assert stream_gap(theirs, theirs) == 0 and stream_gap(mine, theirs) > 0.01
    means = [t.flatten(0, -2).mean(0).expand_as(t) for t in theirs]
    assert stream_gap(means, theirs).item() == pytest.approx(1, rel=1e-4)
    large = [(1000 * m, 1000 * t) for m, t in zip(mine, theirs, strict=True)]  # a loud teacher is not a strict one
    assert stream_gap(*map(list, zip(*large, strict=True))).item() == pytest.approx(stream_gap(mine, theirs).item())


def test_the_gap_gives_gradients_to_cut_and_dense_blocks_alike(swin: Build, images: Build) -> None:
    model, small = swin(), cut(swin(), dense=True).train()
    pictures = images(model)
    with torch.no_grad():
        theirs = run_with_streams(model, pictures)[1]
    stream_gap(run_with_streams(small, pictures)[1], theirs).backward()
    for name, p in small.named_parameters():
        reached = not name.startswith(("head", "norm."))
        assert (p.grad is not None) == reached, name


def test_other_blocks_are_refused(vit: Build, swin: Build, images: Build) -> None:
    model = vit()
    picture = images(model, 1)
    check_same_streams(cut(model), model, picture, picture)
    for other in (vit(depth=2), vit(embed_dim=96), swin()):
        with pytest.raises(ModelError, match="^distill_kind features: .* has . blocks ending in a stream of .*; name"):
            check_same_streams(model, other, picture, picture)
