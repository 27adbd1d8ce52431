import math
import weakref

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from slimvit.measure.accuracy import AT_ONCE, Accuracy, Outputs, compare, outputs_of
from slimvit.utils.errors import DataError, ModelError

SETTINGS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}


def model(kind=VisionTransformer, **kwargs) -> VisionTransformer:
    torch.manual_seed(0)
    return kind(**(SETTINGS | kwargs))


def loader(n=8, batch=3, labels=None):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    labels = torch.arange(n) % 10 if labels is None else labels
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def outputs(predictions, labels=None, classes=10, features=None):
    logits = 20.0 * F.one_hot(torch.tensor(predictions), classes).float()
    features = torch.randn(len(predictions), 4) if features is None else features
    return Outputs(logits, features, None if labels is None else torch.tensor(labels))


def test_outputs_are_what_the_model_gives_in_eval_mode():
    net = model(drop_path_rate=0.9, proj_drop_rate=0.5).train()
    net.blocks[0].eval()
    flags = [m.training for m in net.modules()]
    found = outputs_of(net, loader())
    assert [m.training for m in net.modules()] == flags
    images = torch.cat([x for x, _ in loader()])
    with torch.no_grad():
        tokens = net.eval().forward_features(images)
    torch.testing.assert_close(found.logits, net.forward_head(tokens).detach())
    torch.testing.assert_close(found.features, tokens[:, 0])
    assert found.labels.tolist() == list(range(8)) and found.labels.dtype == torch.int64


def test_a_batchs_tokens_are_given_up_when_the_next_one_comes(monkeypatch):
    net, tokens = model(), []
    real = net.forward_features

    def seen(images):
        found = real(images)
        tokens.append(weakref.ref(found.untyped_storage()))
        return found

    def watched():
        for batch in loader(24, 2):
            yield batch
            assert sum(ref() is not None for ref in tokens) <= 1

    monkeypatch.setattr(net, "forward_features", seen)
    assert len(outputs_of(net, watched()).features) == 24 and len(tokens) == 12


@pytest.mark.parametrize("sizes", [(1, 10, 2), (4, 4, 1), (3,)])
@pytest.mark.parametrize("sized", [True, False])
def test_batches_of_any_sizes_are_put_together(sizes, sized):
    net, data = model(), loader(sum(sizes), 1)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    batches = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    found, wanted = outputs_of(net, batches if sized else iter(batches)), outputs_of(net, data)
    assert found.labels.tolist() == wanted.labels.tolist() == [i % 10 for i in range(sum(sizes))]
    torch.testing.assert_close(found.features, wanted.features)
    torch.testing.assert_close(found.logits, wanted.logits)


def test_an_exception_in_the_loader_gives_the_training_flags_back():
    def broken():
        yield from loader()
        raise OSError("disk")

    net = model().train()
    with pytest.raises(OSError, match="disk"):
        outputs_of(net, broken())
    assert all(m.training for m in net.modules())


def test_distilled_model_averages_its_heads():
    net = model(VisionTransformerDistilled)
    found = outputs_of(net, loader())
    assert found.features.shape == (8, 48)
    both = (found.features @ (net.head.weight + net.head_dist.weight).T).detach()
    assert found.logits.shape == both.shape


def test_half_precision_gives_float32():
    net = model().bfloat16()
    found = outputs_of(net, [(x.bfloat16(), y) for x, y in loader()])
    assert found.logits.dtype == found.features.dtype == torch.float32


def test_no_classifier_and_no_labels_measure_features_only():
    net = model(num_classes=0)
    found = outputs_of(net, loader(labels=torch.full((8,), -1)))
    assert found.logits is None and found.labels is None
    assert compare(found, found) == Accuracy(8, feature_error=0.0, feature_cosine=pytest.approx(1.0))
    assert compare(found) == Accuracy(8)


def test_no_labels_still_measure_agreement():
    net = model()
    original = outputs_of(net, loader(labels=torch.full((8,), -1)))
    found = compare(original, original)
    assert found.agreement == 100.0 and found.top1 is None and found.loss is None


def test_top1_top5_loss_and_agreement():
    found = compare(outputs([0, 1, 2, 3], [0, 1, 9, 9]), outputs([0, 1, 2, 4]))
    assert (found.images, found.top1, found.agreement) == (4, 50.0, 75.0)
    right = math.log(1 + 9 * math.exp(-20))
    assert found.loss == pytest.approx((2 * right + 2 * (20 + right)) / 4, rel=1e-6)


def test_top5_counts_the_five_highest():
    logits = torch.arange(10.0).repeat(10, 1)
    found = compare(Outputs(logits, torch.randn(10, 4), torch.arange(10)))
    assert (found.top1, found.top5) == (10.0, 50.0)


@pytest.mark.parametrize(("classes", "measured"), [(5, False), (6, True)])
def test_top5_of_five_classes_says_nothing(classes, measured):
    assert (compare(outputs([0, 1], [0, 1], classes)).top5 is not None) is measured


def test_feature_error_is_relative_to_the_variance():
    features = torch.randn(50, 4)
    original = outputs([0] * 50, features=features)
    mean = outputs([0] * 50, features=features.mean(dim=0).expand(50, 4))
    opposite = outputs([0] * 50, features=-features)
    assert compare(mean, original).feature_error == pytest.approx(1.0)
    assert compare(opposite, original).feature_cosine == pytest.approx(-1.0)
    assert compare(original, original).feature_error == 0.0


def test_one_image_has_no_variance_and_so_no_feature_error():
    one = outputs([0])
    assert compare(one, one).feature_error is None


def test_images_compared_part_by_part_give_what_all_at_once_would():
    n = 2 * AT_ONCE + 7
    torch.manual_seed(0)
    mine, theirs = (Outputs(torch.randn(n, 10), torch.randn(n, 4), torch.arange(n) % 10) for _ in range(2))
    a, b = mine.features.double(), theirs.features.double()
    found = compare(mine, theirs)
    assert found.loss == pytest.approx(F.cross_entropy(mine.logits.double(), mine.labels).item(), rel=1e-12)
    variance = (b - b.mean(dim=0)).square().sum()
    assert found.feature_error == pytest.approx(((a - b).square().sum() / variance).item(), rel=1e-12)
    assert found.feature_cosine == pytest.approx(F.cosine_similarity(a, b).mean().item(), rel=1e-9)


def test_other_classes_than_the_original_have_no_agreement():
    assert (
        compare(outputs([0, 1], classes=10), outputs([0, 1], classes=6, features=torch.randn(2, 4))).agreement is None
    )


def test_bad_data_is_named():
    with pytest.raises(DataError, match="not one image to evaluate on; check the data folder"):
        outputs_of(model(), [])
    with pytest.raises(DataError, match=r"label 10, but the model has classes 0-9 \(-1 = no label\); use the data set"):
        outputs_of(model(), loader(labels=torch.tensor([0, 1, 10, 0, 0, 0, 0, 0])))
    with pytest.raises(DataError, match="label -2, but the model has classes 0 and up"):
        outputs_of(model(num_classes=0), loader(labels=torch.full((8,), -2)))
    with pytest.raises(DataError, match=r"3 of 8 images have no label \(-1\); label all images or none"):
        outputs_of(model(), loader(labels=torch.tensor([-1, -1, -1, 0, 0, 0, 0, 0])))
    with pytest.raises(DataError, match=r"\[2, 4\] cannot be compared with the original's \[3, 4\]"):
        compare(outputs([0, 1]), outputs([0, 1, 2]))


def test_bad_outputs_are_named():
    broken = model()
    broken.norm.weight.data[0] = math.nan
    with pytest.raises(ModelError, match="NaN or infinite features for 8 of 8 images; if it was trained"):
        outputs_of(broken, loader())
    with pytest.raises(ModelError, match=r"outputs of shape \[3, 17, 10\].*global_pool"):
        outputs_of(model(global_pool=""), loader())
