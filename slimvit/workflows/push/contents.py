"""What of a run folder goes to the Hugging Face Hub, and the card beside it. Nobody is asked here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm

from slimvit.config.recipe import Recipe
from slimvit.data.preprocessing import preprocessing_of
from slimvit.io import saved_model
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub.name import FOLDERS, PREFIX, check_repo, hub_name, is_hub_name, is_revision
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import dense_mix
from slimvit.models.registry import model_name, plan_of
from slimvit.report.compare.collect import measured
from slimvit.report.model_card import CardFacts, card
from slimvit.report.record import units_of
from slimvit.utils.errors import ModelError, StoreError
from slimvit.utils.output import UNFINISHED, entries
from slimvit.workflows.run_folder import recipe_of

CARD = "README.md"
TOP = (
    *(saved_model.WEIGHTS, saved_model.DESCRIPTION, "recipe.yaml", "plan.json", "report.json", "report.md"),
    *("history.csv", "timings.json", "head_map.png", "stages.png", "mixes.png", "curves.png"),
)
"""What a run writes, and all that is put on the Hub of it, with the models of further folders where asked."""
MODEL = (saved_model.WEIGHTS, saved_model.DESCRIPTION)
OURS = frozenset({CARD, *TOP, *(f"{folder}/{file}" for folder in FOLDERS for file in MODEL)})
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
GENERATIONS = 20
"""Runs at most that a run is followed through to the model at the beginning."""


@dataclass(frozen=True)
class PushOptions:
    """Where to, and how."""

    repo: str
    """user/name."""
    private: bool = False
    """Where the repository does not exist yet; otherwise it must be so."""
    license: str | None = None
    base_model: str | None = None
    """None takes what the recipes tell."""
    revision: str | None = None
    """Branch; None is the main one."""
    message: str | None = None
    include: tuple[str, ...] = ()
    """Of `slimvit.io.hub.name.FOLDERS`."""
    keep_card: bool = False
    """Leave a README.md that is there as it is."""
    force: bool = False


@dataclass(frozen=True)
class UploadContents:
    """What is to be put on the Hub."""

    repo: str
    files: Mapping[str, Path]
    """Path in the repository -> file."""
    card: str
    left_out: Sequence[str]
    """What else lies in the run folder."""
    places: Sequence[str]
    """Paths of this machine that its recipe names."""


def upload_contents(run: Path, options: PushOptions) -> UploadContents:
    """What a push would put on the Hub; asks nobody. Raises `SlimvitError` for whatever it can know is wrong."""
    repo = _check_options(options)
    if is_hub_name(run):
        raise StoreError(f"{run}: lies on the Hub already; give the folder of a run")
    if (run / UNFINISHED).is_dir():
        raise StoreError(f"{run}: holds an unfinished run; go on with slimvit run {run} --resume, and push it then")
    if not saved_model.is_saved(run):
        raise StoreError(
            f"{run}: no folder of a finished run (no {saved_model.DESCRIPTION}); make one with slimvit prune --out"
        )
    model: TimmModule = saved_model.load_folder(run)  # whole, and as its checksum says
    files = {file: run / file for file in TOP if (run / file).is_file()}
    for folder in options.include:
        if not saved_model.is_saved(run / folder):
            raise StoreError(f"{run}: holds no {folder}/; leave --include {folder} out")
        saved_model.load_folder(run / folder)
        files |= {f"{folder}/{file}": run / folder / file for file in MODEL}
    taken = {path.split("/")[0] for path in files}
    left_out = [f"{name}/" if (run / name).is_dir() else name for name in sorted(entries(run) - taken)]
    recipe = recipe_of(run)
    text = card(_facts(model, run, recipe, options, repo, tuple(files)))
    return UploadContents(repo, files, text, left_out, _places(recipe))


def _check_options(options: PushOptions) -> str:
    repo = options.repo.removeprefix(PREFIX)
    if "@" in repo:
        raise ModelError(f"{options.repo}: name a branch with --revision, not after an @")
    try:
        check_repo(repo)
        if options.base_model is not None:
            check_repo(_repo_of(options.base_model))
    except ValueError as error:
        raise ModelError(f"{error}; a repository on the Hub is named user/name") from None
    if options.license is not None and not LICENSE.fullmatch(options.license):
        raise ModelError(f"--license {options.license}: name it as the Hub does: apache-2.0, mit, cc-by-4.0, other ...")
    if options.revision is not None and not is_revision(options.revision):
        raise ModelError(
            f"--revision {options.revision}: is no branch; letters, digits, '.', '_', '-' and '/' are taken"
        )
    return repo


def _repo_of(base_model: str) -> str:
    """user/name, however it was named."""
    return base_model.removeprefix(PREFIX).partition("@")[0]


def _facts(
    model: TimmModule, run: Path, recipe: Recipe | None, options: PushOptions, repo: str, files: tuple[str, ...]
) -> CardFacts:
    base = options.base_model
    run_ = measured(run, str(run), str(run)) if "report.json" in files else None
    return CardFacts(
        repo=repo,
        architecture=model_name(model),
        num_classes=model.num_classes,
        class_names=getattr(model, "class_names", ()),
        input_size=preprocessing_of(model).input_size,
        units=units_of(plan_of(model)),
        dense=dense_mix(model),
        revision=options.revision,
        folders=options.include,
        files=files,
        license=options.license,
        base_model=_base_model(recipe) if base is None else _repo_of(base),
        dataset=_dataset(recipe),
        report=None if run_ is None else run_.report,
        before=None if run_ is None else run_.original,
        after=None if run_ is None else run_.last,
        recipe=None if recipe is None else _changed(recipe),
        trained=recipe is not None and recipe.finetune.epochs > 0,
    )


def _changed(recipe: Recipe) -> str:
    """What a recipe sets, as YAML."""
    import yaml

    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def _base_model(recipe: Recipe | None) -> str | None:
    """The repository of the pretrained model at the beginning, where the recipes tell which that is."""
    for _ in range(GENERATIONS):
        if recipe is None or recipe.model.weights is not None or not recipe.model.pretrained:
            return None
        name = recipe.model.name
        if is_hub_name(name):
            return hub_name(name).repo
        if saved_model.is_saved(name):
            recipe = recipe_of(name)
        elif name in EMBEDDED or not timm.is_model(name):
            return None
        else:
            cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
            return cfg.hf_hub_id if cfg is not None and cfg.has_weights and cfg.hf_hub_id else None
    return None


def _dataset(recipe: Recipe | None) -> str | None:
    """The data's own repository on the Hub, where they come from one."""
    prefix, _, name = ("" if recipe is None else recipe.data.name).partition("/")
    try:
        check_repo(name)
    except ValueError:
        return None
    return name if prefix in ("hfds", "hfids") else None


def _places(recipe: Recipe | None) -> list[str]:
    """What a recipe names that lies on this machine."""
    if recipe is None:
        return []
    teacher = recipe.finetune.teacher
    named = [recipe.model.name, recipe.model.weights, recipe.data.name, recipe.data.root, recipe.prune.plan]
    named += [] if teacher is None else [teacher.name, teacher.weights]
    return [n for n in dict.fromkeys(named) if n is not None and (os.path.isabs(n) or os.path.exists(n))]
