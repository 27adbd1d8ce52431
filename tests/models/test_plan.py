import copy
import json
import pickle
import re

import pytest

from slimvit.models.block_plan import BlockPlan, Units
from slimvit.models.plan import SlimPlan
from slimvit.utils.errors import PlanError


def block_plan(name, heads, kept, stage=0, neurons=0, kept_neurons=()):
    return BlockPlan(name, stage, {"heads": Units(heads, kept), "mlp": Units(neurons, kept_neurons)})


PLAN = SlimPlan(
    (block_plan("blocks.0", 3, (0, 2)), block_plan("blocks.1", 3, ()), block_plan("blocks.2", 6, (1, 5), 1)), "some_vit"
)


def data(**changes):
    return PLAN.to_json() | changes


def block(**changes):
    return data(blocks=[PLAN.to_json()["blocks"][0], PLAN.to_json()["blocks"][1] | changes])


def refused(text):
    return pytest.raises(PlanError, match=f"^{re.escape(text)}")


def test_counts():
    assert (PLAN.heads, PLAN.kept_heads, PLAN.removed_heads) == (12, 4, 8)
    assert PLAN.blocks[2].removed_heads == (0, 2, 3, 4)


def test_round_trip_through_json():
    assert SlimPlan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


def test_round_trip_through_a_file(tmp_path):
    PLAN.write(tmp_path / "plan.json")
    assert SlimPlan.read(tmp_path / "plan.json") == PLAN
    assert len((tmp_path / "plan.json").read_text().splitlines()) == 2 + len(PLAN.blocks)  # a block a line


def test_keeping():
    other = PLAN.keeping(heads=[[2, 0], [1], [3]])
    assert [b.kept_heads for b in other.blocks] == [(0, 2), (1,), (3,)]
    assert other.blocks[2].stage == 1 and other.model == "some_vit"
    with refused("the plan names 2 blocks, but the model has 3"):
        PLAN.keeping(heads=[[0], [1]])


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ((0, 3), "blocks.0: the plan keeps head 3, but the block has heads 0-2; edit kept_heads of that block"),
        ((-1,), "blocks.0: the plan keeps head -1, but the block has heads 0-2"),
        ((1, 1), "blocks.0: kept_heads is [1, 1], but head ids must rise and none may repeat"),
        ((2, 0), "blocks.0: kept_heads is [2, 0], but head ids must rise"),
    ],
)
def test_heads_a_block_cannot_keep(kept, told):
    with refused(told):
        block_plan("blocks.0", 3, kept)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([], 'p.json: expected an object with a list "blocks"'),
        ({}, 'p.json: expected an object with a list "blocks"'),
        (data(blocks={}), 'p.json: expected an object with a list "blocks"'),
        (data(format_version=4), "p.json: format_version is 4, this slimvit reads 1, 2 and 3"),
        ({"blocks": []}, "p.json: format_version is None, this slimvit reads 1"),
        (data(blocks=[3]), "p.json: blocks[0]: expected an object, found int"),
        (block(block=None), "p.json: blocks[1].block: expected a block's name, found None"),
        (block(stage="x"), "p.json: blocks[1].stage: expected a whole number of at least 0, found 'x'"),
        (block(stage=None), "p.json: blocks[1].stage: expected a whole number of at least 0, found None"),
        (block(heads=0), "p.json: blocks[1].heads: expected a whole number of at least 1, found 0"),
        (block(heads=True), "p.json: blocks[1].heads: expected a whole number of at least 1, found True"),
        (block(heads="3"), "p.json: blocks[1].heads: expected a whole number of at least 1, found '3'"),
        (block(kept_heads=None), "p.json: blocks[1].kept_heads: expected a list of head ids, found None"),
        (block(kept_heads=[True]), "p.json: blocks[1].kept_heads: expected a list of head ids, found [True]"),
        (block(kept_heads=[1.0]), "p.json: blocks[1].kept_heads: expected a list of head ids, found [1.0]"),
        (block(kept_heads=[-1]), "p.json: blocks[1].kept_heads: expected a list of head ids, found [-1]"),
        (block(kept_heads=[7]), "p.json: blocks.1: the plan keeps head 7, but the block has heads 0-2"),
        (block(kept_heads=[1, 0]), "p.json: blocks.1: kept_heads is [1, 0], but head ids must rise"),
    ],
)
def test_every_defect_of_a_plan_is_named_with_its_place(found, told):
    with refused(told):
        SlimPlan.from_json(found, "p.json")


def test_defects_of_a_plan_file(tmp_path):
    with refused(f"{tmp_path / 'none.json'}: no such plan file; write one with --dry-run --out DIR"):
        SlimPlan.read(tmp_path / "none.json")
    with refused(f"{tmp_path}: not a readable plan: "):
        SlimPlan.read(tmp_path)
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / "bad.json").write_bytes(content)
        with refused(f"{tmp_path / 'bad.json'}: not a readable plan: "):
            SlimPlan.read(tmp_path / "bad.json")


def full(*heads, names=None):
    names = names or [f"blocks.{i}" for i in range(len(heads))]
    return SlimPlan(tuple(block_plan(n, h, tuple(range(h))) for n, h in zip(names, heads, strict=True)))


def test_a_plan_for_the_model_at_hand():
    full(3, 3).keeping(heads=[[0], []]).check_against(full(3, 3))
    full(3, 3).keeping(heads=[[0], []]).check_against(full(3, 3).keeping(heads=[[0, 2], [1]]))


@pytest.mark.parametrize(
    ("plan", "current", "told"),
    [
        (full(3), full(3, 3), "the plan has 1 blocks (blocks.0, ...), but the model has 2 (blocks.0, ...)"),
        (SlimPlan(()), full(3), "the plan has 0 blocks (none, ...), but the model has 1"),
        (full(3, names=["layers.0"]), full(3), "the plan has 1 blocks (layers.0, ...), but the model has 1 (blocks.0"),
        (full(3, 4), full(3, 6), "blocks.1: the plan is for 4 heads, but the model's block has 6"),
        (
            full(3, 3).keeping(heads=[[0], [0, 2]]),
            full(3, 3).keeping(heads=[[0], [1, 2]]),
            "blocks.1: the plan keeps head 0, which was removed earlier; heads still there: [1, 2]",
        ),
    ],
)
def test_a_plan_for_another_model(plan, current, told):
    with refused(told):
        plan.check_against(current)


def test_a_plan_is_printed_as_a_table():
    lines = repr(PLAN).splitlines()
    assert lines == [
        "SlimPlan of some_vit: keeps 4 of 12 heads",
        "  blocks.0  2 of 3 heads",
        "  blocks.1  0 of 3 heads",
        "  blocks.2  2 of 6 heads",
    ]
    assert str(PLAN.blocks[2]) == "BlockPlan(blocks.2: 2 of 6 heads)"


def test_plans_are_hashed_copied_and_pickled_but_not_changed():
    assert copy.deepcopy(PLAN) == pickle.loads(pickle.dumps(PLAN)) == PLAN and len({PLAN, copy.copy(PLAN)}) == 1
    with pytest.raises(TypeError):
        PLAN.blocks[0].units["heads"] = Units(3)
    with pytest.raises(AttributeError, match="SlimPlan has no attribute 'kept'"):
        _ = PLAN.kept


def test_words_that_no_part_has():
    with refused("no part has units called 'neuron' (did you mean neurons?); known: heads, neurons"):
        PLAN.keeping(neuron=[[0], [1], [2]])
    with refused("blocks.0: has no neurons that could be kept or removed"):
        PLAN.keeping(neurons=[[0], [1], [2]])
    with refused("p.json: blocks[1].kept_neurouns: no part has units of that name (did you mean kept_neurons?)"):
        SlimPlan.from_json(block(kept_neurouns="0-7"), "p.json")
