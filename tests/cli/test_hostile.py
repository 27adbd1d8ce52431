"""Files that anybody may have written: a model, a plan, a recipe, a report is read, or refused in one line of our own.

Each test takes valid files and spoils them: one value, or one byte. The examples are the same every time.
"""

import copy
import io
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import slimvit
from slimvit.config.arguments import REFUSED
from slimvit.config.recipe import Recipe
from slimvit.config.shipped import recipe_files, sweep_files
from slimvit.config.sweep import Sweep
from slimvit.data.images import ImageError, decode
from slimvit.data.preprocessing import to_mode
from slimvit.io.saved_model import load_folder, save
from slimvit.io.slim_file import DESCRIPTION
from slimvit.io.weight_file import WEIGHTS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.report.record import Report, Stage
from slimvit.report.text import print_cells
from slimvit.report.timing import FILE, Timing, read_timings, write_timings
from slimvit.utils.errors import SlimvitError
from slimvit.utils.reading import Unreadable, read_json, read_yaml

EXAMPLES = int(os.environ.get("SLIMVIT_EXAMPLES", "15"))
FEW = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

SPOILT = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 10**6, 10**9, 10**12, 10**30, -(10**9), 0.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "../../x", "/etc/passwd", "hf-hub:a/b", "\x1b[31m", "[red]x", "a" * 10_000, "\ud800"]),
    st.just("0-999999999"),
    st.lists(st.integers(-3, 10**10), max_size=3),
    st.dictionaries(st.sampled_from(["a", "../b", "depth"]), st.integers(), max_size=2),
    st.text(max_size=8),
)  # fmt: skip


def places(tree, path=()):
    """Every place in plain data, as the keys that lead to it."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def spoilt(tree, data):
    """The tree with one value replaced, removed, or added to."""
    tree = copy.deepcopy(tree)
    *way, last = data.draw(st.sampled_from(list(places(tree))))
    here = tree
    for key in way:
        here = here[key]
    what = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    if what == "remove":
        del here[last]
    elif what == "add" and isinstance(here, dict):
        here[data.draw(st.sampled_from([*sorted(REFUSED), "depth", "img_size", "x"]))] = data.draw(SPOILT)
    else:
        here[last] = data.draw(SPOILT)
    return tree


def read_or_refused(read, *args):
    """Whether it was read; every other end than a line of our own fails."""
    try:
        read(*args)
    except SlimvitError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1
        return False
    return True


@pytest.fixture(scope="module")
def saved(vit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    model = vit(depth=2)
    save(slimvit.prune_model(model, plan_of(model).keeping(heads=[[0], [1, 2]])), folder, class_names=tuple("abcde"))
    return folder


def beside(saved: Path, name: str) -> Path:
    """A folder with the same weights, whose description may be spoilt."""
    folder = saved.parent / name
    folder.mkdir(exist_ok=True)
    if not (folder / WEIGHTS).exists():
        (folder / WEIGHTS).hardlink_to(saved / WEIGHTS)
    return folder


@FEW
@given(data=st.data())
def test_a_spoilt_description(saved, data):
    folder = beside(saved, "description")
    tree = spoilt(json.loads((saved / DESCRIPTION).read_text()), data)
    (folder / DESCRIPTION).write_text(json.dumps(tree))
    read_or_refused(load_folder, folder)


@FEW
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), header=st.booleans())
def test_a_spoilt_byte_of_the_weights(saved, place, byte, header):
    content = bytearray((saved / WEIGHTS).read_bytes())
    at = int(place * (200 if header else len(content)))
    same = content[at] == byte
    content[at] = byte
    folder = saved.parent / "weights"
    folder.mkdir(exist_ok=True)
    (folder / DESCRIPTION).write_bytes((saved / DESCRIPTION).read_bytes())
    (folder / WEIGHTS).write_bytes(content)
    assert read_or_refused(load_folder, folder) == same


@pytest.mark.parametrize(
    "args",
    [
        {"embed_dim": 10**9}, {"depth": 10**6}, {"img_size": 10**7}, {"img_size": [16, 10**9]}, {"mlp_ratio": 1e30},
        {"num_heads": -(10**12)}, {"norm_layer": {"a": 1}}, {"pretrained_cfg": {"file": "/etc/passwd"}},
        {"checkpoint_path": "/etc/passwd"}, {"features_only": True}, {"embed_dim": float("nan")},
    ],
)  # fmt: skip
def test_arguments_are_bounded_before_anything_is_built(saved, args, monkeypatch):
    folder = beside(saved, "arguments")
    tree = json.loads((saved / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(tree | {"model_args": tree["model_args"] | args}))
    monkeypatch.setattr("timm.create_model", None)
    with pytest.raises(SlimvitError, match=f"model_args.{next(iter(args))}"):
        load_folder(folder)


def test_tables_are_bounded_before_they_are_made(swin, tmp_path):
    save(swin(), tmp_path / "run")
    tree = json.loads((tmp_path / "run" / DESCRIPTION).read_text())
    tree["model_args"] |= {"img_size": 4096, "window_size": 512}
    (tmp_path / "run" / DESCRIPTION).write_text(json.dumps(tree))
    with pytest.raises(SlimvitError, match="ask for buffers of"):
        load_folder(tmp_path / "run")


PIPE, FOLDER, LONG, DEEP, DIGITS, HALF = "pipe", "folder", "long", "deep", "digits", "half a pair"


def put(path: Path, what: str) -> None:
    if what == PIPE:
        os.mkfifo(path)
    elif what == FOLDER:
        path.mkdir()
    else:
        text = {LONG: '"' + "a" * 2000 + '"', DEEP: "[" * 100_000, DIGITS: "9" * 5000, HALF: '"\\ud800"'}[what]
        path.write_text(text)


@pytest.mark.parametrize("what", [PIPE, FOLDER, LONG, DEEP, DIGITS, HALF])
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_text_file_of_ours(read, what, tmp_path, monkeypatch):
    put(tmp_path / "file", what)
    if what == LONG:
        monkeypatch.setattr("slimvit.utils.reading.read_text.__defaults__", (1000,))
    with pytest.raises(Unreadable):
        read(tmp_path / "file")


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (read_yaml, "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: c is given twice, first in line 3; remove one"),
        (read_yaml, "a: {c: 1, c: 1}\n", "line 1: c is given twice, first in line 1; remove one"),
        (read_yaml, "a: 1\n'a': 2\n", "line 2: a is given twice, first in line 1; remove one"),
        (read_yaml, "- 1: a\n  0x1: b\n", "line 2: 1 is given twice, first in line 1; remove one"),
        (read_json, '{"a": {"b": 1, "c": 2, "b": 3}}', "'b' is given twice; remove one"),
    ],
)
def test_a_key_given_twice(read, text, told, tmp_path):
    (tmp_path / "file").write_text(text)
    with pytest.raises(Unreadable) as caught:
        read(tmp_path / "file")
    assert str(caught.value) == told


def test_the_same_key_in_two_mappings(tmp_path):
    (tmp_path / "file").write_text('{"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}]}')
    assert read_json(tmp_path / "file") == read_yaml(tmp_path / "file") == {"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}]}


@pytest.mark.parametrize("kind", ["recipe", "sweep"])
def test_recipes_check_names_the_line_of_a_key_given_twice(slimvit_, kind, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text({
        "recipe": "model: {name: vit_digits}\ndata: {name: digits}\nprune: {ratio: 0.5}\nprune: {ratio: 0.25}\n",
        "sweep": "base: digits_ratio\ngrid:\n  prune.ratio: [0.25]\n  prune.ratio: [0.5]\n",
    }[kind])  # fmt: skip
    result = slimvit_("recipes", "check", path, code=1)
    line, key = {"recipe": (4, "prune"), "sweep": (4, "prune.ratio")}[kind]
    first = line - 1
    assert result.stderr.strip() == (
        f"Error: {path}: not readable as YAML: line {line}: {key} is given twice, first in line {first}; remove one"
    )


def test_an_argument_given_twice(slimvit_):
    words = ("inspect", "vit_digits", "--model-arg", "depth=3", "--model-arg", "depth=4")
    assert "depth is given twice" in slimvit_(*words, code=2).stderr


KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


@pytest.fixture(scope="module")
def pictures():
    """The bytes of one small picture in every format, with what a camera notes."""
    found, exif = {}, Image.Exif()
    exif[0x0112] = 6
    for kind in KINDS:
        file = io.BytesIO()
        Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(
            file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {})
        )
        found[kind] = file.getvalue()
    return found


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:.*:UserWarning")  # Pillow's of EXIF
@FEW
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_a_spoilt_image(pictures, kind, data):
    """One byte, four in a row or the end is spoilt: an image of a bounded size, or one line."""
    whole = bytearray(pictures[kind])
    place = data.draw(st.one_of(st.integers(0, 64), st.integers(0, len(whole) - 1)).filter(lambda p: p < len(whole)))
    put = data.draw(
        st.sampled_from([b"\x00", b"\x01", b"\x7f", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", None])
    )
    content = bytes(whole[:place]) if put is None else bytes(whole[:place] + put + whole[place + len(put) :])
    try:
        image = decode(io.BytesIO(content), "x")
    except ImageError as error:
        assert "\n" not in str(error) and str(error).startswith("x: not a readable image")
        return
    assert image.width * image.height <= 2 * Image.MAX_IMAGE_PIXELS
    assert to_mode(image, "RGB").mode == "RGB"


@pytest.mark.parametrize("name", [DESCRIPTION, WEIGHTS])
@pytest.mark.parametrize("what", [PIPE, FOLDER, "link to itself", "link to a device"])
def test_a_saved_model_of_other_things_than_files(saved, name, what, tmp_path):
    for file in (DESCRIPTION, WEIGHTS):
        (tmp_path / file).write_bytes((saved / file).read_bytes())
    path = tmp_path / name
    path.unlink()
    if what.startswith("link"):
        path.symlink_to(path if "itself" in what else "/dev/zero")
    else:
        put(path, what)
    assert not read_or_refused(load_folder, tmp_path)


def test_links_to_files_are_followed(saved, tmp_path):
    for file in (DESCRIPTION, WEIGHTS):
        (tmp_path / file).symlink_to(saved / file)
    assert load_folder(tmp_path).num_classes == 5


@FEW
@given(data=st.data())
def test_spoilt_documents(saved, data, tmp_path):
    plan = SlimPlan.from_json(json.loads((saved / DESCRIPTION).read_text())["plan"]).to_json()
    report = Report(model="m", stages=[Stage(stage="original", top1=90.0, macs_by_part={"qkv": 5})]).to_json()
    for tree, read in ((plan, SlimPlan.read), (report, Report.read)):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(spoilt(tree, data)))
        read_or_refused(read, path)
    timing = Timing(device="cpu", precision="fp32", compiled=False, batch=1, rounds=20, versions={"torch": "2"},
                    latency_ms=1.0, latency_p95_ms=1.0, throughput=1.0, input_size=[3, 8, 8])  # fmt: skip
    (tmp_path / FILE).unlink(missing_ok=True)
    write_timings(tmp_path, [timing])
    (tmp_path / FILE).write_text(json.dumps(spoilt(json.loads((tmp_path / FILE).read_text()), data)))
    read_or_refused(read_timings, tmp_path)


@FEW
@given(data=st.data())
def test_spoilt_recipes_and_sweeps(data, tmp_path):
    for kind, file in ((Recipe, recipe_files()["digits_half"]), (Sweep, sweep_files()["quick"])):
        path = tmp_path / "file.yaml"
        path.write_text(yaml.safe_dump(spoilt(yaml.safe_load(file.read_text()), data), allow_unicode=True))
        read_or_refused(kind.read, path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "model: !!python/object/apply:os.system ['touch hacked']\n",
        "model: !!python/name:os.system\n",
        "when: 2024-99-99\n",
        "? [a]\n: b\n",
        "\x00\x01\x02",
        "- a\n- b\n",
    ],
)
def test_yaml_runs_nothing_and_unfolds_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.yaml"
    path.write_text(text)
    assert not read_or_refused(Recipe.read, path) and not read_or_refused(Sweep.read, path)
    assert not (tmp_path / "hacked").exists()


def test_a_terminal_is_given_no_orders(capsys):
    print_cells(["name", "figure"], [["\x1b[31mred\x1b[0m[bold]x[/]\a\u202e", "1"]])
    told = capsys.readouterr().out
    assert not {"\x1b", "\a", "\u202e"} & set(told) and "[bold]x[/]" in told


def test_a_state_of_training_that_would_run_code_is_refused(tmp_path):
    from slimvit.train import checkpoint

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'hacked'}",)

    torch.save({"x": Evil()}, tmp_path / "last.pt")
    assert not read_or_refused(checkpoint._read, tmp_path / "last.pt")
    assert not (tmp_path / "hacked").exists()
