"""The run folder: the model, the recipe that made it, the report and its pictures."""

from __future__ import annotations

import csv
from pathlib import Path

from slimvit import store
from slimvit.dense.insert import mixes_of
from slimvit.folders import new_folder
from slimvit.models.family import plan_of
from slimvit.plan import SlimPlan
from slimvit.recipe import Recipe
from slimvit.report import plots, table
from slimvit.runstate import Run
from slimvit.train.loop import History

ORIGINAL = "original"
"""Subfolder with the uncut network, where its classifier was trained by the run and so exists nowhere else."""


def write(now: Run, out: Path, force: bool) -> None:
    """Everything a run leaves behind, all at once."""
    report, plan, names = now.report, plan_of(now.model), now.data.class_names
    with new_folder(out, force) as folder:
        store.write_model(now.model, folder, names)
        if now.adapted and now.recipe.changes_the_model:
            (folder / ORIGINAL).mkdir()
            store.write_model(now.original, folder / ORIGINAL, names)
        (folder / "recipe.yaml").write_text(now.recipe.to_yaml())
        plan.write(folder / "plan.json")
        report.write(folder / "report.json")
        (folder / "report.md").write_text(table.markdown(report))
        plots.head_map(plan, now.scores.table() if now.scores else None, folder / "head_map.png")
        plots.stage_accuracy(report, folder / "stages.png")
        if mixes := mixes_of(now.model):
            plots.mix_map([b.name for b in plan.blocks], mixes, folder / "mixes.png")
        for name, history in now.histories.items():
            _write_history(history, folder / f"history_{name}.csv")


def write_plan(plan: SlimPlan, out: Path, force: bool) -> None:
    """A folder with plan.json alone: what a dry run leaves behind."""
    with new_folder(out, force) as folder:
        plan.write(folder / "plan.json")


def recipe_of(folder: str | Path) -> Recipe | None:
    """The recipe a run folder was made by; None for any other folder or name."""
    path = Path(folder) / "recipe.yaml"
    return Recipe.read(path) if path.is_file() else None


def _write_history(history: History, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
