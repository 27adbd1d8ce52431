"""The run folder: the model, the recipe that made it, the report and its pictures."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Mapping
from pathlib import Path

from slimvit.config.recipe import Recipe
from slimvit.io import saved_model
from slimvit.models.insert_dense import mixes_of
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.report.record import Report
from slimvit.report.run import head_map, plots, table
from slimvit.train.state import History
from slimvit.utils.files import copy_files, write_whole
from slimvit.utils.output import LOGS, UNFINISHED, new_folder
from slimvit.utils.progress import log
from slimvit.workflows.state import RunState

ORIGINAL = "original"
"""Subfolder with the uncut network, written if the run trained its classifier."""
BEST = "best"
"""Subfolder with the network after the best epoch of fine-tuning, written if that is not the last."""


def save_run(state: RunState) -> None:
    """Write the run folder from the main process, if the options name one."""
    options, engine = state.context.options, state.context.engine
    if options.out is not None and engine.is_main:
        write_run(state, options.out, options.force)
    engine.wait()


def write_run(state: RunState, out: Path, force: bool) -> None:
    """Write the run folder: models, recipe, plan, report, history and pictures. It appears complete or not at all."""
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
        write_whole(folder / "recipe.yaml", state.recipe.to_yaml())
        plan.write(folder / "plan.json")
        report.write(folder / "report.json")
        write_whole(folder / "report.md", table.report_markdown(report))
        head_map.head_map(plan, state.scores or {}, folder / "head_map.png")
        plots.stage_accuracy(report, folder / "stages.png")
        if mixes := mixes_of(state.model):
            plots.mix_map([b.name for b in plan.blocks], mixes, folder / "mixes.png")
        if any(state.histories.values()):
            write_history(state.histories, folder / "history.csv")
            plots.curves(state.histories, folder / "curves.png")
        if (logs := out / UNFINISHED / LOGS).is_dir():
            copy_logs(logs, folder / LOGS)


def copy_logs(logs: Path, target: Path) -> None:
    """Copy the files of --log-with; links and what is too large stay behind, with a line that names them."""
    if left_out := copy_files(logs, target):
        log(f"{logs}: not copied, since they are links or too large: {', '.join(path.name for path in left_out)}")


def finished(out: Path, recipe: Recipe) -> Report | None:
    """The report of a finished run of this recipe; None for an unfinished run, another recipe or no run folder."""
    if (out / UNFINISHED).exists() or not (out / "report.json").is_file() or recipe_of(out) != recipe:
        return None
    return Report.read(out / "report.json")


def write_plan(plan: SlimPlan, out: Path, force: bool) -> None:
    """Write a folder with plan.json alone, the output of a dry run."""
    with new_folder(out, force) as folder:
        plan.write(folder / "plan.json")


def recipe_of(folder: str | Path) -> Recipe | None:
    """The recipe of a run folder; None for any other folder or name."""
    path = Path(folder) / "recipe.yaml"
    return Recipe.read(path) if path.is_file() else None


def write_history(histories: Mapping[str, History], path: Path) -> None:
    """Write history.csv: one row per epoch of every training."""
    rows = [{"training": name} | row for name, history in histories.items() for row in history]
    fields = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=fields)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
