import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimvit.measure.latency.profile import MATRIX, amdahl, operator_kind, system_share, time_shares


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", MATRIX),
        ("aten::mm", MATRIX),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", MATRIX),
        ("aten::mkldnn_convolution", MATRIX),
        ("aten::native_layer_norm", "norms"),
        ("aten::_softmax", "softmax"),
        ("aten::gelu", "activations"),
        ("aten::add_", "arithmetic"),
        ("aten::copy_", "copies"),
        ("aten::view", "other"),
    ],
)
def test_kinds(operator, kind):
    assert operator_kind(operator) == kind


def test_the_shares_are_the_whole_and_know_what_multiplies():
    images = torch.randn(256, 3, 16, 16)
    products = time_shares(nn.Sequential(nn.Flatten(), nn.Linear(768, 2048)), images)
    assert sum(products.values()) == pytest.approx(1) and list(products)[0] == MATRIX
    others = time_shares(lambda x: F.gelu(x).add(1).softmax(-1), images)
    assert others.get(MATRIX, 0) == 0 and {"activations", "arithmetic", "softmax"} <= others.keys()


def test_the_systems_share():
    def busy(x):
        for _ in range(20):
            x = x @ x
        return x

    assert 0 <= system_share(busy, torch.zeros(64, 64)) < 0.5
    assert system_share(lambda _: os.urandom(2**25), torch.zeros(1)) > 0.5  # the kernel's own work


def test_amdahl():
    assert amdahl(1.0, 1.5) == pytest.approx(1.5)
    assert amdahl(0.0, 1.5) == pytest.approx(1.0)
    assert amdahl(0.5, 2.0) == pytest.approx(4 / 3)
