import random

import pytest

from slimvit.config.recipe import PruneSection
from slimvit.models.block_plan import BlockPlan, Units
from slimvit.models.parts.registry import limits_of
from slimvit.models.plan import SlimPlan
from slimvit.prune.budget_search import plan_budget, reachable
from slimvit.prune.costs.base import Costs
from slimvit.prune.criteria.scores import PartScores, Scores
from slimvit.utils.errors import PlanError


def block_plan(name, heads, kept, stage=0, neurons=0, kept_neurons=()):
    return BlockPlan(name, stage, {"heads": Units(heads, kept), "mlp": Units(neurons, kept_neurons)})


HEAD, NEURON, FIXED, REST = 100.0, 2.0, 7.0, 50.0


def part(values):
    order = sorted(range(len(values)), key=lambda i: values[i])
    return PartScores(tuple(order), tuple(float(values[i]) for i in order), tuple(map(float, values)))


def case(seed=0, blocks=4, heads=6, neurons=40):
    draw = random.Random(seed)
    plan = [
        block_plan(f"blocks.{i}", heads, tuple(range(heads)), 0, neurons, tuple(range(neurons))) for i in range(blocks)
    ]
    of_heads = [part([draw.expovariate(1 / 50) for _ in range(heads)]) for _ in range(blocks)]
    of_neurons = [part([draw.expovariate(1) for _ in range(neurons)]) for _ in range(blocks)]
    prices = (lambda n: HEAD * n + FIXED * (n > 0),) * blocks, (lambda n: NEURON * n + FIXED * (n > 0),) * blocks
    scores = Scores("residual", SlimPlan(tuple(plan)), {"heads": tuple(of_heads), "mlp": tuple(of_neurons)})
    return scores, Costs("MACs", REST, dict(zip(("heads", "mlp"), prices, strict=True)))


def cost_of(scores, plan):
    """What the search believes the plan costs the loss."""
    total = 0.0
    for i, block in enumerate(plan.blocks):
        for part_, kept in (("heads", block.kept_heads), ("mlp", block.kept_neurons)):
            found = scores.of(part_)[i]
            assert set(found.order[len(found.order) - len(kept) :]) == set(kept)  # the dearest stay
            total += sum(found.costs[: len(found.order) - len(kept)])
    return total


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("parts", [("heads",), ("mlp",), ("heads", "mlp"), ("heads", "mlp", "branches"), ("branches",)])
@pytest.mark.parametrize("seed", range(4))
def test_the_target_is_met_by_less_than_the_smallest_unit(scope, parts, seed):
    scores, costs = case(seed)
    full, least = costs.total(scores.plan), reachable(scores.plan, costs, parts, limits_of())
    smallest = 8 * NEURON if "mlp" in parts else HEAD if "heads" in parts else 6 * HEAD + FIXED
    for share in (0.03, 0.3, 0.6, 0.9, 1.0):
        target = full - share * (full - least)
        plan = plan_budget(scores, costs, target, parts=parts, scope=scope)
        assert target - smallest < costs.total(plan) <= target + 1e-9
        for block in plan.blocks:
            whole = {0} if "branches" in parts else set()
            assert len(block.kept_neurons) in {*range(8, 41, 8), *whole} and len(block.kept_heads) in {
                *range(1, 7),
                *whole,
            }


def test_nothing_but_the_parts_named_goes():
    scores, costs = case()
    heads = plan_budget(scores, costs, 0.7 * costs.total(scores.plan), parts=("heads",))
    neurons = plan_budget(scores, costs, 0.95 * costs.total(scores.plan), parts=("mlp",))
    assert (
        heads.kept_neurons == 160 and heads.kept_heads < 24 and neurons.kept_heads == 24 and neurons.kept_neurons < 160
    )


def test_branches_alone_go_whole():
    scores, costs = case()
    plan = plan_budget(scores, costs, 0.5 * costs.total(scores.plan), parts=("branches",))
    assert {len(b.kept_heads) for b in plan.blocks} <= {0, 6} and {len(b.kept_neurons) for b in plan.blocks} <= {0, 40}


@pytest.mark.parametrize("seed", range(6))
def test_no_swap_of_one_group_or_head_is_better(seed):
    """Costs that rise along every track make the greedy search optimal but for the last step."""
    scores, costs = case(seed)
    target = 0.55 * costs.total(scores.plan)
    plan = plan_budget(scores, costs, target)
    dearest = max(
        sum(scores.of("mlp")[i].costs[40 - len(b.kept_neurons) :][:8]) for i, b in enumerate(plan.blocks)
    ) + max(
        scores.of("heads")[i].costs[5 - len(b.kept_heads)] for i, b in enumerate(plan.blocks) if len(b.kept_heads) < 6
    )
    best = cost_of(scores, plan)
    for other_seed in range(200):
        draw = random.Random(other_seed)
        noise = [
            PartScores(p.order, tuple(c * draw.uniform(0.2, 5) for c in p.costs), p.alone)
            for p in (*scores.of("heads"), *scores.of("mlp"))
        ]
        other = plan_budget(
            Scores("x", scores.plan, {"heads": tuple(noise[:4]), "mlp": tuple(noise[4:])}), costs, target
        )
        assert cost_of(scores, other) >= best - dearest


def test_uniform_takes_the_same_share_everywhere():
    scores, costs = case()
    plan = plan_budget(scores, costs, 0.5 * costs.total(scores.plan), scope="uniform")
    assert {len(b.kept_heads) for b in plan.blocks} == {3} and {len(b.kept_neurons) for b in plan.blocks} <= {8, 16}


def test_a_branch_that_is_worth_nothing_goes_whole():
    scores, costs = case()
    nothing = PartScores(scores.of("heads")[2].order, (0.0,) * 6, (0.0,) * 6)
    heads = (*scores.of("heads")[:2], nothing, scores.of("heads")[3])
    scores = Scores("residual", scores.plan, {"heads": heads, "mlp": scores.of("mlp")})
    plan = plan_budget(scores, costs, costs.total(scores.plan) - 607, parts=("heads", "mlp", "branches"))
    assert [len(b.kept_heads) for b in plan.blocks] == [6, 6, 0, 6] and plan.kept_neurons == 160


def test_a_price_that_does_not_fall_is_never_paid():
    scores, costs = case()
    flat = Costs("ms", 1.0, {"heads": (lambda n: 5.0 if n > 3 else 2.0,) * 4, "mlp": (lambda n: 1.0,) * 4})
    plan = plan_budget(scores, flat, flat.total(scores.plan) - 4)
    assert sorted(len(b.kept_heads) for b in plan.blocks) == [3, 3, 6, 6] and plan.kept_neurons == 160


def test_what_cannot_be_reached_and_what_is_met_already():
    scores, costs = case()
    least = reachable(scores.plan, costs, ("heads",), limits_of())
    with pytest.raises(PlanError, match=rf"the lowest reachable cost is {least:.6g} MACs, the target is 10"):
        plan_budget(scores, costs, 10, parts=("heads",))
    with pytest.raises(PlanError, match="nothing to cut"):
        plan_budget(scores, costs, 1e9)


def test_a_model_that_was_cut_before_keeps_its_ids():
    scores, costs = case(blocks=1, heads=2, neurons=3)
    plan = SlimPlan((block_plan("blocks.0", 6, (2, 5), 0, 40, (7, 8, 30)),))
    scores = Scores("residual", plan, {"heads": (part([3, 1]),), "mlp": (part([5, 1, 9]),)})
    found = plan_budget(
        scores, costs, costs.total(plan) - 1, parts=("mlp",), limits=limits_of(PruneSection(neuron_group=2))
    )
    assert found.blocks[0].kept_neurons == (7, 30) and found.blocks[0].kept_heads == (2, 5)
