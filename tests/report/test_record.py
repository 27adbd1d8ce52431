import json
import subprocess
import sys

import pytest

from slimvit.report.record import Report, Stage
from slimvit.utils.errors import StoreError


def report(**kwargs) -> Report:
    stages = [
        Stage(
            stage="original", heads=36, params=5717416, macs=1258411200, top1=72.2, agreement=100.0, feature_error=0.0
        ),
        Stage(stage="pruned", heads=18, params=4826152, macs=1010000000, top1=40),
    ]
    return Report(**({"model": "deit_tiny_patch16_224", "stages": stages, "versions": {"torch": "2.14"}} | kwargs))


def test_round_trip(tmp_path):
    path = tmp_path / "report.json"
    report(notes=["π"]).write(path)
    assert Report.read(path) == report(notes=["π"])
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["format_version"] == 3
    assert data["stages"][1]["neurons"] is None and data["stages"][1]["top1"] == 40.0


@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_reports_are_read(version):
    data = report().to_json() | {"format_version": version}
    if version < 3:
        for stage in data["stages"]:
            del stage["neurons"]
    assert Report.from_json(data).last.units == {"heads": 18}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["stages"][1].update(top1="high"),
            r"stages\[1\]\.top1: input should be a valid number, found 'high'",
        ),
        (lambda d: d["stages"][0].pop("stage"), r"stages\[0\]\.stage: field required"),
        (lambda d: d["stages"][0].update(acc="x"), r"stages\[0\]\.acc: input should be a valid number, found 'x'"),
        (lambda d: d.update(acc=1), "acc: extra inputs are not permitted, found 1"),
        (lambda d: d["stages"][0].update(loss=float("nan")), r"stages\[0\]\.loss: input should be a finite number"),
        (
            lambda d: d["stages"][0].update(heads=True),
            r"stages\[0\]\.units\.heads: input should be a valid integer, found True",
        ),
        (lambda d: d.update(stages=[]), "stages: list should have at least 1 item"),
        (lambda d: d.update(format_version=4), "format_version is 4, this slimvit reads 1 to 3"),
        (lambda d: d.pop("format_version"), "format_version is None"),
    ],
)
def test_damage_is_named_by_file_and_field(tmp_path, change, message):
    data = report().to_json()
    change(data)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=message) as caught:
        Report.read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not a readable report"), ("[]", "top level: input should be")])
def test_no_report(tmp_path, text, message):
    path = tmp_path / "report.json"
    with pytest.raises(StoreError, match="no such report; give the folder of a finished run"):
        Report.read(path)
    path.write_text(text)
    with pytest.raises(StoreError, match=message):
        Report.read(path)


def test_reading_a_report_needs_no_torch():
    code = (
        "import sys, slimvit.report.record; print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_units_stand_under_the_word_of_their_part():
    data = report().to_json()
    assert data["stages"][0]["heads"] == 36 and "units" not in data["stages"][0]
    data["stages"][0]["neurons"] = 4608
    stage = Report.from_json(data).reference
    assert stage.units == {"heads": 36, "mlp": 4608} and stage.figure("neurons") == 4608


def test_a_figure_that_nobody_registered_here_is_kept():
    data = report().to_json()
    data["stages"][1]["margin"] = 0.25
    assert Report.from_json(data).last.figure("margin") == 0.25 and Report.from_json(data).to_json() == data
