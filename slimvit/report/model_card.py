"""The model card of a slim model on the Hugging Face Hub: README.md with metadata in front, from what a run measured.

Names come out of files and may hold anything: the metadata is written as YAML by its own library, and what stands in
the text means nothing to Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slimvit.report.columns import COLUMNS, LEGEND, NEURONS, NOT_MEASURED, neurons_gone
from slimvit.report.record import Report, Stage
from slimvit.report.text import in_markdown, markdown_table

TAGS = ("slimvit", "timm", "pruning", "vision-transformer")
SHOWN = ("heads", "neurons", "params", "macs", "top1", "top5")
"""Figures of the table: keys of the columns."""
CLASSES = 20
"""Of more classes, this many are named."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says."""

    repo: str
    architecture: str
    """timm name of the network that was cut."""
    num_classes: int
    class_names: Sequence[str]
    input_size: Sequence[int]
    """[C, H, W]."""
    heads: tuple[int, int]
    """Before and left; so are the neurons."""
    neurons: tuple[int, int]
    dense: str | None
    revision: str | None = None
    """Branch; None is the main one."""
    folders: Sequence[str] = ()
    """Further models in the repository: `best`, `original`."""
    files: Sequence[str] = ()
    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    """On the Hub."""
    report: Report | None = None
    """None for a model that no run measured."""
    before: Stage | None = None
    after: Stage | None = None
    recipe: str | None = None
    """As YAML."""
    trained: bool = False
    """Whether it was trained after the cut."""


def card(facts: CardFacts) -> str:
    """README.md."""
    parts = [_front(facts), f"# {facts.repo.split('/')[1]}", _about(facts), *_figures(facts), *_classes(facts)]
    parts += [*_use(facts), *_made(facts), "## Limits", _bullets(_limits(facts))]
    return "\n\n".join(parts) + "\n"


def metadata(facts: CardFacts) -> dict[str, Any]:
    """What the Hub reads of a card; what is not known is left out."""
    found = {
        "library_name": "slimvit",
        "license": facts.license,
        "base_model": facts.base_model,
        "pipeline_tag": "image-classification" if facts.num_classes else "image-feature-extraction",
        "datasets": None if facts.dataset is None else [facts.dataset],
        "tags": [*TAGS, *(["dense-attention"] if facts.dense else [])],
    }
    return {k: v for k, v in found.items() if v is not None}


def _front(facts: CardFacts) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(metadata(facts), sort_keys=False)}---"


def _about(facts: CardFacts) -> str:
    told = [f"{kept:,} of {total:,} {what}" for what, (total, kept) in _parts(facts) if kept < total]
    base = f", cut from [{facts.base_model}](https://huggingface.co/{facts.base_model})" if facts.base_model else ""
    dense = f", with dense attention (one mix a pair of blocks{' and head' * (facts.dense == 'head')})"
    size = "x".join(map(str, facts.input_size))
    return (
        f"`{facts.architecture}`{base}: "
        + (f"slimvit left {' and '.join(told)} in it" if told else "slimvit left all heads and neurons in it")
        + f"{dense if facts.dense else ''}. It takes images of {size} and "
        + (f"knows {facts.num_classes:,} classes." if facts.num_classes else "gives features, no classes.")
    )


def _parts(facts: CardFacts) -> list[tuple[str, tuple[int, int]]]:
    return [("attention heads", facts.heads), ("MLP neurons", facts.neurons)]


def _figures(facts: CardFacts) -> list[str]:
    if facts.report is None or facts.before is None or facts.after is None:
        return []
    pair = [facts.before, facts.after]
    columns = [c for c in COLUMNS if c.key in SHOWN and (c is not NEURONS or neurons_gone(pair))]
    columns = [c for c in columns if any(getattr(s, c.key) is not None for s in pair)]
    rows = [[c.name, *(c.text(getattr(s, c.key)) for s in pair)] for c in columns]
    said = [LEGEND["FLOPs (G)"]] * any(c.name == "FLOPs (G)" for c in columns)
    said += [f"`{NOT_MEASURED}`: not measured"] * any(NOT_MEASURED in row for row in rows)
    agreement = facts.after.agreement
    said += [] if agreement is None else [f"{agreement:.1f} % of the images are predicted as before"]
    measured = _measured_on(facts.report)
    more = ["Every step: [report.md](report.md)."] if "report.md" in facts.files else []
    more += ["![Heads that are left](head_map.png)"] if "head_map.png" in facts.files else []
    return [f"Measured on {measured}:", markdown_table(["", "before", "after"], rows), _bullets(said), *more]


def _measured_on(report: Report) -> str:
    images = "images" if report.images is None else f"{report.images:,} images"
    return f"{images} of {_plain(_without_path(report.data or 'unknown data'))}"


def _without_path(name: str) -> str:
    """A data set's name; of a folder of whoever measured, the last part alone."""
    return name.rstrip("/").rpartition("/")[2] if re.match(r"[/~.]|[A-Za-z]:\\", name) or name.endswith("/") else name


def _classes(facts: CardFacts) -> list[str]:
    if not facts.class_names:
        return []
    names = [_plain(name[:80]) for name in facts.class_names[:CLASSES]]
    more = f" and {len(facts.class_names) - CLASSES:,} more" if len(facts.class_names) > CLASSES else ""
    return [f"Classes: {', '.join(names)}{more}."]


def _plain(text: str) -> str:
    """On one line, and nothing to Markdown; what a terminal takes for orders, or turns text round, is a question
    mark."""
    return in_markdown("".join(c if c.isprintable() or c.isspace() else "?" for c in text))


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
    made_with = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in versions.items())
    parts = ["## How it was made"] + [f"With {made_with}."] * bool(made_with)
    if facts.recipe is not None:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", facts.recipe)), default=0))
        repeats = "; `slimvit run recipe.yaml --out NEW` repeats it" * ("recipe.yaml" in facts.files)
        parts += [
            f"The recipe (what it leaves out is slimvit's default){repeats}:",
            f"{fence}yaml\n{facts.recipe}{fence}",
        ]
    return parts


def _limits(facts: CardFacts) -> list[str]:
    found = ["It is loaded by slimvit; `slimvit export` writes it for use without."]
    if facts.report is None:
        found.append("Nobody measured it: there is no report beside it.")
    else:
        found.append(f"The figures hold for {_measured_on(facts.report)}; nothing was measured on others.")
        found += [] if facts.trained else ["It was not trained after the cut, only repaired in closed form."]
        found += [_plain(note) for note in facts.report.notes]
    if facts.num_classes and not facts.class_names:
        found.append("Its classes have no names, only numbers.")
    found += ["Its license was not stated."] * (facts.license is None)
    return found


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
