"""The model card of a pruned model on the Hugging Face Hub: README.md with YAML metadata.

Names in files are untrusted: the YAML library writes the metadata, and names in the text are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slimvit.models.parts.registry import PARTS
from slimvit.report.columns import METRICS, NOT_MEASURED, Column, legend_of, parts_of_stages, size_and_accuracy
from slimvit.report.record import Report, Stage
from slimvit.report.text import markdown_table
from slimvit.utils.escaping import in_code_block, in_markdown

TAGS = ("slimvit", "timm", "pruning", "vision-transformer")
CLASSES = 20
"""Classes that the card names at most."""


@dataclass(frozen=True)
class CardFacts:
    """The content of a card."""

    repo: str
    architecture: str
    """timm name of the original network."""
    num_classes: int
    class_names: Sequence[str]
    input_size: Sequence[int]
    """[C, H, W]."""
    units: dict[str, tuple[int, int]]
    """(Units of the original, units kept) by part."""
    dense: str | None
    revision: str | None = None
    """Branch; None is the main one."""
    folders: Sequence[str] = ()
    """Further models in the repository: `best`, `original`."""
    files: Sequence[str] = ()
    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    """Repository of the data set on the Hub."""
    report: Report | None = None
    before: Stage | None = None
    """The original."""
    after: Stage | None = None
    """The final model."""
    recipe: str | None = None
    """The recipe as YAML."""
    trained: bool = False
    """Whether it was trained after the cut."""


def card(facts: CardFacts) -> str:
    """Return README.md."""
    parts = [_front(facts), f"# {facts.repo.split('/')[1]}", _about(facts), *_figures(facts), *_classes(facts)]
    parts += [*_use(facts), *_made(facts), "## Limits", _bullets(_limits(facts))]
    return "\n\n".join(parts) + "\n"


def metadata(facts: CardFacts) -> dict[str, Any]:
    """Return the metadata that the Hub reads; unknown facts are left out."""
    facts_by_key = {
        "library_name": "slimvit",
        "license": facts.license,
        "base_model": facts.base_model,
        "pipeline_tag": "image-classification" if facts.num_classes else "image-feature-extraction",
        "datasets": None if facts.dataset is None else [facts.dataset],
        "tags": [*TAGS, *(["dense-attention"] if facts.dense else [])],
    }
    return {k: v for k, v in facts_by_key.items() if v is not None}


def _front(facts: CardFacts) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(metadata(facts), sort_keys=False)}---"


def _about(facts: CardFacts) -> str:
    counts = {PARTS[name].units: pair for name, pair in facts.units.items()}
    kept = [f"{left:,} of {total:,} {units}" for units, (total, left) in counts.items() if left < total]
    base = f", cut from [{facts.base_model}](https://huggingface.co/{facts.base_model})" if facts.base_model else ""
    dense = f", with dense attention (one mix a pair of blocks{' and head' * (facts.dense == 'head')})"
    size = "x".join(map(str, facts.input_size))
    return (
        f"`{facts.architecture}`{base}: it keeps {' and '.join(kept or [f'all {units}' for units in counts])}"
        + f"{dense if facts.dense else ''}. It takes images of {size} and "
        + (f"knows {facts.num_classes:,} classes." if facts.num_classes else "gives features, no classes.")
    )


def _figures(facts: CardFacts) -> list[str]:
    """The table of figures before and after, its legend, and links to the files of the run."""
    if facts.report is None or facts.before is None or facts.after is None:
        return []
    columns = _columns(facts.before, facts.after)
    rows = [[c.header, *(c.text(stage.figure(c.key)) for stage in (facts.before, facts.after))] for c in columns]
    legend = legend_of([c for c in columns if c.key not in METRICS], facts.before.stage)
    notes = [in_markdown(line) for line in legend]
    notes += [f"`{NOT_MEASURED}`: not measured"] * any(NOT_MEASURED in row for row in rows)
    agreement = facts.after.figure("agreement")
    notes += [] if agreement is None else [f"{agreement:.1f} % of the images are predicted as before"]
    files = ["Every step: [report.md](report.md)."] if "report.md" in facts.files else []
    files += ["![Units that are left](head_map.png)"] if "head_map.png" in facts.files else []
    table = markdown_table(["", "before", "after"], rows)
    return [f"Measured on {_measured_on(facts.report)}:", table, _bullets(notes), *files]


def _columns(before: Stage, after: Stage) -> list[Column]:
    """The measured columns of size and accuracy, without those that compare with the original."""
    stages = (before, after)
    columns = size_and_accuracy(parts_of_stages(stages))
    absolute = [c for c in columns if c.key not in METRICS or not METRICS[c.key].against_original]
    return [c for c in absolute if any(stage.figure(c.key) is not None for stage in stages)]


def _measured_on(report: Report) -> str:
    images = "images" if report.images is None else f"{report.images:,} images"
    return f"{images} of {in_markdown(_without_path(report.data or 'unknown data'))}"


def _without_path(name: str) -> str:
    """The name of a data set, or the last part of a private path."""
    return name.rstrip("/").rpartition("/")[2] if re.match(r"[/~.]|[A-Za-z]:\\", name) or name.endswith("/") else name


def _classes(facts: CardFacts) -> list[str]:
    if not facts.class_names:
        return []
    names = [in_markdown(name[:80]) for name in facts.class_names[:CLASSES]]
    more = f" and {len(facts.class_names) - CLASSES:,} more" if len(facts.class_names) > CLASSES else ""
    return [f"Classes: {', '.join(names)}{more}."]


def _use(facts: CardFacts) -> list[str]:
    repo, revision = f"hf-hub:{facts.repo}", f"@{facts.revision}" if facts.revision else ""
    name = f"{repo}{revision}"
    code = f'import slimvit\n\nmodel = slimvit.load("{name}")  # a timm model, only narrower'
    parts = ["## Use", f"```python\n{code}\n```"]
    if facts.num_classes:
        parts.append(f"```sh\nslimvit predict {name} IMAGE\nslimvit evaluate {name} --data FOLDER\n```")
    about = {"best": "the network after the best epoch", "original": "the network before the cut"}
    parts += [f"`{repo}/{folder}{revision}` is {about[folder]}." for folder in facts.folders]
    return parts


def _made(facts: CardFacts) -> list[str]:
    if facts.report is None and facts.recipe is None:
        return []
    versions = {} if facts.report is None else facts.report.versions
    made_with = ", ".join(f"{in_markdown(name)} {in_markdown(version)}" for name, version in versions.items())
    parts = ["## How it was made"] + [f"With {made_with}."] * bool(made_with)
    if facts.recipe is not None:
        repeats = "; `slimvit run recipe.yaml --out NEW` repeats it" * ("recipe.yaml" in facts.files)
        parts += [
            f"The recipe (what it leaves out is slimvit's default){repeats}:",
            in_code_block(facts.recipe.rstrip("\n"), "yaml"),
        ]
    return parts


def _limits(facts: CardFacts) -> list[str]:
    limits = ["It needs slimvit to load; `slimvit export` writes it for use without."]
    if facts.report is None:
        limits.append("It was not measured: the folder holds no report.")
    else:
        limits.append(f"It was measured on {_measured_on(facts.report)} only.")
        limits += [] if facts.trained else ["It was not trained after the cut, only repaired in closed form."]
        limits += [in_markdown(note) for note in facts.report.notes]
    if facts.num_classes and not facts.class_names:
        limits.append("Its classes have no names, only numbers.")
    limits += ["Its license was not stated."] * (facts.license is None)
    return limits


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
