import io

import pytest

from slimvit.report.run.timing_table import print_timings
from slimvit.report.timing import FILE, Timing, read_timings, write_timings
from slimvit.utils.errors import StoreError

FULL = Timing(
    device="CPU, 2 threads", precision="fp32", compiled=False, latency_ms=2.5, latency_p95_ms=4.0, throughput=812.3,
    batch=16, peak_memory_gib=0.031, latency_speedup=1.18, latency_interval=[1.13, 1.24], throughput_speedup=1.05,
    throughput_interval=[1.01, 1.09], macs_speedup=1.26, remark="at batch 1 it lags", input_size=[3, 32, 32], rounds=30,
    versions={"torch": "2.14"},
)  # fmt: skip


def test_round_trip_and_replacement(tmp_path):
    assert read_timings(tmp_path) == []
    other = FULL.model_copy(update={"precision": "bf16"})
    write_timings(tmp_path, [FULL, other])
    assert read_timings(tmp_path) == [FULL, other]
    newer = FULL.model_copy(update={"latency_ms": 2.0})
    write_timings(tmp_path, [newer])
    assert read_timings(tmp_path) == [other, newer]
    assert [f.name for f in tmp_path.iterdir()] == [FILE]


def test_what_was_not_measured_stays_so(tmp_path):
    bare = Timing(device="CPU", precision="fp32", compiled=True, rounds=20)
    write_timings(tmp_path, [bare])
    assert read_timings(tmp_path) == [bare] and read_timings(tmp_path)[0].peak_memory_gib is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "damaged"),
        ("[]", "no timings of format 1"),
        ('{"format_version": 2, "timings": []}', "no timings of format 1"),
        ('{"format_version": 1}', "damaged"),
        ('{"format_version": 1, "timings": [{"device": "CPU"}]}', "precision"),
        ('{"format_version": 1, "timings": 3}', "damaged"),
        ('{"format_version": 1, "timings": [3]}', "damaged"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, text, told):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(StoreError, match=told) as caught:
        read_timings(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / FILE)) and "\n" not in str(caught.value)
    with pytest.raises(StoreError):
        write_timings(tmp_path, [FULL])
    assert (tmp_path / FILE).read_text() == text


def row(model, timing):
    return {"model": model, "params": 5_700_000, "macs": 1_260_000_000} | timing.model_dump(mode="json")


def test_the_table_is_plain_narrow_and_leaves_out_what_nobody_measured():
    original = FULL.model_copy(update=dict.fromkeys(
        ["latency_speedup", "latency_interval", "throughput_speedup", "throughput_interval", "macs_speedup", "remark"]
    ))  # fmt: skip
    file = io.StringIO()
    print_timings([row("deit_small_patch16_224", original), row("runs/half", FULL)], file)
    text = file.getvalue()
    assert text.isascii() and "\x1b" not in text
    title, *table, said, legend = text.splitlines()
    assert legend == "FLOPs: 1 multiply-add = 1, one image"
    assert title == "CPU, 2 threads, fp32, eager, batch 16, 30 rounds" and said == "runs/half: at batch 1 it lags."
    assert max(map(len, table)) <= 105
    wanted = "runs/half 1.260 5.70 2.50 4.00 812 0.03 1.26 1.18 (1.13-1.24) 1.05 (1.01-1.09)"
    assert " ".join(table[-1].split()) == wanted
    assert table[-2].split()[-3:] == ["-", "-", "-"]
    file = io.StringIO()
    print_timings([row("deit_small_patch16_224", original.model_copy(update={"peak_memory_gib": None}))], file)
    assert "GiB" not in file.getvalue() and "times as fast" not in file.getvalue()
