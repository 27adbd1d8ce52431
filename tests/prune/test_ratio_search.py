import pytest

from slimvit.models.block_plan import BlockPlan, Units
from slimvit.models.parts.base import Limits
from slimvit.models.plan import SlimPlan
from slimvit.prune.criteria.scores import PartScores, Scores
from slimvit.prune.ratio_search import plan_units
from slimvit.utils.errors import PlanError
from slimvit.utils.ranges import to_ranges


def block_plan(name, heads, kept, stage=0, neurons=0, kept_neurons=()):
    return BlockPlan(name, stage, {"heads": Units(heads, kept), "mlp": Units(neurons, kept_neurons)})


def plan_heads(scores, *, heads=None, head_macs=None, min_heads=1, **more):
    return plan_units(scores, keep=heads, unit_macs=head_macs, limits=Limits(min_heads), **more)


def plan_neurons(scores, plan, ratio, scope="global", group=8):
    return plan_units(scores, part="mlp", ratio=ratio, plan=plan, scope=scope, limits=Limits(group, group))


SCORES = ([5, 1, 4, 3], [9, 8, 7, 6], [2, 10, 11, 12])
"""Cheapest first, anywhere: block 0 head 1, block 2 head 0, block 0 heads 3, 2, 0, block 1 heads 3, 2, 1, 0, ..."""


def part(values):
    order = sorted(range(len(values)), key=lambda i: values[i])
    return PartScores(tuple(order), tuple(float(values[i]) for i in order), tuple(map(float, values)))


def fixed(values=SCORES, stages=None):
    stages = stages or [0] * len(values)
    blocks = [
        block_plan(f"blocks.{i}", len(v), tuple(range(len(v))), s)
        for i, (v, s) in enumerate(zip(values, stages, strict=True))
    ]
    return Scores("magnitude", SlimPlan(tuple(blocks)), {"heads": tuple(map(part, values))})


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
    assert plan_heads(scores, ratio=named, scope=scope, min_heads=0).removed_heads >= 1
    with pytest.raises(PlanError, match="rounds to nothing"):
        plan_heads(scores, ratio=named - 1e-4, scope=scope, min_heads=0)


def test_a_negative_ratio_is_refused():
    for scope in ("uniform", "global"):
        with pytest.raises(PlanError, match="ratio is -1, but must lie between 0 and 1"):
            plan_heads(fixed(), ratio=-1, scope=scope)


def test_a_ratio_too_large():
    with pytest.raises(PlanError, match=r"ratio 0.9 removes 4 of the 4 heads of blocks\.0, but min_heads is 1"):
        plan_heads(fixed(), ratio=0.9, scope="uniform")
    with pytest.raises(
        PlanError, match=r"ratio 0.9 removes 11 of 12 heads, .* at most 9 may go .ratio 0\.750"
    ) as caught:
        plan_heads(fixed(), ratio=0.9)
    named = float(str(caught.value).split("(ratio ")[1].split(")")[0])
    assert plan_heads(fixed(), ratio=named).removed_heads == 9


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
    assert plan_heads(fixed(), heads=0, min_heads=0).kept_heads == 0


def test_one_budget():
    with pytest.raises(PlanError, match="give a budget of heads, and one only"):
        plan_heads(fixed())
    with pytest.raises(PlanError, match="give a budget of heads, and one only"):
        plan_heads(fixed(), ratio=0.5, heads=1)


def test_a_model_that_was_cut_before_keeps_its_ids():
    scores = fixed([[3, 1, 2], [1, 2]])
    plan = SlimPlan(
        (block_plan("blocks.0", 6, (1, 3, 5)), block_plan("blocks.1", 6, (0, 4)), block_plan("blocks.2", 6, ()))
    )
    scores = Scores("magnitude", plan, {"heads": (*scores.of("heads"), part([]))})
    assert kept(plan_heads(scores, ratio=0.4)) == [[1, 5], [4], []]
    assert kept(plan_heads(scores, heads=1)) == [[1], [4], []]
    assert scores.table() == [[None, 3, None, 1, None, 2], [1, None, None, None, 2, None], [None] * 6]


def test_a_model_without_heads():
    scores = Scores("magnitude", SlimPlan((block_plan("blocks.0", 6, ()),)), {"heads": (part([]),)})
    with pytest.raises(PlanError, match="no heads left"):
        plan_heads(scores, ratio=0.5)


# neurons


def neurons(values, heads=1):
    blocks = [
        block_plan(f"blocks.{i}", heads, tuple(range(heads)), 0, len(v), tuple(range(len(v))))
        for i, v in enumerate(values)
    ]
    return Scores(
        "magnitude",
        SlimPlan(tuple(blocks)),
        {"heads": (part([1] * heads),) * len(values), "mlp": tuple(map(part, values))},
    )


def left(plan):
    return [to_ranges(b.kept_neurons) for b in plan.blocks]


def test_the_cheapest_neurons_go_in_groups():
    scores = neurons([[1, 9, 2, 9, 3, 4], [5, 6, 7, 8, 1, 5]])
    assert left(plan_neurons(scores, scores.plan, 2 / 12, group=2)) == ["1,3-5", "0-5"]
    assert left(plan_neurons(scores, scores.plan, 4 / 12, group=2)) == ["1,3-5", "1-3,5"]
    assert left(plan_neurons(scores, scores.plan, 4 / 12, "uniform", 2)) == ["1,3-5", "1-3,5"]
    assert left(plan_neurons(scores, scores.plan, 8 / 12, group=2)) == ["1,3", "2-3"]


def test_a_group_stays_in_every_block():
    scores = neurons([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert left(plan_neurons(scores, scores.plan, 0.5, group=2)) == ["2-3", "2-3"]
    with pytest.raises(
        PlanError, match=r"mlp-ratio 0.8 removes 6 of 8 neurons, but with neuron_group 2 at most 4 may go .ratio 0\.500"
    ):
        plan_neurons(scores, scores.plan, 0.8, group=2)
    with pytest.raises(PlanError, match=r"mlp-ratio 0.1 of 8 neurons, in groups of 2, rounds to nothing"):
        plan_neurons(scores, scores.plan, 0.1, group=2)


def test_heads_and_neurons_together():
    scores = neurons([[1, 2, 3, 4], [5, 6, 7, 8]], heads=2)
    plan = plan_neurons(scores, plan_heads(scores, heads=1), 0.25, group=2)
    assert [len(b.kept_heads) for b in plan.blocks] == [1, 1] and left(plan) == ["2-3", "0-3"]
