"""The growth of a batch, on models whose speed is written down."""

from collections.abc import Callable, Mapping

import pytest

from slimvit.measure.latency import batch_size
from slimvit.measure.latency.batch_size import LARGEST, Growth, OutOfMemory, find_batch_size

Calls = Callable[[int], Mapping[str, Callable[[], float]]]


def models(**seconds: Callable[[int], float]) -> Calls:
    """From seconds a batch to what `fill` takes."""
    return lambda batch: {name: lambda s=s: s(batch) for name, s in seconds.items()}


def test_it_grows_until_no_model_gains():
    full_at_8 = models(large=lambda b: max(b, 2) / 1000, small=lambda b: max(b, 8) / 4000)
    growth = find_batch_size(full_at_8)
    assert growth.best == 8 and list(growth.speeds) == [1, 2, 4, 8, 16, 32]
    assert growth.ended == "32 images per batch gain no model 3%, nor did half as many"
    assert growth.speeds[1]["small"] == pytest.approx(500)


def test_one_batch_that_met_other_work_does_not_end_it():
    growth = find_batch_size(models(a=lambda b: max(b, 16) / 1000 * (9 if b == 4 else 1)))
    assert growth.best == 16


def test_a_batch_that_makes_all_slower_is_not_taken():
    assert find_batch_size(models(a=lambda b: b / 1000 * (1 if b == 1 else 2))).best == 1


def test_memory_ends_it():
    def calls(batch: int) -> dict[str, Callable[[], float]]:
        if batch > 4:
            raise OutOfMemory
        return {"a": lambda: 0.001}

    growth = find_batch_size(calls)
    assert growth.best == 4 and growth.ended == "the device's memory ends before 8 images"


def test_time_and_number_end_it():
    slow = find_batch_size(models(a=lambda b: 0.4 + b / 1e6))
    assert list(slow.speeds)[-1] == LARGEST and "largest batch that is tried" in slow.ended
    slower = find_batch_size(models(a=lambda b: 0.1 + b / 5))
    assert list(slower.speeds) == [1, 2, 4, 8] and "longer than 2 s" in slower.ended


def test_given_batches_are_all_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_size, "SLOWEST", 0.0)
    growth = find_batch_size(models(a=lambda b: b / 1000 + (b == 3)), [8, 3])
    assert list(growth.speeds) == [3, 8] and growth.best == 8 and growth.ended == ""


def test_all_models_count_alike():
    growth = Growth({1: {"a": 100.0, "b": 1.0}, 2: {"a": 80.0, "b": 2.0}})
    assert growth.best == 2
