"""The files and the model card of a push to the Hugging Face Hub, without contacting it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm

from slimvit.config.recipe import Recipe
from slimvit.data.preprocessing import preprocessing_of
from slimvit.io import saved_model, slim_file, weight_file
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub.name import FOLDERS, PREFIX, check_repo, hub_name, is_hub_name, is_revision
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import dense_mix
from slimvit.models.registry import model_name, plan_of
from slimvit.report.compare.run_reader import read_run
from slimvit.report.model_card import CardFacts, card
from slimvit.report.record import units_of
from slimvit.utils.errors import ModelError, StoreError
from slimvit.utils.output import UNFINISHED, entries
from slimvit.utils.reading import MOST, Unreadable, open_regular
from slimvit.workflows.run_folder import recipe_of

CARD = "README.md"
TOP = (
    *(weight_file.WEIGHTS, slim_file.DESCRIPTION, "recipe.yaml", "plan.json", "report.json", "report.md"),
    *("history.csv", "timings.json", "head_map.png", "stages.png", "mixes.png", "curves.png"),
)
"""Files of a run folder that are uploaded."""
MODEL = (weight_file.WEIGHTS, slim_file.DESCRIPTION)
"""Files of a further model that are uploaded."""
OURS = frozenset({CARD, *TOP, *(f"{folder}/{file}" for folder in FOLDERS for file in MODEL)})
"""Every path that slimvit may have uploaded; a push deletes those that it does not write again."""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
MAX_WEIGHTS = 2**40
"""Bytes of a weight file, which was checked against its model."""
GENERATIONS = 20
"""Runs that are followed back at most, to find the pretrained model of the first."""


@dataclass(frozen=True)
class PushOptions:
    """Repository and settings of a push."""

    repo: str
    """user/name."""
    private: bool = False
    """Create the repository as a private one; an existing one must be private."""
    license: str | None = None
    """License id of the Hub."""
    base_model: str | None = None
    """user/name; None takes the pretrained model of the recipe."""
    revision: str | None = None
    """Branch; None is the main one."""
    message: str | None = None
    """Commit message."""
    include: tuple[str, ...] = ()
    """Further models to upload, of `slimvit.io.hub.name.FOLDERS`."""
    keep_card: bool = False
    """Keep an existing README.md."""
    force: bool = False
    """Replace an earlier push."""


@dataclass(frozen=True)
class UploadContents:
    """The contents of a push."""

    repo: str
    files: Mapping[str, Path]
    """Path in the repository -> local file."""
    card: str
    """Text of README.md."""
    left_out: Sequence[str]
    """Files and folders of the run folder that are not uploaded."""
    places: Sequence[str]
    """Local paths in the recipe, which is uploaded."""


def upload_contents(run: Path, options: PushOptions) -> UploadContents:
    """Return the contents of a push, without contacting the Hub.

    Raises:
        StoreError: The folder holds no finished run, or lacks a model of `include`.
        ModelError: An option is invalid.
    """
    repo = _check_options(options)
    if is_hub_name(run):
        raise StoreError(f"{run}: lies on the Hub already; give the folder of a run")
    if (run / UNFINISHED).is_dir():
        raise StoreError(
            f"{run}: holds an unfinished run; go on with slimvit run {shlex.quote(str(run))} --resume, and push it then"
        )
    if not slim_file.is_saved(run):
        raise StoreError(
            f"{run}: no folder of a finished run (no {slim_file.DESCRIPTION}); make one with slimvit prune --out"
        )
    model: TimmModule = saved_model.load_folder(run)  # checks the checksum
    files = {file: run / file for file in TOP if (run / file).is_file()}
    for folder in options.include:
        if not slim_file.is_saved(run / folder):
            raise StoreError(f"{run}: holds no {folder}/; leave --include {folder} out")
        saved_model.load_folder(run / folder)
        files |= {f"{folder}/{file}": run / folder / file for file in MODEL}
    for path in files.values():
        _check_uploadable(path, run)
    taken = {path.split("/")[0] for path in files}
    left_out = [f"{name}/" if (run / name).is_dir() else name for name in sorted(entries(run) - taken)]
    recipe = recipe_of(run)
    text = card(_facts(model, run, recipe, options, repo, tuple(files)))
    return UploadContents(repo, files, text, left_out, _places(recipe))


def _check_uploadable(path: Path, run: Path) -> None:
    """Raise `StoreError` for what would carry another file out: a link, a pipe, a device, or a very large text."""
    try:
        with open_regular(path, MAX_WEIGHTS if path.name == saved_model.WEIGHTS else MOST):
            pass
        if path.parent != run and path.parent.is_symlink():
            raise Unreadable("its folder is a link")
    except Unreadable as error:
        raise StoreError(f"{path}: {error}, so it is not pushed; put a file of the run in its place") from None


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
    """user/name without prefix and revision."""
    return base_model.removeprefix(PREFIX).partition("@")[0]


def _facts(
    model: TimmModule, run: Path, recipe: Recipe | None, options: PushOptions, repo: str, files: tuple[str, ...]
) -> CardFacts:
    base = options.base_model
    measurement = read_run(run, str(run), str(run)) if "report.json" in files else None
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
        report=None if measurement is None else measurement.report,
        before=None if measurement is None else measurement.original,
        after=None if measurement is None else measurement.last,
        recipe=None if recipe is None else _changed(recipe),
        trained=recipe is not None and recipe.finetune.epochs > 0,
    )


def _changed(recipe: Recipe) -> str:
    """The keys of a recipe that differ from their defaults, as YAML."""
    import yaml

    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def _base_model(recipe: Recipe | None) -> str | None:
    """The Hub repository of the pretrained model that the first of successive runs started from, if known."""
    for _ in range(GENERATIONS):
        if recipe is None or recipe.model.weights is not None or not recipe.model.pretrained:
            return None
        name = recipe.model.name
        if is_hub_name(name):
            return hub_name(name).repo
        if slim_file.is_saved(name):
            recipe = recipe_of(name)
        elif name in EMBEDDED or not timm.is_model(name):
            return None
        else:
            cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
            return cfg.hf_hub_id if cfg is not None and cfg.has_weights and cfg.hf_hub_id else None
    return None


def _dataset(recipe: Recipe | None) -> str | None:
    """The repository of a data set on the Hub; None for other data."""
    prefix, _, name = ("" if recipe is None else recipe.data.name).partition("/")
    try:
        check_repo(name)
    except ValueError:
        return None
    return name if prefix in ("hfds", "hfids") else None


def _places(recipe: Recipe | None) -> list[str]:
    """Local paths that a recipe names."""
    if recipe is None:
        return []
    teacher = recipe.finetune.teacher
    named = [recipe.model.name, recipe.model.weights, recipe.data.name, recipe.data.root, recipe.prune.plan]
    named += [] if teacher is None else [teacher.name, teacher.weights]
    named += [section.class_order for section in (recipe.model, teacher) if section is not None]
    return [n for n in dict.fromkeys(named) if n is not None and (os.path.isabs(n) or os.path.exists(n))]
