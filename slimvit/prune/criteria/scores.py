"""Scores in a file, so that several runs can share them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimvit.models.plan import SlimPlan
from slimvit.prune.criteria.registry import PartScores, Scores


def write_scores(scores: Scores, path: Path) -> None:
    """As JSON, which brings numbers back bit for bit."""
    parts = {part: [asdict(s) for s in scores.of(part)] for part in ("heads", "mlp")}
    path.write_text(json.dumps({"criterion": scores.criterion, **parts}))


def read_scores(path: Path, plan: SlimPlan) -> Scores:
    """What :func:`write_scores` wrote, for a model that keeps what ``plan`` does."""
    found = json.loads(path.read_text())
    return Scores(found["criterion"], plan, _parts(found["heads"]), _parts(found["mlp"]))


def _parts(found: list[dict[str, Any]]) -> tuple[PartScores, ...]:
    return tuple(PartScores(**{name: tuple(values) for name, values in block.items()}) for block in found)
