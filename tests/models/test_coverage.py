"""`slimvit models`, and the table in docs/models.md, of which a sample is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from slimvit.models.coverage import Support, coverage_table, support, supported_features
from slimvit.models.registry import FAMILIES

TABLE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if "`" in line[:60]]
ROWS = [row for row in ROWS if len(row) == 8]
CHECKED = ("beit", "eva", "levit", "swin_transformer_v2")
"""timm modules whose rows are looked at: models of each are built, without memory."""


def test_every_supported_module_has_a_row():
    known = {module for family in FAMILIES for module in family.timm_modules}
    assert {row[0] for row in ROWS if row[2] == "yes"} == known


@pytest.mark.parametrize("module", CHECKED)
def test_a_sample_of_the_table_is_true(module):
    rows = [row for row in ROWS if row[0] == module]
    assert rows
    for _, models, *marks, reason in rows:
        with torch.device("meta"):
            model = timm.create_model(models.split("`")[1])
        supported, why = supported_features(model)
        assert [mark == "yes" for mark in marks] == [*supported.values()] and reason == why


def test_the_table_of_some_models(slimvit_):
    printed = slimvit_("models", "beit_base*", "--table").stdout
    rows = support("beit_base*")
    assert printed.strip() == coverage_table(rows)
    assert rows[0].models == tuple(m for m in timm.list_models("beit_base*")) and rows[0].features["dense"]
    assert json.loads(slimvit_("models", "beit_base*", "--table", "--json").stdout)[0]["heads"] is True
    assert "no timm model with attention" in slimvit_("models", "resnet18", "--table", code=1).stderr
    assert "--embedded" in slimvit_("models", "--table", "--embedded", code=2).stderr


def test_what_cannot_be_built_is_not_left_out(monkeypatch):
    def fail(name):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(timm, "create_model", fail)
    none = {"heads": False, "mlp": False, "qk": False, "tokens": False, "dense": False}
    assert support("beit_base_patch16_224") == [
        Support("beit", ("beit_base_patch16_224",), none, "could not be built: RuntimeError")
    ]


def test_what_cannot_be_done_is_listed_too(slimvit_):
    found = json.loads(slimvit_("models", "*_tiny_*_256", "--json").stdout)
    assert {r["model"]: "no dense attention" in r["about"] for r in found}["swinv2_tiny_window8_256"]
    (eva,) = json.loads(slimvit_("models", "eva02_base_patch14_224", "--json").stdout)
    assert eva["about"] == "12 blocks, 144 heads of 64, neurons stay, qk_channels stay, tokens stay"
