"""Every file that slimvit reads, damaged at random: it is read as before, or refused in one line.

A file with a checksum is read as before or not at all. A text without one may be read as another valid text.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import slimvit
from slimvit.config.recipe import FinetuneSection, Recipe
from slimvit.config.sweep import Sweep, points_of
from slimvit.data.class_order import ordered_names
from slimvit.data.sources import Data
from slimvit.io.saved_model import load_folder, save
from slimvit.io.status import folder_status
from slimvit.io.sweep_folder import read_contents
from slimvit.measure.latency.table import LatencyTable, read_table, write_table
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.models.weights.sets import read_checkpoint
from slimvit.prune.criteria.scores import Scores, fixed, read_scores, write_scores
from slimvit.report.record import Report
from slimvit.report.timing import FILE, Timing, read_timings, write_timings
from slimvit.train.checkpoint import LAST, Checkpoints
from slimvit.train.state import begin
from slimvit.utils.errors import SlimvitError
from slimvit.utils.escaping import MESSAGE, in_message
from slimvit.utils.reading import Unreadable
from slimvit.workflows import cache, resume

EARLIER = Path(__file__).parent / "data_of_earlier_versions"
MUTATIONS = 2 * int(os.environ.get("SLIMVIT_EXAMPLES", "10"))
"""Damaged files of a kind; `make stress` has 2,000."""
VALUES = ["-1", "0", "1e999", "NaN", "1e30", "9" * 5000, "null", "true", '"', '""', "[]", "{}", "[[[[", "\\ud800", "*a"]
TREE = {"model": {"name": "vit_digits"}, "data": {"name": "digits"}, "prune": {"ratio": 0.5}, "finetune": {"lr": 0.1}}


def damaged(whole: bytes, draw: random.Random, text: bool) -> bytes:
    """The content with bytes replaced, cut off, left out or repeated, or a text with one of its values replaced."""
    content, at = bytearray(whole), draw.randrange(len(whole))
    how = draw.choice(["flip", "bytes", "end", "hole", "twice", *["value"] * (4 * text)])
    if how == "flip":
        content[at] ^= 1 << draw.randrange(8)
    elif how == "bytes":
        for _ in range(draw.choice([1, 8, 64])):
            content[draw.randrange(draw.choice([len(content), min(4000, len(content))]))] = draw.randrange(256)
    elif how == "end":
        del content[at:]
    elif how == "hole":
        del content[at : at + draw.choice([1, 10, 1000])]
    elif how == "twice":
        content[at:at] = content[at : at + draw.choice([1, 10, 1000])]
    else:
        words = list(re.finditer(r"[\w.+-]+|\"[^\"]*\"|\[\]", whole.decode()))
        word = draw.choice(words)
        new = draw.choice([*VALUES, draw.choice(words)[0]])
        return (whole.decode()[: word.start()] + new + whole.decode()[word.end() :]).encode()
    return bytes(content)


@pytest.fixture(scope="module")
def network(vit: Any) -> Any:
    model = vit(depth=1, embed_dim=24, num_heads=2, img_size=16)
    return slimvit.prune_model(model, plan_of(model).keeping(heads=[[0]]))


def training(network: Any) -> Any:
    state = begin(network, FinetuneSection(epochs=3), 1e-3, 1.0, 2, "cpu")
    state.model(torch.ones(2, 3, 16, 16)).sum().backward()
    state.optimizer.step()
    return state


def rows(epochs: int) -> list[dict[str, Any]]:
    return [{"epoch": e + 1, "loss": 0.5, "lr": 1e-3, "seconds": 1.0, "top1": None} for e in range(epochs)]


def weights(model: Any) -> list[list[float]]:
    return [tensor.flatten().tolist() for tensor in model.state_dict().values()]


Kind = tuple[Path, Callable[[], Any]]
"""A file, and how it is read."""


def recipe(folder: Path, network: Any) -> Kind:
    (file := folder / "r.yaml").write_text(Recipe.parse(TREE, "test").to_yaml())
    return file, lambda: Recipe.read(file)


def sweep(folder: Path, network: Any) -> Kind:
    points = [{"name": "a", "change": {"prune.ratio": 0.25}}, {"name": "b", "change": {"seed": 3}}]
    (file := folder / "s.yaml").write_text(
        json.dumps({"base": TREE, "points": points, "grid": {"finetune.lr": [1, 2]}})
    )
    return file, lambda: points_of(Sweep.read(file), str(file))


def plan(folder: Path, network: Any) -> Kind:
    plan_of(network).write(file := folder / "plan.json")
    return file, lambda: SlimPlan.read(file)


def description(folder: Path, network: Any) -> Kind:
    save(network, folder / "run")
    return folder / "run" / "slim.json", lambda: load_folder(folder / "run")


def model(folder: Path, network: Any) -> Kind:
    save(network, folder / "run")
    return folder / "run" / "model.safetensors", lambda: weights(load_folder(folder / "run"))


def report(folder: Path, network: Any) -> Kind:
    (file := folder / "report.json").write_bytes((EARLIER / "run" / "report.json").read_bytes())
    (folder / "slim.json").touch()
    return file, lambda: (folder_status(folder), Report.read(file))


def progress(folder: Path, network: Any) -> Kind:
    stages = [stage.model_dump(mode="json") for stage in Report.read(EARLIER / "run" / "report.json").stages]
    tree = {"training": "finetune", "stages": stages, "notes": ["a"], "histories": {"adapt": rows(2)}}
    tree |= {"format_version": 2, "scores": {"heads": [[0.5, None]]}, "adapting": 1.5, "adapted": True}
    (file := folder / "run.json").write_text(json.dumps(tree, indent=1))
    return file, lambda: resume._progress(file)


def last_state(folder: Path, network: Any) -> Kind:
    states, state = Checkpoints(folder, "go on"), training(network)
    state.epoch, state.updates, state.history = 1, 2, rows(1)
    states.save(state.to_dict())

    def read() -> Any:
        content, fresh = states.last(), training(network)
        assert content is not None
        with states.content_errors():
            fresh.restore(content, 3, 2)
        return weights(fresh.model), states.history(), str(fresh.optimizer.state_dict())

    return folder / LAST, read


def points(folder: Path, network: Any) -> Kind:
    (file := folder / "points.json").write_bytes((EARLIER / "sweep" / "points.json").read_bytes())
    return file, lambda: (read_contents(folder), folder_status(folder))


def summed(file: Path, read: Callable[[], Any]) -> Kind:
    cache._sum_file(file).write_text(cache._checksum(file))
    return file, lambda: (cache._check_sum(file), read())


def cached_scores(folder: Path, network: Any) -> Kind:
    plan = plan_of(network)
    write_scores(Scores("taylor", plan, {"heads": (fixed([0.5]),)}), file := folder / "scores.json")
    return summed(file, lambda: read_scores(file, plan))


def cached_outputs(folder: Path, network: Any) -> Kind:
    save_file({"features": torch.ones(8, 4)}, file := folder / "original.safetensors")
    return summed(file, lambda: load_file(file)["features"].tolist())


def earlier_scores(folder: Path, network: Any) -> Kind:
    plan = plan_of(network)
    write_scores(Scores("taylor", plan, {"heads": (fixed([0.5]),)}), file := folder / "scores.json")
    return file, lambda: read_scores(file, plan)


def weight_file(folder: Path, network: Any) -> Kind:
    torch.save({"state_dict": {k: v[:2].clone() for k, v in network.state_dict().items()}}, file := folder / "w.pth")
    return file, lambda: read_checkpoint(file)


def class_file(folder: Path, network: Any) -> Kind:
    (file := folder / "classes.txt").write_text("\n".join(map(str, range(10))))
    data: Any = Data("ten", (), (), tuple(map(str, range(10))))  # type: ignore[arg-type]
    return file, lambda: ordered_names(data, str(file))


def timings(folder: Path, network: Any) -> Kind:
    write_timings(folder, [Timing(device="cpu", precision="fp32", compiled=False, rounds=3, latency_ms=1.5)])
    return folder / FILE, lambda: read_timings(folder)


def latency_table(folder: Path, network: Any) -> Kind:
    table = LatencyTable(measured="now", full=3.0, rest=1.0, curves={"heads": [(0, 0.0), (1, 2.0)]})
    write_table(table, file := folder / "table.json")
    return file, lambda: read_table(file, ["heads"])


EXACT = {model, last_state, cached_scores, cached_outputs}
"""Kinds with a checksum."""
KINDS = [
    recipe, sweep, plan, description, model, report, progress, last_state, points, cached_scores, cached_outputs,
    earlier_scores, weight_file, class_file, timings, latency_table,
]  # fmt: skip
BINARY = {model, last_state, cached_outputs, weight_file}
MAY_READ_ALL = {latency_table}
"""Kinds that are measured again, without a word, where they are damaged."""


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's of the files that it reads
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_read_as_before_or_refused_in_one_line(kind: Any, network: Any, tmp_path: Path) -> None:
    file, read = kind(tmp_path, network)
    whole, before, draw = file.read_bytes(), read(), random.Random(0)
    refused = 0
    for _ in range(MUTATIONS):
        file.write_bytes(damaged(whole, draw, kind not in BINARY))
        try:
            found = read()
        except cache.DAMAGE as error:
            assert isinstance(error, (SlimvitError, Unreadable)) or kind is cached_outputs
            told, refused = in_message(str(error)), refused + 1
            assert told.strip() and len(told) <= MESSAGE
        else:
            assert kind not in EXACT or found == before
    assert refused or kind in MAY_READ_ALL
