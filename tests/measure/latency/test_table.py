import pytest
import torch

from slimvit.measure.latency.table import curve_of, read_off, rising
from slimvit.models.parts.base import spread_widths


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 3, 2], [1, 2.5, 2.5]),
        ([3, 2, 1], [2, 2, 2]),
        ([1, 4, 3, 2, 9], [1, 3, 3, 3, 9]),
        ([5], [5]),
    ],
)
def test_neighbours_in_the_wrong_order_meet_at_their_mean(times, wanted):
    assert rising(times) == wanted


def test_noise_leaves_the_sum_and_no_fall():
    noisy = torch.linspace(0, 1, 50) + 0.3 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = rising(noisy.tolist())
    assert found == sorted(found) and sum(found) == pytest.approx(noisy.sum().item(), rel=1e-5)


def test_a_curve_begins_with_nothing_and_is_straight_between_its_points():
    curve = curve_of([0, 8, 16], [1.0, 3.0, 7.0])
    assert curve == [(0, 0.0), (8, 2.0), (16, 6.0)]
    price = read_off(curve)
    assert [price(width) for width in (0, 4, 8, 12, 16)] == [0.0, 1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("most", "unit", "points", "wanted"),
    [
        (6, 1, 12, [1, 2, 3, 4, 5, 6]),
        (12, 1, 12, list(range(1, 13))),
        (1, 1, 12, [1]),
        (64, 8, 8, [8, 16, 24, 32, 40, 48, 56, 64]),
        (5, 8, 8, [5]),
        (20, 8, 8, [8, 16, 20]),
    ],
)
def test_every_width_where_there_are_few(most, unit, points, wanted):
    assert spread_widths(most, unit, points) == wanted


@pytest.mark.parametrize(("most", "unit", "points"), [(16, 1, 12), (24, 1, 12), (1536, 8, 8), (170, 8, 8)])
def test_some_widths_from_one_unit_to_all_where_there_are_many(most, unit, points):
    found = spread_widths(most, unit, points)
    assert points <= len(found) <= points + 2 and (found[0], found[-1]) == (unit, most)
    assert all(width % unit == 0 for width in found[:-1])
