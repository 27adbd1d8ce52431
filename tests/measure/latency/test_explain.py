"""What is said of given figures."""

from dataclasses import replace

import pytest

from slimvit.measure.latency.explain import Evidence, follows, remark
from slimvit.measure.latency.profile import MATRIX
from slimvit.measure.latency.timer import Ratio


def ratio(middle: float) -> Ratio:
    return Ratio(middle, middle - 0.01, middle + 0.01)


FULL = Evidence(promised=1.25, params=1.15, batch=32, latency=ratio(1.24), throughput=ratio(1.22))


def test_nothing_is_said_of_a_model_that_follows_its_macs():
    assert remark(FULL) is None and follows(ratio(1.2001), 1.25) and not follows(ratio(1.19), 1.25)
    assert remark(replace(FULL, few_over_one=1.0, shares={MATRIX: 0.1, "copies": 0.9}, widths=(63,))) is None


def test_amdahl_bounds_what_the_batch_can_gain():
    shares = {MATRIX: 0.6, "copies": 0.2, "norms": 0.18, "other": 0.02}
    said = remark(replace(FULL, throughput=ratio(1.125), shares=shares))
    assert said == (
        "at batch 32 1.12 (1.11-1.14) times as fast where the MACs promise 1.25: 50% of the gain; "
        "matrix products take 60% of the original's time at batch 32 (copies 20%, norms 18%); "
        "if only they shrink, and as much as the MACs, the speed-up is at most 1.14"
    )


def test_memory_that_the_system_hands_out():
    behind = replace(FULL, throughput=ratio(1.1))
    said = remark(replace(behind, system=0.11)) or ""
    assert "the system spends 11% of the original's time at batch 32" in said and "MALLOC_MMAP_MAX_=0" in said
    assert "the system" not in (remark(replace(behind, system=0.01)) or "")
    assert "the system" not in (remark(behind) or "")


def test_a_device_that_waits_for_its_orders_is_told_by_a_few_images():
    behind = replace(FULL, latency=ratio(1.02))
    assert "1.10 times as long for 4 images as for 1" in (remark(replace(behind, few_over_one=1.1)) or "")
    assert "4 images" not in (remark(replace(behind, few_over_one=3.5)) or "")
    assert "4 images" not in (remark(replace(FULL, throughput=ratio(1.0), few_over_one=1.1)) or "")


def test_a_time_that_follows_the_parameters():
    assert "near the ratio of the parameters, 1.15" in (remark(replace(FULL, latency=ratio(1.16))) or "")
    assert "parameters" not in (remark(replace(FULL, latency=ratio(1.05))) or "")
    alike = replace(FULL, latency=ratio(1.18), params=1.23)  # MACs and parameters promise the same
    assert "parameters" not in (remark(alike) or "")


@pytest.mark.parametrize(
    ("widths", "original", "told"),
    [
        ((40, 64, 24), (64, 64, 64), "2 of 3 blocks is no multiple of 16 (24, 40), in the original that of 0"),
        ((32, 64, 96), (64, 64, 64), "2 of 3 blocks is no multiple of 64 (32, 96), in the original that of 0"),
        ((36, 24), (72, 72), None),
        ((64, 128), (192, 192), None),
    ],
)  # fmt: skip
def test_odd_widths_that_the_original_does_not_have(widths, original, told):
    said = remark(replace(FULL, throughput=ratio(1.1), widths=widths, original_widths=original)) or ""
    assert told in said if told else "attn_dim" not in said


def test_a_slower_model_is_called_so():
    said = remark(replace(FULL, promised=0.99, latency=ratio(0.9), throughput=ratio(1.0)))
    assert said == "at batch 1 it is slower than the original: 0.90 (0.89-0.91) times its speed"
    assert remark(replace(FULL, promised=0.99, latency=ratio(0.995))) is None  # within what chance may do


def test_one_batch_is_told_once():
    said = remark(replace(FULL, batch=1, latency=ratio(1.1), throughput=ratio(1.1))) or ""
    assert said.count("times as fast") == 1
