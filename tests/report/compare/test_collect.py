"""From run folders and sweep folders to one table."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from slimvit.config.sweep import PublishedFigure
from slimvit.io.sweep_folder import Contents, Entry, point_folder, write_contents
from slimvit.report.compare.collect import collect_runs
from slimvit.report.compare.comparison import compare_runs
from slimvit.report.timing import Timing, write_timings
from slimvit.utils.errors import StoreError

Invoke = Callable[..., Any]
FEW = ("--data", "digits", "--eval-images", 40, "--train-images", 48, "--calibration-images", 32)


@pytest.fixture(scope="module")
def real(slimvit_: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two seeds, and one that goes on from the first."""
    work = tmp_path_factory.mktemp("real")
    for seed in (0, 1):
        words = ("--ratio", 0.5, "--seed", seed, "--finetune-epochs", 1)
        slimvit_("prune", "vit_digits", *FEW, *words, "--out", work / f"half_s{seed}")
    slimvit_("finetune", work / "half_s0", "--epochs", 2, "--out", work / "tuned")
    return work


@pytest.fixture
def sweep(real: Path, tmp_path: Path) -> Path:
    """A sweep with two points done, one failed and two to come."""
    done = [Entry(id=f"half-seed-{s}", name="half") for s in (0, 1)]
    lost = [
        Entry(id="third-seed-0", name="third", error="the disk is full"),
        Entry(id="a", name="a"),
        Entry(id="b", name="b"),
    ]
    for seed, entry in enumerate(done):
        shutil.copytree(real / f"half_s{seed}", point_folder(tmp_path, entry.id))
    (point_folder(tmp_path, "a") / "unfinished").mkdir(parents=True)
    claim = PublishedFigure(point="half", top1=99.0, source="a paper")
    write_contents(tmp_path, Contents(points=[*done, *lost], claims=[claim]))
    return tmp_path


def edited(run: Path, out: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a run folder with another report."""
    shutil.copytree(run, out)
    data = json.loads((out / "report.json").read_text())
    change(data)
    (out / "report.json").write_text(json.dumps(data))
    return out


def test_a_run_folder_is_read_whole(real: Path) -> None:
    (found,) = collect_runs([real / "half_s0"]).measurements
    data = json.loads((real / "half_s0" / "report.json").read_text())
    assert found.report.to_json() == data and found.last.top1 == data["stages"][-1]["top1"]
    assert (found.model, found.epochs, found.input_size) == ("vit_digits", 1, (1, 16, 16))
    assert [row["epoch"] for row in found.history] == [1] and found.history[0]["top1"] == found.last.top1
    assert list(found.pictures) == ["heads kept"] and found.command().startswith("slimvit run ")
    assert Path(found.command().split()[2]).is_file()


def test_real_seeds_are_one_row_under_one_original(real: Path) -> None:
    original, half = compare_runs(collect_runs([real / "half_s0", real / "half_s1"])).rows
    assert (original.kind, original.value("heads"), half.value("heads"), half.seeds) == ("original", 36, 18, [0, 1])
    assert half.name == str(real / "half_s*")


def test_a_run_that_goes_on_shares_the_original(real: Path) -> None:
    rows = compare_runs(collect_runs([real / "half_s0", real / "tuned"])).rows
    assert [(r.kind, r.model) for r in rows] == [("original", "vit_digits")] + [("point", "vit_digits")] * 2
    assert [r.value("epochs") for r in rows[1:]] == [1, 3]


def test_a_folder_given_twice_counts_once(real: Path, sweep: Path) -> None:
    runs = [real / "half_s0", real / ".." / real.name / "half_s0"]
    assert len(collect_runs(runs).measurements) == 1
    found = collect_runs([sweep, point_folder(sweep, "half-seed-0")], [point_folder(sweep, "half-seed-1")]).measurements
    assert [(m.name, m.is_reference) for m in found[1:]] == [("half", False)] and found[0].is_reference


def test_a_sweep_is_its_points(sweep: Path) -> None:
    found = collect_runs([sweep])
    assert [(m.name, m.shown) for m in found.measurements] == [
        (n, f"points/half-seed-{s}") for s, n in enumerate(["half"] * 2)
    ]
    assert found.notes == ("1 point failed: third-seed-0 (the disk is full)", "2 points not measured yet: a, b")
    (told,) = compare_runs(found).claims
    assert (told.point, told.claimed, told.source) == ("half", 99.0, "a paper") and told.measured is not None


def test_written_files_do_not_depend_on_where_a_sweep_lies(
    slimvit_: Invoke, sweep: Path, tmp_path_factory: Any
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "sweep"
    shutil.copytree(sweep, other)
    for place in (sweep, other):
        slimvit_("report", place, "--pick", "heads <= 0.6", "--out", place / "report")
    files = sorted(f.name for f in (sweep / "report").iterdir())
    assert "tradeoff.html" in files
    for name in files:
        assert (sweep / "report" / name).read_bytes() == (other / "report" / name).read_bytes(), name
        assert str(sweep).encode() not in (sweep / "report" / name).read_bytes(), name


def test_several_sweeps_are_told_apart(sweep: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("two") / "other"
    shutil.copytree(sweep, other)
    found = collect_runs([sweep, other])
    assert [m.shown for m in found.measurements][::2] == [f"{s.name}/points/half-seed-0" for s in (sweep, other)]
    assert found.notes[2].startswith("other: 1 point failed")


def test_a_sweep_that_has_only_begun(tmp_path: Path) -> None:
    write_contents(tmp_path, Contents(points=[Entry(id="a", name="a")]))
    with pytest.raises(StoreError, match="none of its 1 point is measured; call the sweep again"):
        collect_runs([tmp_path])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(data="photos/"), "data digits, but .* has photos/"),
        (lambda d: d.update(images=7), "images 40, but .* has 7"),
        (lambda d: d.update(input_size=[1, 32, 32]), "input size 1x16x16, but .* has 1x32x32"),
    ],
)
def test_other_images_are_refused_unless_allowed(real: Path, tmp_path: Path, change: Any, told: str) -> None:
    runs = [real / "half_s0", edited(real / "half_s1", tmp_path / "other", change)]
    with pytest.raises(StoreError, match=f"half_s0 has {told}.*--allow-mixed") as caught:
        collect_runs(runs)
    assert str(tmp_path / "other") in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="--allow-mixed"):
        collect_runs(runs[:1], runs[1:])
    rows = compare_runs(collect_runs(runs, allow_mixed=True)).rows
    assert len({row.data for row in rows}) == 2 and [row.kind for row in rows] == ["original"] * 2 + ["point"] * 2


def test_an_older_report_fits_and_takes_its_input_from_the_model(real: Path, tmp_path: Path) -> None:
    def older(data: dict[str, Any]) -> None:
        data["format_version"] = 1
        del data["input_size"]
        for stage in data["stages"]:
            del stage["macs_by_part"], stage["neurons"]

    old = edited(real / "half_s1", tmp_path / "old", older)
    found = collect_runs([real / "half_s0", old]).measurements
    assert found[1].input_size == (1, 16, 16) and found[1].last.macs_by_part is None
    (old / "slim.json").unlink()
    assert collect_runs([old]).measurements[0].input_size is None
    assert [row.kind for row in compare_runs(collect_runs([real / "half_s0", old])).rows] == ["original", "point"]


def test_timings_lie_beside_the_run(real: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(real / "half_s0", run)
    write_timings(
        run, [Timing(device="a CPU", precision="fp32", compiled=False, latency_ms=8.0, latency_speedup=1.25, rounds=3)]
    )
    original, half = compare_runs(collect_runs([run])).rows
    assert half.value("latency_ms") == 8.0 and original.value("latency_ms") == 10.0


def test_damage_is_told_in_one_line(real: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(real / "half_s0", run)
    for file, text in (
        ("history.csv", "epoch\n1\n"),
        ("timings.json", "{"),
        ("recipe.yaml", "model: 3\n"),
        ("report.json", ""),
    ):
        before = (run / file).read_bytes() if (run / file).exists() else None
        (run / file).write_text(text)
        with pytest.raises(Exception, match=file) as caught:
            collect_runs([run])
        assert caught.type.__mro__[1].__name__ == "SlimvitError" and "\n" not in str(caught.value)
        (run / file).unlink() if before is None else (run / file).write_bytes(before)
    with pytest.raises(StoreError, match="gone/report.json: no such report"):
        collect_runs([tmp_path / "gone"])


def test_without_a_recipe_the_figures_are_still_shown(real: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(real / "half_s0", run)
    (run / "recipe.yaml").unlink()
    (found,) = collect_runs([run]).measurements
    assert (
        found.recipe is None
        and found.epochs is None
        and compare_runs(collect_runs([run])).rows[1].value("top1") is not None
    )


def test_the_history_is_that_of_the_fine_tuning(real: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(real / "half_s0", run)
    rows = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    with (run / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([rows[0] | {"training": "adapt", "top1": "1.0"}, rows[0] | {"top1": ""}])
    (found,) = collect_runs([run]).measurements
    assert len(found.history) == 1 and "top1" not in found.history[0]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["finetune"]["epochs"] == found.epochs
