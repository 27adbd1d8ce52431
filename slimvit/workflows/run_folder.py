"""The run folder: the model, the recipe that made it, the report and its pictures."""

from __future__ import annotations

import copy
import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

from slimvit.config.recipe import Recipe
from slimvit.io import saved_model
from slimvit.models.insert_dense import mixes_of
from slimvit.models.parts.registry import everywhere
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.report.record import Report
from slimvit.report.run import head_map, plots, table
from slimvit.train.state import History
from slimvit.utils.output import LOGS, UNFINISHED, new_folder
from slimvit.workflows.state import RunState

ORIGINAL = "original"
"""Subfolder with the uncut network, where its classifier was trained by the run and so exists nowhere else."""
BEST = "best"
"""Subfolder with the network after the best epoch of the fine-tuning, where that was not the last."""


def save_run(state: RunState) -> None:
    """Write the run folder, if the options name one, from the main process."""
    options, engine = state.context.options, state.context.engine
    if options.out is not None and engine.is_main:
        write_run(state, options.out, options.force)
    engine.wait()


def write_run(state: RunState, out: Path, force: bool) -> None:
    """Write everything that a run leaves behind, all at once."""
    report, plan, names = state.report, plan_of(state.model), state.context.data.class_names
    with new_folder(out, force or (out / UNFINISHED).is_dir()) as folder:
        saved_model.write_model(state.model, folder, names)
        if state.best is not None:
            (folder / BEST).mkdir()
            best = copy.deepcopy(state.model)
            best.load_state_dict(state.best)
            saved_model.write_model(best, folder / BEST, names)
        if state.adapted and state.recipe.changes_the_model:
            (folder / ORIGINAL).mkdir()
            saved_model.write_model(state.original, folder / ORIGINAL, names)
        (folder / "recipe.yaml").write_text(state.recipe.to_yaml())
        plan.write(folder / "plan.json")
        report.write(folder / "report.json")
        (folder / "report.md").write_text(table.report_markdown(report))
        scores = {} if state.scores is None else {everywhere()[0]: state.scores}
        head_map.head_map(plan, scores, folder / "head_map.png")
        plots.stage_accuracy(report, folder / "stages.png")
        if mixes := mixes_of(state.model):
            plots.mix_map([b.name for b in plan.blocks], mixes, folder / "mixes.png")
        if any(state.histories.values()):
            write_history(state.histories, folder / "history.csv")
            plots.curves(state.histories, folder / "curves.png")
        if (logs := out / UNFINISHED / LOGS).is_dir():
            shutil.copytree(logs, folder / LOGS)


def finished(out: Path, recipe: Recipe) -> Report | None:
    """The report of a run folder that this recipe made and that nothing is being done to; None for any other."""
    if (out / UNFINISHED).exists() or not (out / "report.json").is_file() or recipe_of(out) != recipe:
        return None
    return Report.read(out / "report.json")


def write_plan(plan: SlimPlan, out: Path, force: bool) -> None:
    """A folder with plan.json alone: what a dry run leaves behind."""
    with new_folder(out, force) as folder:
        plan.write(folder / "plan.json")


def recipe_of(folder: str | Path) -> Recipe | None:
    """The recipe a run folder was made by; None for any other folder or name."""
    path = Path(folder) / "recipe.yaml"
    return Recipe.read(path) if path.is_file() else None


def write_history(histories: Mapping[str, History], path: Path) -> None:
    """A row an epoch of every training."""
    rows = [{"training": name} | row for name, history in histories.items() for row in history]
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        writer.writerows(rows)
