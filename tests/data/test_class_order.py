"""Classes of data and model are matched by name; where nothing names them, their order is asked for."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from slimvit.config.recipe import DataSection
from slimvit.data.batches import check_same_order, checked_batches
from slimvit.data.class_order import Renumbered, is_ambiguous, natural_order, output_names, with_class_order
from slimvit.data.images import labels_of
from slimvit.data.sources import Data, open_data
from slimvit.models.classes import reorder_classes
from slimvit.utils.errors import DataError

NUMBERS = tuple(str(n) for n in range(1, 11))
"""Ten classes in natural order; in string order 10 is the second."""
STRING = tuple(sorted(NUMBERS))


class Plain(Dataset):
    """An image a class, in the order of the labels."""

    def __init__(self, labels, classes=()):
        self.labels, self.classes = labels, classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.new("L", (1, 1), index), self.labels[index]


def data_of(names, name="photos"):
    return Data(name, Plain(list(range(len(names)))), Plain(list(range(len(names)))), tuple(names))


def model_of(names=(), classes=10):
    return SimpleNamespace(class_names=tuple(names), num_classes=classes)


def names(data, model, order=None):
    return output_names(data, model, "mine.pth", order)


def test_equal_sets_are_matched_by_name():
    data, known = data_of(NUMBERS), STRING
    found = with_class_order(data, names(data, model_of(known)))
    assert found.class_names == known
    for images in (found.train, found.val):
        assert [found.class_names[label] for label in labels_of(images)] == list(NUMBERS)
        assert [images[i][1] for i in range(10)] == labels_of(images)
        assert labels_of(Subset(images, [9])) == [known.index("10")]
    assert with_class_order(data, NUMBERS) is data


def test_images_without_a_label_keep_none():
    assert labels_of(Renumbered(Plain([-1, 0]), [1, 0])) == [-1, 1]


@pytest.mark.parametrize("order", [None, "natural", "string"])
def test_one_renamed_class_is_refused_with_what_differs(order):
    renamed = ("1", "zwei", *NUMBERS[2:])
    with pytest.raises(DataError) as caught:
        names(data_of(NUMBERS), model_of(renamed), order)
    text = str(caught.value)
    assert "zwei only there and 2 only in photos" in text and "--adapt-epochs" in text and "--class-order FILE" in text
    assert len(text) <= 400 and "\n" not in text


def test_a_file_gives_the_models_classes_the_names_of_the_data(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(STRING) + "\n")
    assert names(data_of(NUMBERS), model_of("abcdefghij"), str(file)) == STRING
    assert names(data_of(NUMBERS), model_of(), str(file)) == STRING
    file.write_text("\n".join(STRING[1:]))
    with pytest.raises(DataError, match="must name every class of photos once.*1 only in photos"):
        names(data_of(NUMBERS), model_of(), str(file))
    with pytest.raises(DataError, match="neither natural nor string nor a file"):
        names(data_of(NUMBERS), model_of(), str(tmp_path / "none"))


@pytest.mark.parametrize("classes", [NUMBERS, ("Birch", "ash", "Cedar"), ("img2", "img10")])
def test_where_the_orders_differ_and_nothing_names_the_classes_the_order_is_asked_for(classes):
    data = data_of(natural_order(classes))
    with pytest.raises(
        DataError, match=r"natural order .* string order .*--class-order natural, string or FILE"
    ) as caught:
        names(data, model_of(classes=len(classes)))
    assert len(str(caught.value)) <= 400
    assert names(data, model_of(classes=len(classes)), "natural") == natural_order(classes)
    assert names(data, model_of(classes=len(classes)), "string") == tuple(sorted(classes))


@pytest.mark.parametrize("classes", [("ash", "birch"), tuple("0123456789"), ("b", "a"), ("0 - zero", "1 - one")])
def test_no_question_where_the_orders_agree_or_the_data_has_an_order_of_its_own(classes):
    assert not is_ambiguous(classes)
    assert names(data_of(classes), model_of(classes=len(classes))) == classes


def test_names_of_the_model_win_over_an_order(capsys):
    assert names(data_of(NUMBERS), model_of(STRING), "natural") == STRING
    assert "--class-order natural is not used, since the model names its classes" in capsys.readouterr().err


def test_data_that_names_no_classes_is_taken_by_number_and_said(capsys):
    data = data_of("012", "wds/photos")
    assert names(data, model_of("abc", 3)) == tuple("012")
    assert "label 0 stands for a" in capsys.readouterr().err
    with pytest.raises(DataError, match="other classes"):
        names(data_of("012", "photos"), model_of("abc", 3))


def loader(classes):
    class Tensors(Plain):
        def __getitem__(self, index):
            return torch.zeros(3, 32, 32), self.labels[index]

    return DataLoader(Subset(Tensors(list(range(len(classes))), list(classes)), range(len(classes))), 5)


def test_batches_of_a_named_data_set_are_matched_by_name(vit):
    model = vit(depth=1, num_classes=10)
    model.class_names = STRING
    labels = torch.cat([labels for _, labels in checked_batches(loader(NUMBERS), model)])
    assert [STRING[label] for label in labels] == list(NUMBERS)
    check_same_order(loader(STRING), model)
    with pytest.raises(DataError, match="numbers its classes otherwise"):
        check_same_order(loader(NUMBERS), model)
    with pytest.raises(DataError, match=r"other classes \(zwei, ...\)"):
        checked_batches(loader(("1", "zwei", *NUMBERS[2:])), model)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_outputs_of_a_teacher_are_put_in_order(name, vit, images):
    model = vit(name, depth=1, num_classes=10)
    seen = images(model)
    with torch.no_grad():
        before = model(seen)
        reorder_classes(model, STRING, NUMBERS)
        after = model(seen)
    assert torch.allclose(after[:, NUMBERS.index("10")], before[:, STRING.index("10")], atol=1e-6)
    assert torch.allclose(after.sort(-1).values, before.sort(-1).values, atol=1e-6) and model.class_names == NUMBERS


@pytest.mark.parametrize(("kept", "said"), [("val", ""), ("test", "test/"), ("", "all of its images")])
def test_a_folder_to_evaluate_needs_no_training_split(kept, said, digit_folder, tmp_path, capsys):
    whole = digit_folder(tmp_path / "whole", train=1, val=2)
    folder = tmp_path / "evaluated"
    folder.mkdir()
    (whole / "val").rename(folder / kept if kept else tmp_path / "bare")
    folder = folder if kept else tmp_path / "bare"
    found = open_data(DataSection(name=str(folder)), training=False)
    assert len(found.val) == 6 and len(found.train) == 0 and found.class_names == tuple("012")
    assert said in capsys.readouterr().err
    with pytest.raises(DataError):
        open_data(DataSection(name=str(folder)))


def test_a_training_split_alone_is_not_evaluated_on(digit_folder, tmp_path):
    whole = digit_folder(tmp_path, train=1, val=1)
    (whole / "val").rename(tmp_path.parent / f"{tmp_path.name}_elsewhere")
    with pytest.raises(DataError, match="no val/ folder"):
        open_data(DataSection(name=str(whole)), training=False)
    assert len(open_data(DataSection(name=str(whole), val_split="train"), training=False).val) == 3


def test_other_classes_in_the_training_split_are_still_seen(digit_folder, tmp_path):
    whole = digit_folder(tmp_path, train=1, val=1)
    (whole / "val" / "2").rename(whole / "val" / "3")
    with pytest.raises(DataError, match="different classes"):
        open_data(DataSection(name=str(whole)), training=False)
