import numpy as np
import pytest

from slimvit.measure.latency.ratios import Ratio, median_ratio


def test_what_slows_both_models_of_a_round_does_not_count():
    noise = np.random.default_rng(0).uniform(1, 10, 30)
    found = median_ratio(list(3.0 * noise), list(2.0 * noise))
    assert (found.middle, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    samples = rng.lognormal(np.log(1.2), 0.1, (300, 25))
    found = [median_ratio(list(s), [1.0] * 25, seed=i) for i, s in enumerate(samples)]
    assert 0.90 <= np.mean([r.low <= 1.2 <= r.high for r in found]) <= 0.99
    assert all(r.low <= r.middle <= r.high for r in found)


def test_the_share_of_a_promised_gain():
    share = Ratio(1.1, 1.05, 1.2).of_the_gain(1.2)
    assert (share.middle, share.low, share.high) == pytest.approx((0.5, 0.25, 1.0))
    slower = Ratio(0.9, 0.8, 0.95).of_the_gain(0.95)
    assert slower.low <= slower.middle <= slower.high


def test_the_same_rounds_give_the_same_interval():
    times = list(np.random.default_rng(2).uniform(1, 2, 20))
    assert median_ratio(times, times[::-1]) == median_ratio(times, times[::-1])
