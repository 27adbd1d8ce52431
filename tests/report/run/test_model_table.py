"""The text of `slimvit inspect`."""

from __future__ import annotations

from typing import Any

import pytest

from slimvit.report.run.model_table import inspection_text
from slimvit.utils.ranges import count_ranges, to_ranges

COST = {"macs": 123_000, "params": 1680}


def block(name: str, **given: Any) -> dict[str, Any]:
    found = {"block": name, "heads": 3, "kept_heads": [0, 1, 2], "neurons": 1536, "kept_neurons": "0-1535"}
    found |= {"qk_channels": 64, "kept_qk_channels": 64, "tokens": 98, "kept_tokens": 98}
    found |= {"params": 10_000, "macs": {"qkv": 10**6, "mlp": 2 * 10**6}, "unit_costs": {"heads": COST, "mlp": COST}}
    return found | given


def text(*blocks: dict[str, Any], neurons: tuple[int, int] = (4608, 4608), **given: Any) -> str:
    found = {
        "model": "tiny",
        "num_classes": 5,
        "heads": [9, 9],
        "neurons": neurons,
        "qk_channels": [192, 192],
        "tokens": [294, 294],
        "dense": None,
        "mixes": 0,
    }
    found |= {"params": 10**6, "params_by_part": {"mlp": 500}, "macs": 4 * 10**6, "macs_by_part": {"mlp": 10**6}}
    return inspection_text(found | {"note": None, "unit_steps": {"heads": 1, "mlp": 8}, "blocks": blocks} | given)


def line(shown: str, start: str) -> str:
    return next(words for words in shown.splitlines() if words.startswith(start))


def test_the_title_speaks_of_neurons_where_some_are_gone() -> None:
    assert "neurons" not in text(block("b.0")).splitlines()[0]
    assert "9 of 9 heads, 1,024 of 4,608 neurons, 1.00 M params" in text(block("b.0"), neurons=(4608, 1024))
    assert text(block("b.0"), note="counters disagree").startswith("note: counters disagree\ntiny: ")


def test_every_block_says_what_it_keeps() -> None:
    shown = text(
        block("b.0"),
        block("b.1", kept_heads=[0, 2], kept_neurons="0-7,9,16-1031", kept_qk_channels=40, kept_tokens=82),
        block("b.2", kept_heads=[], kept_neurons="", kept_qk_channels=0, unit_costs={"heads": None, "mlp": None}),
        block("b.3", neurons=0, kept_neurons="", tokens=0, kept_tokens=0),
    )
    assert "qk_channels kept  tokens merged" in shown
    kept = [" ".join(line(shown, f"b.{i} ").split()[1:-3]) for i in range(4)]
    assert kept == [
        "all 3 all 1,536 all 64 0",
        "0,2 of 3 1,025 of 1,536 40 of 64 16",
        "none left none left none left 0",
        "all 3 - all 64 -",
    ]


def test_neighbours_that_cost_the_same_share_a_line() -> None:
    costs = [COST, COST, COST | {"macs": 5000}, None]
    blocks = [block(f"s.{i // 3}.b.{i}", unit_costs={"heads": cost, "mlp": COST}) for i, cost in enumerate(costs)]
    lines = text(*blocks).split("what goes together costs")[1].splitlines()[1:]
    assert [words.split() for words in lines] == [
        ["s.0.b.0-1", "0.123", "1,680", "0.123", "1,680"],
        ["s.0.b.2", "0.005", "1,680", "0.123", "1,680"],
        ["s.1.b.3", "-", "-", "0.123", "1,680"],
    ]


def test_how_much_the_parts_matter() -> None:
    matters = {"heads": {"all": 0.5, "half": 0.0123}, "mlp": None}
    shown = text(
        block("b.0", matters=matters, unit_scores={"heads": [0.25, None, 1e-5]}),
        scored={"criterion": "residual", "images": 2560},
    )
    assert "by residual on 2,560 images" in shown
    assert shown.splitlines()[-1].split() == ["b.0", "0.5", "0.0123", "-", "-", "0.25", "-", "1e-05"]


@pytest.mark.parametrize("ids", [[], [3], [0, 1, 2], [1, 3, 4, 5, 9], [10, 11, 12, 20]])
def test_ranges_are_counted_without_being_written_out(ids: list[int]) -> None:
    assert count_ranges(to_ranges(ids)) == len(ids)
