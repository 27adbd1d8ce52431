"""Prices in milliseconds, by a clock that goes by the parameters of what it times: no test depends on the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimvit.config.recipe import PruneSection
from slimvit.measure.latency import interleave
from slimvit.measure.latency.table import cache_folder
from slimvit.measure.latency.timer import Ratio
from slimvit.models.insert_dense import insert_dense_attention
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.costs import latency_profile
from slimvit.prune.costs.latency import LATENCY, latency_costs, latency_table
from slimvit.prune.costs.latency_blocks import width_sweeps
from slimvit.prune.costs.latency_check import measured_words
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import PlanError

Invoke = Callable[..., Any]
Build = Callable[..., Any]
FEW = ("--data", "digits", "--eval-images", 40, "--calibration-images", 32)
TOLD = re.compile(
    r"target-latency 0\.6 at batch 2: estimated [\d.e+]+ ms \(0\.\d\d of the original's\), "
    r"measured [\d.e+]+ ms \(0\.\d\d, 95 % interval 0\.\d\d-0\.\d\d\)"
)


def milliseconds(model: Any) -> float:
    """What the clock shows of a model, its waiting aside."""
    return 0.01 * sum(p.numel() for p in model.parameters())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tables; nothing is known yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slimvit" / "latency"


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the clock has timed. Every pass also takes 0.4 s of waiting."""
    found: list[Any] = []

    def clock(call: Any, images: Any) -> float:
        found.append((call, tuple(images.shape)))
        assert not call.training and call(images).isfinite().all()
        return 0.4 + milliseconds(call) / 1000

    for module in (latency_profile, interleave):
        monkeypatch.setattr(module, "timed", clock)
    monkeypatch.setattr(latency_profile, "ROUNDS", (1, 1))
    return found


def first(model: Any, heads: int, neurons: int) -> Any:
    """The plan that keeps the first heads and neurons of every block."""
    plan = plan_of(model)
    return plan.keeping(
        heads=[b.kept_heads[:heads] for b in plan.blocks], neurons=[b.kept_neurons[:neurons] for b in plan.blocks]
    )


@pytest.fixture(params=["vit", "swin", "padded swin", "scaled", "dense", "cut"])
def model(request: pytest.FixtureRequest, vit: Build, swin: Build) -> Any:
    if request.param in ("swin", "padded swin"):
        return swin(img_size=32 if request.param == "swin" else 36, depths=(2, 2))
    if request.param == "scaled":
        return vit("deit3_small_patch16_224", depth=2, qk_norm=True)
    small = vit("deit_tiny_patch16_224")
    if request.param == "dense":
        return insert_dense_attention(small, "head")
    plan = plan_of(small).keeping(heads=[(0, 2), (), (0, 1, 2)], neurons=[range(8, 90), range(40), ()])
    return prune_model(small, plan) if request.param == "cut" else small


def test_rest_and_parts_add_up_to_the_model(model: Any) -> None:
    table = latency_table(model, 2)
    costs = latency_costs(model, table)
    assert costs.unit == "ms" and costs.total(plan_of(model)) == pytest.approx(table.full)
    assert table.full == pytest.approx(400 + milliseconds(model)) and 0 < table.rest < table.full
    assert [price(0) for price in (*costs.of("heads"), *costs.of("mlp"))] == [0.0] * 2 * len(plan_of(model).blocks)


def test_the_prices_are_those_of_the_model_cut_to_any_width(model: Any) -> None:
    costs = latency_costs(model, latency_table(model, 1))
    for heads, neurons in ((1, 8), (2, 24), (1, 37), (0, 30), (2, 0)):
        plan = first(model, heads, neurons)
        slim = prune_model(model, plan)
        mixes = milliseconds(model) - milliseconds(prune_model(model, plan_of(model)))
        assert costs.total(plan) == pytest.approx(400 + milliseconds(slim) + mixes, rel=2e-3)


def test_time_falls_with_the_share_of_tokens(vit: Build) -> None:
    model = vit("vit_tiny_patch16_224", img_size=64, depth=3)  # 16 tokens and the class token
    costs, plan = latency_costs(model, latency_table(model, 1)), plan_of(model)
    heads, mlp = (costs.of(part)[0](len(plan.blocks[0].of(part).kept)) for part in ("heads", "mlp"))
    merging = plan.keeping(tokens=[range(8), range(3), range(8)])  # 5 in the second block
    wanted = (1 + 1 + 12 / 17) * heads + (1 + 2 * 12 / 17) * mlp
    assert costs.total(merging) - costs.rest == pytest.approx(wanted)


def test_prices_rise_whatever_the_noise(vit: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = cycle([0.0, 3.0, -2.0, 5.0, 1.0, -4.0, 2.0])
    clock = latency_profile.timed  # type: ignore[attr-defined]
    monkeypatch.setattr(latency_profile, "timed", lambda *args: clock(*args) + next(noise) / 10)
    model = vit("vit_tiny_patch16_224", depth=1)
    table, view = latency_table(model, 1), attention_blocks(model)[0]
    costs = latency_costs(model, table)
    for price, most in ((costs.of("heads")[0], view.attn.num_heads), (costs.of("mlp")[0], view.mlp.fc2.in_features)):
        found = [price(width) for width in range(most + 1)]
        assert found == sorted(found) and found[0] == 0 < found[-1]
    assert costs.total(plan_of(model)) == pytest.approx(table.full)


def test_every_kind_of_branch_has_one_ladder(vit: Build, swin: Build) -> None:
    assert [s.part for s in width_sweeps(attention_blocks(vit()))] == ["heads", "mlp"]
    steps = width_sweeps(attention_blocks(swin(img_size=64, window_size=4, depths=(4, 2))))
    assert sorted((s.view.stage, s.part) for s in steps) == [
        (0, "heads"),
        (0, "heads"),  # of shifted windows
        (0, "mlp"),
        (1, "heads"),
        (1, "heads"),
        (1, "mlp"),
    ]
    cut = vit()
    cut = prune_model(cut, plan_of(cut).keeping(heads=[(0,), (0, 1), ()], neurons=[range(16), range(8), range(24)]))
    assert [(s.view.name, s.widths) for s in width_sweeps(attention_blocks(cut))] == [
        ("blocks.1", (0, 1, 2)),
        ("blocks.2", (0, 8, 16, 24)),
    ]


def test_blocks_are_timed_at_the_batch_and_stay_as_they_are(swin: Build, timed: list[Any]) -> None:
    model = swin().train()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    latency_table(model, 3)
    assert {shape[0] for _, shape in timed} == {3}
    assert {shape[1:] for _, shape in timed} == {(3, 32, 32), (8, 8, 16), (4, 4, 32)}
    assert all(m.training for m in model.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(p.equal(before[name]) for name, p in model.state_dict().items())


def test_times_are_taken_once_and_then_read(
    vit: Build, cache: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = latency_table(vit(), 1)
    (file,) = cache.iterdir()
    assert re.search(rf"timing attentions and MLPs .* at batch 1 on .*\ntimed in .* s; saved in {file}\n", said(capsys))
    timed.clear()
    assert latency_table(vit(seed=1), 1) == table and timed == []
    assert said(capsys) == f"latency table of attentions and MLPs: measured {table.measured} ({file})\n"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("batch", "changes"),
    [(2, {}), (1, {"depth": 2}), (1, {"num_classes": 6}), (1, {"img_size": 48}), (1, {"qk_norm": True})],
)
def test_whatever_times_depend_on_has_its_own_table(
    vit: Build, cache: Path, batch: int, changes: dict[str, Any]
) -> None:
    latency_table(vit(), 1)
    latency_table(vit(**changes), batch)
    assert len(list(cache.iterdir())) == 2


def test_the_way_of_attention_and_the_dtype_count(vit: Build, cache: Path) -> None:
    latency_table(vit(), 1)
    unfused = vit()
    for block in unfused.blocks:
        block.attn.fused_attn = False
    latency_table(unfused, 1)
    latency_table(vit().double(), 1)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"measured": 1}', "a kind less", "a falling curve", "no number"])
def test_a_damaged_table_is_measured_anew(
    vit: Build, cache: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    table = latency_table(vit(), 1)
    (file,) = cache.iterdir()
    found = json.loads(file.read_text())
    kind = next(iter(found["curves"]))
    if damage == "a kind less":
        del found["curves"][kind]
    elif damage == "a falling curve":
        found["curves"][kind][-1][1] = 0.001
    else:
        found["rest"] = "much"
    file.write_text(json.dumps(found) if " " in damage and "{" not in damage else damage)
    timed.clear()
    assert latency_table(vit(), 1).curves == table.curves and timed
    assert json.loads(file.read_text())["curves"].keys() == table.curves.keys()


def test_a_folder_that_cannot_be_written_is_no_error(
    vit: Build, tmp_path: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    table = latency_table(vit(), 1)
    assert "cannot be written" in said(capsys)
    assert table.curves


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "slimvit" / "latency"
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == tmp_path / ".cache" / "slimvit" / "latency"


def test_what_takes_no_time_has_no_price(vit: Build, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_profile, "timed", lambda *args: 1.0)
    with pytest.raises(PlanError, match=r"^target-latency: heads and MLPs take too little time to be measured on .*"):
        latency_table(vit(), 1)
    assert not cache.exists()


def test_a_batch_without_room_is_told_of(vit: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> float:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(latency_profile, "timed", full)
    with pytest.raises(PlanError, match=r"^latency-batch 512: does not fit into the memory of .*; give a smaller one$"):
        latency_table(vit(), 512)


def prepared(model: Any, before: Any = None, **engine: Any) -> Any:
    engine = {"is_main": True, "broadcast": lambda table: table} | engine
    return LATENCY.prepare(model, PruneSection(target_latency=0.5), SimpleNamespace(**engine), before)  # type: ignore


def test_one_process_measures_for_all(vit: Build, timed: list[Any]) -> None:
    sent: list[Any] = []
    mine = prepared(vit(), broadcast=lambda table: sent.append(table) or table)
    assert sent == [mine.table]
    timed.clear()
    other = prepared(vit(), is_main=False, broadcast=lambda own: mine.table if own is None else None)
    assert other == mine and timed == []


def test_what_was_prepared_is_handed_on_and_not_measured_again(
    vit: Build, tmp_path: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no other way for a table to be known
    first = prepared(vit())
    timed.clear()
    assert prepared(vit(seed=1), first) is first and timed == []
    assert prepared(vit(depth=2), first) is not first and timed != []


@pytest.mark.parametrize(
    ("name", "words"),
    [("vit_digits", ()), ("swin_digits", ("--scope", "uniform")), ("vit_digits", ("--steps", 2, "--dense", "layer"))],
)
def test_a_run_ends_with_the_promise_and_what_came_of_it(
    slimvit_: Invoke, tmp_path: Path, name: str, words: tuple[object, ...]
) -> None:
    goal = ("--target-latency", 0.6, "--latency-batch", 2, "--parts", "heads,mlp,branches")
    result = slimvit_("prune", name, *FEW, *goal, *words, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (note,) = (n for n in report["notes"] if n.startswith("target-latency"))
    assert TOLD.match(note) and "than estimated" not in note and note in result.stderr
    assert ("leaves out dense attention" in note) == ("--dense" in words)
    first, *between, last = report["stages"]
    assert first["latency_ms"] > last["latency_ms"] and {s["latency_ms"] for s in between} == {None}
    assert last["heads"] + last["neurons"] < first["heads"] + first["neurons"]
    assert "latency (ms)" in (tmp_path / "run" / "report.md").read_text()


def test_a_dry_run_shows_what_is_promised(slimvit_: Invoke) -> None:
    words = ("prune", "vit_digits", *FEW, "--criterion", "magnitude", "--dry-run")
    goal = ("--target-latency", 0.7, "--parts", "heads,mlp,branches")
    assert re.search(r"^latency \(ms\) [\d.e+]+ -> [\d.e+]+  \(-3\d\.\d %, ", slimvit_(*words, *goal).stdout, re.M)
    before, after = json.loads(slimvit_(*words, *goal, "--json").stdout)["latency_ms"]
    assert 0 < after <= 0.7 * before
    assert "latency" not in slimvit_(*words, "--ratio", 0.3).stdout


def test_a_target_out_of_reach_is_refused_at_once(slimvit_: Invoke, tmp_path: Path) -> None:
    result = slimvit_("prune", "vit_digits", *FEW, "--target-latency", 0.01, "--out", tmp_path / "run", code=1)
    assert re.search(r"target-latency 0.01: .* alone cannot go below [\d.]+ of the time", result.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("measured", "told"),
    [(0.60, None), (0.65, None), (0.67, "12% slower"), (0.55, None), (0.53, "12% faster")],
)
def test_a_promise_that_was_not_kept_is_told_of_in_words(measured: float, told: str | None) -> None:
    found = measured_words(0.6, 12.345, Ratio(measured, measured - 0.01, measured + 0.01))
    assert found.startswith(f"measured 12.3 ms ({measured:.2f}, 95 % interval ")
    assert ("than estimated" in found) == (told is not None)
    assert told is None or f"the model is {told} than estimated" in found
