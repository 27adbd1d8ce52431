from itertools import accumulate

import pytest
import torch

from slimvit.errors import PlanError
from slimvit.plan import BlockPlan, SlimPlan
from slimvit.prune.criteria import FixedScores, HeadScores, ResidualScores
from slimvit.prune.search import plan_heads

SCORES = ([5, 1, 4, 3], [9, 8, 7, 6], [2, 10, 11, 12])
"""Cheapest first, anywhere: block 0 head 1, block 2 head 0, block 0 heads 3, 2, 0, block 1 heads 3, 2, 1, 0, ..."""


def fixed(values=SCORES, stages=None):
    stages = stages or [0] * len(values)
    blocks = [
        BlockPlan(f"blocks.{i}", len(v), tuple(range(len(v))), s)
        for i, (v, s) in enumerate(zip(values, stages, strict=True))
    ]
    return HeadScores("magnitude", SlimPlan(tuple(blocks)), tuple(FixedScores(tuple(map(float, v))) for v in values))


def kept(plan):
    return [list(b.kept_heads) for b in plan.blocks]


@pytest.mark.parametrize(("ratio", "gone"), [(0.2, 1), (0.37, 1), (0.4, 2), (0.5, 2), (0.7, 3)])
def test_uniform_removes_the_same_number_everywhere(ratio, gone):
    plan = plan_heads(fixed(), ratio=ratio, scope="uniform")
    assert [len(b.removed_heads) for b in plan.blocks] == [gone] * 3


def test_uniform_takes_the_cheapest_of_each_block():
    assert kept(plan_heads(fixed(), ratio=0.5, scope="uniform")) == [[0, 2], [0, 1], [2, 3]]


def test_global_takes_the_cheapest_anywhere():
    assert kept(plan_heads(fixed(), ratio=3 / 12)) == [[0, 2], [0, 1, 2, 3], [1, 2, 3]]
    assert kept(plan_heads(fixed(), ratio=6 / 12)) == [[0], [0, 1], [1, 2, 3]]


def test_global_weighs_a_head_by_the_macs_it_saves():
    assert kept(plan_heads(fixed(), ratio=1 / 12, head_macs=[1, 1, 1])) == [[0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert kept(plan_heads(fixed(), ratio=1 / 12, head_macs=[1, 9, 1])) == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("min_heads", [1, 2, 3])
def test_min_heads_is_respected(min_heads):
    plan = plan_heads(fixed(), ratio=3 * (4 - min_heads) / 12, min_heads=min_heads)
    assert [len(k) for k in kept(plan)] == [min_heads] * 3
    assert [len(k) for k in kept(plan_heads(fixed(), ratio=4 / 12))] == [1, 4, 3]


def test_min_heads_0_lets_a_block_go():
    assert kept(plan_heads(fixed(), ratio=5 / 12, min_heads=0)) == [[], [0, 1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize(("blocks", "heads"), [(3, 4), (12, 3), (12, 6), (12, 12), (24, 16), (5, 7), (1, 1), (13, 5)])
def test_a_ratio_that_rounds_to_nothing_names_one_that_works(scope, blocks, heads):
    scores = fixed([list(range(heads))] * blocks)
    with pytest.raises(PlanError, match="ratio 1e-05 of .* rounds to nothing; the smallest ratio") as caught:
        plan_heads(scores, ratio=1e-5, scope=scope)
    named = float(str(caught.value).split(" is ")[1].split(",")[0])
    assert plan_heads(scores, ratio=named, scope=scope, min_heads=0).removed >= 1
    with pytest.raises(PlanError, match="rounds to nothing"):
        plan_heads(scores, ratio=named - 1e-4, scope=scope, min_heads=0)


def test_a_negative_ratio_removes_nothing_either():
    for scope in ("uniform", "global"):
        with pytest.raises(PlanError, match="ratio -1 of .* rounds to nothing"):
            plan_heads(fixed(), ratio=-1, scope=scope)


def test_a_ratio_too_large():
    with pytest.raises(PlanError, match=r"ratio 0.9 removes 4 of the 4 heads of blocks\.0, but min_heads is 1"):
        plan_heads(fixed(), ratio=0.9, scope="uniform")
    with pytest.raises(
        PlanError, match=r"ratio 0.9 removes 11 of 12 heads, .* at most 9 may go .ratio 0\.750"
    ) as caught:
        plan_heads(fixed(), ratio=0.9)
    named = float(str(caught.value).split("(ratio ")[1].split(")")[0])
    assert plan_heads(fixed(), ratio=named).removed == 9


def test_heads_kept_in_every_block():
    assert kept(plan_heads(fixed(), heads=2)) == [[0, 2], [0, 1], [2, 3]]
    assert [len(k) for k in kept(plan_heads(fixed([[1, 2], [3, 4, 5, 6]]), heads=3))] == [2, 3]


def test_heads_a_stage():
    scores = fixed([*SCORES, [1, 2]], stages=[0, 0, 1, 1])
    assert [len(k) for k in kept(plan_heads(scores, heads=[3, 1]))] == [3, 3, 1, 1]
    assert [len(k) for k in kept(plan_heads(scores, heads=[1]))] == [1, 1, 1, 1]
    with pytest.raises(PlanError, match="heads 1,2,3 gives 3 numbers, but the model has 2 stages"):
        plan_heads(scores, heads=[1, 2, 3])


def test_heads_that_remove_nothing():
    with pytest.raises(PlanError, match="heads 4 removes nothing: no block has more; the largest has 4 heads"):
        plan_heads(fixed(), heads=4)


def test_heads_below_min_heads():
    with pytest.raises(PlanError, match="heads 0 is below min_heads 1; give a smaller --min-heads"):
        plan_heads(fixed(), heads=0)
    assert plan_heads(fixed(), heads=0, min_heads=0).kept == 0


MACS = [100, 30, 50]


@pytest.mark.parametrize("wanted", range(10, 541, 53))
def test_macs_are_reached_and_not_exceeded_by_more_than_a_head(wanted):
    plan = plan_heads(fixed(), macs_to_save=wanted, head_macs=MACS)
    saved = sum(len(b.removed_heads) * m for b, m in zip(plan.blocks, MACS, strict=True))
    assert wanted <= saved < wanted + max(MACS)


def test_macs_uniform():
    plan = plan_heads(fixed(), macs_to_save=200, head_macs=MACS, scope="uniform")
    assert [len(b.removed_heads) for b in plan.blocks] == [2, 2, 2]
    with pytest.raises(PlanError, match="540 MACs can be saved, 541 are wanted"):
        plan_heads(fixed(), macs_to_save=541, head_macs=MACS, scope="uniform")


def test_macs_out_of_reach():
    with pytest.raises(PlanError, match="540 MACs can be saved, 541 are wanted"):
        plan_heads(fixed(), macs_to_save=541, head_macs=MACS)


def test_one_budget():
    with pytest.raises(PlanError, match="no budget was given"):
        plan_heads(fixed())
    with pytest.raises(PlanError, match="several budgets were given"):
        plan_heads(fixed(), ratio=0.5, heads=1)


def test_a_model_that_was_cut_before_keeps_its_ids():
    scores = fixed([[3, 1, 2], [1, 2]])
    plan = SlimPlan(
        (BlockPlan("blocks.0", 6, (1, 3, 5)), BlockPlan("blocks.1", 6, (0, 4)), BlockPlan("blocks.2", 6, ()))
    )
    scores = HeadScores("magnitude", plan, (*scores.blocks, FixedScores(())))
    assert kept(plan_heads(scores, ratio=0.4)) == [[1, 5], [4], []]
    assert kept(plan_heads(scores, heads=1)) == [[1], [4], []]
    assert scores.table() == [[None, 3, None, 1, None, 2], [1, None, None, None, 2, None], [None] * 6]


def test_a_model_without_heads():
    scores = HeadScores("magnitude", SlimPlan((BlockPlan("blocks.0", 6, ()),)), (FixedScores(()),))
    with pytest.raises(PlanError, match="no heads left"):
        plan_heads(scores, ratio=0.5)


def residual(heads, head_dim=3, outputs=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    k = heads * head_dim
    z = torch.randn(4 * k, k, generator=g, dtype=torch.float64) @ torch.randn(k, k, generator=g, dtype=torch.float64)
    weight = torch.randn(k, outputs, generator=g, dtype=torch.float64)
    gradients = torch.randn(20, outputs, generator=g, dtype=torch.float64)
    return ResidualScores(z.T @ z / len(z), weight, gradients.T @ gradients, head_dim)


def unexplained(scores, kept):
    """trace(F E^T S E) of the best linear stand-in, by constrained least squares: what the kept heads cannot give."""
    index = [h * scores.head_dim + i for h in kept for i in range(scores.head_dim)]
    best = torch.zeros_like(scores.weight)
    if index:
        root = torch.linalg.cholesky(scores.hessian).T  # S = root^T root
        best[index] = torch.linalg.lstsq(root[:, index], root @ scores.weight).solution
    error = scores.weight - best
    return float((error.T @ scores.hessian @ error * scores.metric).sum())


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 2, 3], [1, 3], [2]])
def test_residual_costs_equal_constrained_least_squares(kept):
    scores = residual(4)
    before = unexplained(scores, kept)
    wanted = [unexplained(scores, [k for k in kept if k != h]) - before for h in kept]
    assert scores.removal_costs(kept) == pytest.approx(wanted, rel=1e-6)


def test_residual_costs_add_up_along_a_path():
    scores, path = residual(4), [[0, 1, 2, 3], [0, 1, 3], [1, 3], [1]]
    costs = [scores.removal_costs(k) for k in path]
    gone = [2, 0, 3]
    steps = [c[k.index(h)] for c, k, h in zip(costs, path, gone, strict=False)]
    assert list(accumulate(steps)) == pytest.approx([unexplained(scores, k) for k in path[1:]], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_residual_greedy_equals_brute_force(seed):
    blocks = [residual(4, seed=10 * seed + i) for i in range(3)]
    plan = SlimPlan(tuple(BlockPlan(f"blocks.{i}", 4, (0, 1, 2, 3)) for i in range(3)))
    macs = [3, 1, 2]
    left = [[0, 1, 2, 3] for _ in blocks]
    for count in range(1, 10):
        moves = [
            ((unexplained(s, [k for k in keep if k != h]) - unexplained(s, keep)) / m, b, h)
            for b, (s, keep, m) in enumerate(zip(blocks, left, macs, strict=True))
            for h in keep
            if len(keep) > 1
        ]
        _, block, head = min(moves)
        left[block].remove(head)
        assert kept(plan_heads(HeadScores("residual", plan, tuple(blocks)), ratio=count / 12, head_macs=macs)) == left
