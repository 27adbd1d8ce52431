"""Scores of token merging, and the search for a schedule."""

import json

import pytest
import torch

from slimvit.config.recipe import Recipe
from slimvit.measure.flops.count import count_macs
from slimvit.models.parts.registry import limits_of
from slimvit.models.registry import plan_of
from slimvit.prune.budget_search import plan_budget, reachable
from slimvit.prune.costs.budget import Target, budget_of
from slimvit.prune.costs.macs import macs_costs
from slimvit.prune.costs.params import params_costs
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import read_scores, write_scores
from slimvit.prune.planner import goal_of, read_plan
from slimvit.prune.refit import TARGETS_OF_REFIT, refit
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import PlanError


@pytest.fixture(scope="module")
def model(vit):
    return vit(img_size=64)


@pytest.fixture(scope="module")
def data(model, images):
    return [(images(model, 6, seed=s), torch.full((6,), -1)) for s in (1, 2)]


@pytest.fixture(scope="module")
def scores(model, data):
    return score_parts(model, data, parts=["heads", "mlp", "tokens"])


def merging(model, merges, **kept):
    plan = plan_of(model)
    left = [range(b.tokens - r) for b, r in zip(plan.blocks, merges, strict=True)]
    return prune_model(model, plan.keeping(tokens=left, **kept))


def merges_in(plan):
    return [len(b.removed_tokens) for b in plan.blocks]


def rise(scores, merges):
    """The estimate of a schedule: what the tokens gone behind each block cost there, less those gone before it."""
    total, gone = 0.0, 0
    for block, r in zip(scores.of("tokens"), merges, strict=True):
        total += sum(block.costs[gone : gone + r])
        gone += r
    return total


@pytest.mark.parametrize(("block", "r"), [(0, 3), (1, 1), (1, 2), (2, 4)])
def test_the_score_is_the_loss_of_the_merged_network(block, r, model, data, scores):
    """Twice the divergence of its predictions."""
    net = merging(model, [r if i == block else 0 for i in range(3)])
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        wanted, found = model(x).log_softmax(-1), net(x).log_softmax(-1)
    divergence = float(2 * (wanted.exp() * (wanted - found)).sum(-1).mean())
    assert sum(scores.of("tokens")[block].costs[:r]) == pytest.approx(divergence, rel=1e-2, abs=1e-9)


def test_without_a_classifier_it_is_the_distance_of_the_features(vit, images):
    model = vit(img_size=64, num_classes=0)
    x = images(model)
    found = score_parts(model, [(x, torch.full((4,), -1))], parts=["tokens"]).of("tokens")[0].costs
    with torch.no_grad():
        distance = (model(x) - merging(model, (3, 0, 0))(x)).square().sum(-1).mean()
    assert sum(found[:3]) == pytest.approx(float(distance), rel=1e-3)


def test_behind_the_last_attention_only_the_class_token_counts(model, scores, vit, images):
    assert sum(scores.of("tokens")[2].costs) == 0 < sum(scores.of("tokens")[1].costs)
    average = vit(img_size=64, global_pool="avg")
    found = score_parts(average, [(images(average), torch.full((4,), -1))], parts=["tokens"])
    assert sum(found.of("tokens")[2].costs) > 0


def test_more_tokens_cost_more_and_a_block_may_merge_half(scores):
    for block in scores.of("tokens"):
        assert len(block.alone) == 8 and len(block.costs) == 15 and min(block.costs) >= 0


def test_a_merged_model_is_scored_again(model, data):
    net = merging(model, (2, 4, 0), heads=[[0, 1], [], [2]])
    found = score_parts(net, data, parts=["tokens"]).of("tokens")
    assert [len(b.alone) for b in found] == [6, 4, 8] and [len(b.costs) for b in found] == [13, 9, 9]


def test_scores_are_written_and_read(scores, data, model, tmp_path):
    for found in (scores, score_parts(merging(model, (7, 4, 0)), data, parts=["tokens"])):
        write_scores(found, tmp_path / "scores.json")
        assert read_scores(tmp_path / "scores.json", found.plan) == found


def test_without_images_every_block_is_alike(model):
    found = score_parts(model, (), "random", parts=["tokens"]).of("tokens")
    assert len({block.costs for block in found}) == 1 and len(found[0].alone) == 8


@pytest.mark.parametrize("target", [0.97, 0.8, 0.6, 0.4])
@pytest.mark.parametrize("parts", [("tokens",), ("heads", "mlp", "tokens")])
def test_the_budget_is_met_and_the_estimate_is_true(target, parts, model, scores):
    total = count_macs(model).total
    costs = macs_costs(model, total)
    least = reachable(plan_of(model), costs, parts, limits_of())
    if least > target * total:
        with pytest.raises(PlanError, match="the lowest reachable cost is"):
            plan_budget(scores, costs, target * total, parts=parts)
        return
    plan = plan_budget(scores, costs, target * total, parts=parts)
    true = count_macs(prune_model(model, plan)).total
    assert costs.total(plan) == true <= target * total and true > (target - 0.1) * total


def test_everything_is_merged_where_nothing_less_will_do(model, scores):
    costs = macs_costs(model, count_macs(model).total)
    least = reachable(plan_of(model), costs, ("tokens",), limits_of())
    plan = plan_budget(scores, costs, least, parts=("tokens",))
    assert merges_in(plan) == [8, 4, 2] and costs.total(plan) == pytest.approx(least)


def test_the_schedule_is_better_than_a_constant_one(model, scores):
    costs = macs_costs(model, count_macs(model).total)
    constant = plan_of(merging(model, (3, 3, 3)))
    plan = plan_budget(scores, costs, costs.total(constant), parts=("tokens",))
    assert merges_in(plan) != [3, 3, 3] and rise(scores, merges_in(plan)) <= rise(scores, (3, 3, 3))


def test_merging_saves_no_parameters(model, scores):
    costs = params_costs(model)
    plan = plan_budget(scores, costs, 0.8 * costs.total(plan_of(model)))
    assert plan.removed_tokens == 0 and plan.removed_neurons > 0
    with pytest.raises(PlanError, match="the lowest reachable cost is"):
        plan_budget(scores, costs, 0.8 * costs.total(plan_of(model)), parts=("tokens",))


def test_a_recipe_for_parameters_says_that_tokens_are_left_alone(model, capsys):
    recipe = Recipe.model_validate(
        {
            "model": {"name": "x"},
            "data": {"name": "digits"},
            "prune": {"target_params": 0.8, "parts": ["mlp", "tokens"]},
        }
    )
    goal = goal_of(recipe, model, model, Target(budget_of("params"), 0.8))
    assert goal.parts == ("mlp",)
    assert goal.remark == "target-params 0.8: merging tokens saves no parameters, so no tokens are merged"
    alone = recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"parts": ["tokens"]})})
    with pytest.raises(PlanError, match="merging tokens saves no parameters; cut other parts: --parts heads"):
        goal_of(alone, model, model, Target(budget_of("params"), 0.8))


def test_a_plan_file_that_merges_too_much_is_refused_before_the_run(model, tmp_path):
    plan = plan_of(merging(model, (2, 0, 0))).to_json()
    plan["blocks"][1]["merged_tokens"] = 8
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match=r"blocks\.1: the plan merges 8 tokens, but at most 7, half of those"):
        read_plan(str(tmp_path / "plan.json"), model)


# --- refit


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "recomputed"])
def test_the_refit_repairs_behind_the_merging(target, cache, model, images):
    x = images(model, 48, seed=3)
    batches = [(x[:24], torch.full((24,), -1)), (x[24:], torch.full((24,), -1))]
    net = merging(model, (4, 2, 0), neurons=[range(300), range(400), range(500)])
    with torch.no_grad():
        before, after = (
            float((m(x) - model(x)).square().mean())
            for m in (net, refit(net, model, batches, target, ridge=0.1, cache=cache))
        )
    assert after < 0.8 * before


@pytest.mark.parametrize("target", ["own", "teacher"])
def test_the_refit_of_a_merged_network_to_itself_changes_nothing(target, model, data):
    net = merging(model, (4, 2, 1))
    with torch.no_grad():
        found = refit(net, net, data, target, ridge=1e6)(data[0][0])
        assert torch.allclose(found, net(data[0][0]), atol=1e-4)
