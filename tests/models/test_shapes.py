"""Models without weights."""

import pytest
import timm
import torch

from slimvit.models.shapes import shapes_alone


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_names_shapes_and_types_are_those_of_the_model(name: str) -> None:
    with shapes_alone():
        found = timm.create_model(name, drop_path_rate=0.1).state_dict()
    wanted = timm.create_model(name, drop_path_rate=0.1).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
    assert {v.device.type for v in found.values()} == {"meta"}


def test_tensors_with_memory_are_filled_as_ever() -> None:
    with shapes_alone():
        rates = torch.zeros(3, device="cpu").add_(1).mul_(2)
        torch.nn.init.constant_(tensor := torch.empty(2, device="cpu"), 4)
    assert rates.tolist() == [2, 2, 2] and tensor.tolist() == [4, 4] and torch.ones(1).device.type == "cpu"
