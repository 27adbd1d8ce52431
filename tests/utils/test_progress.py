"""Progress without a terminal: one line every few seconds, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from slimvit.utils.progress import EVERY, progress_lines, track


def lines(capsys: pytest.CaptureFixture[str], items: Iterable[int], total: int | None, step: float) -> list[str]:
    seconds = iter(range(10_000))
    kept = list(progress_lines(items, "scoring heads", total, "batches", lambda: step * next(seconds)))
    assert kept == list(items)
    return capsys.readouterr().err.splitlines()


def test_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, range(10), 10, EVERY / 3)
    assert [line.split(",")[0] for line in found] == [f"scoring heads: {done} of 10 batches" for done in (2, 5, 8)]


def test_the_time_left_is_that_of_the_items_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, range(4), 4, 16.0)[1] == "scoring heads: 2 of 4 batches, 48 s left"


def test_without_a_total_nothing_is_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, range(2), None, 20.0) == ["scoring heads: 1 batches"]


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, range(100), 100, EVERY / 200) == []


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimvit.utils.progress.EVERY", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert list(track([1, 2], "x")) == [1, 2] and capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert list(track([1, 2], "x")) == [1, 2]
    assert capsys.readouterr().err.startswith("x: 1 of 2 batches, ")
