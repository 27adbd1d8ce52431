"""The picture of the tokens that the patches of an image were merged into."""

import numpy as np
import pytest
import torch
from PIL import Image

import slimvit
from slimvit.models.registry import plan_of
from slimvit.models.token_groups import token_groups
from slimvit.report.run.token_picture import _mean_colours
from slimvit.utils.errors import DataError, ModelError, StoreError


@pytest.fixture
def merged(vit):
    model = vit(img_size=64)
    plan = plan_of(model)
    return slimvit.prune_model(model, plan.keeping(tokens=[range(3), range(8), range(6)]))  # 5, 0 and 2 are merged


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (80, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_patches_of_one_group_have_the_same_features(merged, images):
    x = images(merged)
    groups = token_groups(merged, x)
    assert groups.shape == (4, 4, 4) and [len(g.unique()) for g in groups] == [9] * 4
    features = merged.forward_features(x)[:, 1:]
    for image, numbers in zip(features, groups.flatten(1), strict=True):
        same = (image[:, None] == image[None]).all(-1)
        assert torch.equal(same, numbers[:, None] == numbers[None])


def test_a_group_has_its_mean_colour():
    image = np.arange(4 * 4 * 3, dtype=float).reshape(4, 4, 3)
    found = _mean_colours(image, np.array([[7, 2], [2, 2]]))
    assert np.allclose(found[:2, :2], image[:2, :2].reshape(-1, 3).mean(0))
    rest = np.concatenate([image[:2, 2:].reshape(-1, 3), image[2:].reshape(-1, 3)])
    assert np.allclose(found[3, 0], rest.mean(0)) and np.allclose(found[0, 3], rest.mean(0))


def test_the_picture(merged, photo, tmp_path):
    out = tmp_path / "tokens.png"
    slimvit.draw_tokens(merged, photo, out)
    with Image.open(out) as picture:
        assert picture.width > picture.height > 300
    with pytest.raises(StoreError, match="exists; name another file, or add --force"):
        slimvit.draw_tokens(merged, photo, out)
    slimvit.draw_tokens(merged, photo, out, force=True)


def test_what_cannot_be_drawn(merged, vit, photo, tmp_path):
    with pytest.raises(ModelError, match="merges no tokens; cut it with --parts tokens, or name a run that was"):
        slimvit.draw_tokens(vit(img_size=64), photo, tmp_path / "a.png")
    with pytest.raises(DataError, match="no such image file"):
        slimvit.draw_tokens(merged, tmp_path / "none.png", tmp_path / "a.png")
    with pytest.raises(StoreError, match=r"must end in \.png"):
        slimvit.draw_tokens(merged, photo, tmp_path / "a.jpg")
    assert not list(tmp_path.glob("a.*"))
