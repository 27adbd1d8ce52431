"""What every process of tests/test_distributed.py runs: a whole run, and what this process made of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from slimvit.config.options import Options  # noqa: E402
from slimvit.config.recipe import Recipe  # noqa: E402
from slimvit.models.registry import plan_of  # noqa: E402
from slimvit.workflows.run import run  # noqa: E402


def main(recipe: Path, out: Path, told: Path) -> None:
    now = run(Recipe.read(recipe), Options(out=out, device="cpu"))
    found = {
        "processes": now.context.engine.processes,
        "scores": now.scores,
        "plan": plan_of(now.model).to_json(),
        "losses": [row["loss"] for row in now.histories["finetune"]],
        "batch": now.histories["finetune"][0].get("batch"),
        "top1": [stage.top1 for stage in now.stages],
        "evaluated": None if now.reference is None else len(now.reference.features),
    }
    now.context.engine.close()
    (told / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
