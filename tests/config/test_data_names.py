"""Which data a recipe may name: local folders and plain names; every address is refused when the recipe is read."""

from pathlib import Path

import pytest
import yaml

from slimvit.config.recipe import DataSection, Recipe
from slimvit.utils.errors import RecipeError, SlimvitError

ADDRESSES = [
    "pipe:touch hacked;", "pipe:touch hacked #", "PIPE:x", "file:///etc", "http://a/b", "https://a/b", "s3://a/b",
    "gs://a", "hf://datasets/a/b", "ssh://a", "zip://a.zip::http://b", "simplecache::s3://a", "data:x", "", "a\0b",
]  # fmt: skip
NAMED = ["torch/cifar10", "hfds/a/b", "hfids/a/b", "tfds/mnist", "wds/x"]


def refused(**data):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"model": {"name": "vit_digits"}, "data": data})
    text = str(caught.value)
    assert "\n" not in text and len(text) <= 400 and "must be" in text
    return text


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_stands_where_a_folder_does(address):
    assert f"data: name is {address!r}" in refused(name=address)
    for name in (*NAMED, "photos"):
        assert f"data: root is {address!r}" in refused(name=name, root=address)
    for key in ("train_split", "val_split"):
        assert f"data: {key} is {address!r}" in refused(name="photos", **{key: address})
        assert f"data: {key} is {address!r}" in refused(name="torch/cifar10", root="x", **{key: address})
        if address:
            shards = f"a.tar::{address}"
            assert f"data: {key} is" in refused(name="wds/x", root="x", **{key: shards})


@pytest.mark.parametrize(
    "name",
    [
        "wds/pipe:touch x", "wds/", "wds/a;b", "tfds/ns:name", "tfds/gs://a", "hfds/a/b/c", "hfds/https://x",
        "hfds/../x", "hfds/./x", "hfds//etc", "hfids/a b", "torch/$(touch x)", "WDS/pipe:x",
    ],
)  # fmt: skip
def test_names_behind_a_prefix_are_plain(name):
    assert f"data: name is {name!r}" in refused(name=name, root="x")


@pytest.mark.parametrize("split", ["train; touch x", "$(touch x).tar", "`touch x`.tar", "pipe:touch x", "a b.tar", "'"])
def test_shards_hold_nothing_that_a_shell_reads(split):
    assert "data: train_split is" in refused(name="wds/x", root="x", train_split=split)


@pytest.mark.parametrize(
    "data",
    [
        {"name": "digits"}, {"name": "photos/"}, {"name": "/data/my photos (2)"}, {"name": "~/x"}, {"name": "./exp:1"},
        {"name": "C:\\photos"}, {"name": "photos", "train_split": "../other", "val_split": "held out"},
        {"name": "torch/inat", "root": "x", "train_split": "genus/2021_train"},
        {"name": "hfds/uoft-cs/cifar10", "train_split": "train[:10%]+test", "val_split": "test"},
        {"name": "hfds/mnist", "root": "./cache:1"}, {"name": "tfds/imagenet2012/a.b:5.0.0", "root": "x"},
        {"name": "tfds/mnist:3.*.*", "val_split": "test[75%:]"},
        {"name": "wds/i", "root": "x", "train_split": "i-train-{0000..1023}.tar|1281167", "val_split": "a.tar::b.tar"},
    ],
)  # fmt: skip
def test_folders_and_plain_names(data):
    assert DataSection(**data).name == data["name"]


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"name": "vit_digits"}, "data": {"name": "wds/x", "root": "pipe:touch hacked;"}},
        {"base": "digits_half", "points": [{"name": "a", "change": {"data": {"name": "wds/x", "root": "pipe:x"}}}]},
        {"base": "digits_half", "grid": {"data.root": ["pipe:touch hacked;", "pipe:b"]}},
    ],
)
def test_recipes_check_and_every_command_say_so(content, slimvit_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text(yaml.safe_dump(content))
    command = "run" if "model" in content else "sweep"
    for words in (("recipes", "check", "file.yaml"), (command, "file.yaml", "--out", "run")):
        told = slimvit_(*words, code=1).stderr
        assert "root is 'pipe:" in told and "must be a local folder" in told and told.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file.yaml"]


@pytest.mark.parametrize("words", [("--data", "pipe:x"), ("--data", "wds/x", "--data-root", "pipe:touch hacked;")])
def test_so_does_the_command_line(words, slimvit_):
    told = slimvit_("evaluate", "vit_digits", *words, code=1).stderr
    assert "must be a local folder" in told and told.count("\n") == 1


def test_so_does_python():
    import slimvit

    with pytest.raises(SlimvitError, match="data: name is 'pipe:x'"):
        slimvit.evaluate("vit_digits", "pipe:x")


@pytest.mark.parametrize(
    "args",
    [
        {"pretrained_cfg": {"url": "http://a/b.pth"}}, {"pretrained_cfg_overlay": {"file": "x"}},
        {"checkpoint_path": "/etc/passwd"}, {"cache_dir": "/x"}, {"features_only": True}, {"depth": 10**9},
    ],
)  # fmt: skip
def test_no_argument_of_a_model_reads_or_fetches(args):
    with pytest.raises(RecipeError, match=f"model: args.{next(iter(args))} is"):
        Recipe.parse({"model": {"name": "vit_digits", "args": args}, "data": {"name": "digits"}})
