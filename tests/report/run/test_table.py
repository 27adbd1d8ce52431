import io

import pandas as pd
import pytest

from slimvit.report.record import Report, Stage
from slimvit.report.run.table import frame, print_table, report_markdown


def stages(**last) -> list[Stage]:
    first = {"heads": 72, "params": 22050664, "macs": 4608338304, "top1": 79.84, "top5": 95.0, "agreement": 100.0}
    pruned = first | {"stage": "pruned", "heads": 36, "top1": 60.24, "agreement": 63.1, "feature_error": 0.8123}
    return [Stage(stage="original", seconds=34.1, feature_error=0.0, **first), Stage(**(pruned | last))]


def report(**kwargs) -> Report:
    settings = {"model": "deit_small_patch16_224", "data": "imagenet/", "images": 50000, "stages": stages()}
    return Report(**(settings | kwargs))


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_frame_has_a_row_a_stage_and_numbers():
    table = frame(report())
    assert list(table.index) == ["original", "pruned"]
    assert table.loc["pruned", "heads"] == 36 and table.loc["original", "FLOPs (G)"] == 4.608338304
    assert round(table.loc["pruned", "change"], 6) == -19.6 and table.loc["original", "change"] == 0
    assert pd.isna(table.loc["pruned", "time (s)"])


def test_markdown_says_what_was_run_and_what_the_columns_mean():
    text = report_markdown(report(notes=["the MAC counters disagree"], ratio_asked=0.5, ratio_reached=0.5, seed=3))
    assert text.startswith("# deit_small_patch16_224: 72 -> 36 heads\n\n> **Note:** the MAC counters disagree\n")
    assert "- data: imagenet/\n- images evaluated: 50000\n- heads to remove: 50.0 %\n" in text and "- seed: 3" in text
    header, _, original, pruned = rows(text)
    assert header[:5] == ["stage", "heads", "params (M)", "FLOPs (G)", "top-1"]
    assert dict(zip(header, pruned, strict=True)) == {
        "stage": "pruned",
        "heads": "36",
        "params (M)": "22.05",
        "FLOPs (G)": "4.608",
        "top-1": "60.2",
        "top-5": "95.0",
        "agreement": "63.1",
        "feature error": "0.812",
        "change": "-19.6",
        "time (s)": "-",
    }
    assert original[-2:] == ["+0.0", "34.1"]
    assert "1 multiply-add = 1" in text and "`-`: not measured" in text


def test_what_nobody_measured_has_no_column_and_no_legend():
    measured = [Stage(stage="original", heads=6, feature_error=0.0), Stage(stage="pruned", heads=3, feature_error=0.5)]
    text = report_markdown(report(stages=measured))
    assert rows(text)[0] == ["stage", "heads", "feature error"]
    assert "top-1" not in text and "multiply-add" not in text and "not measured" not in text


def test_latency_is_in_the_report_when_measured():
    text = report_markdown(report(stages=stages(latency_ms=12.345, throughput=81.0)))
    assert rows(text)[0][-3:-1] == ["latency (ms)", "images/s"] and rows(text)[2][-3] == "-"


def test_terminal_table_fits_80_columns_in_ascii():
    out = io.StringIO()
    print_table(report(stages=stages(seconds=12345.6, macs=17_580_000_000, params=86_570_000)), out)
    text = out.getvalue()
    assert text.isascii() and max(map(len, text.splitlines())) <= 80
    for figure in ("36", "86.57", "17.580", "60.2", "95.0", "63.1", "0.812", "-19.6", "12345.6", "pruned"):
        assert figure in text.splitlines()[-1].split()


def test_terminal_table_is_never_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    print_table(report(), out)
    assert len({len(line.split()) for line in out.getvalue().splitlines()[-2:]}) == 1
    assert "0.812" in out.getvalue()


def test_without_top1_the_features_are_all_there_is_to_go_by():
    measured = [
        Stage(stage="original", heads=12, feature_error=0.0, feature_cosine=1.0),
        Stage(stage="pruned", heads=6, feature_error=0.25, feature_cosine=0.9),
    ]
    header, _, _, pruned = rows(report_markdown(report(stages=measured)))
    assert "top-1" not in header and "change" not in header
    assert dict(zip(header, pruned, strict=True))["feature cosine"] == "0.9000"
    assert "feature cosine" not in rows(report_markdown(report(stages=stages(feature_cosine=0.9))))[0]


def narrowed(before: int | None = 18432, after: int | None = 9000) -> Report:
    first, last = stages()
    counts = ({} if n is None else {"mlp": n} for n in (before, after))
    return report(
        stages=[s.model_copy(update={"units": s.units | n}) for s, n in zip((first, last), counts, strict=True)]
    )


def test_neurons_are_told_where_some_are_gone():
    text = report_markdown(narrowed())
    assert text.startswith("# deit_small_patch16_224: 72 -> 36 heads, 18,432 -> 9,000 neurons\n")
    assert "- neurons removed: 51.2 %\n" in text
    header, _, original, pruned = rows(text)
    assert (header[2], original[2], pruned[2]) == ("neurons", "18,432", "9,000")


@pytest.mark.parametrize("neurons", [(18432, 18432), (None, None), (None, 9000), (0, 0)])
def test_where_none_is_gone_nothing_is_said_of_neurons(neurons):
    assert report_markdown(narrowed(*neurons)) == report_markdown(report())


def test_no_neuron_left_is_a_figure():
    assert [row[2] for row in rows(report_markdown(narrowed(18432, 0)))[2:]] == ["18,432", "0"]


def test_the_terminal_table_has_room_for_neurons():
    out = io.StringIO()
    print_table(narrowed(), out)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "neurons" in text and "18,432" in text
    assert "top-1" in text and "top-5" not in text
