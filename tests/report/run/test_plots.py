import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from slimvit.models.block_plan import BlockPlan, Units
from slimvit.models.plan import SlimPlan
from slimvit.report.plot_style import LINE, spread_labels
from slimvit.report.record import Report, Stage
from slimvit.report.run.head_map import BAR, draw_units, head_map, panels
from slimvit.report.run.plots import curves, stage_accuracy
from slimvit.utils.errors import StoreError


def block_plan(name, heads, kept, stage=0, neurons=0, kept_neurons=()):
    return BlockPlan(name, stage, {"heads": Units(heads, kept), "mlp": Units(neurons, kept_neurons)})


PLAN = SlimPlan((block_plan("blocks.0", 3, (0, 2)), block_plan("blocks.1", 6, (), stage=1)), "tiny")
SCORES = [[0.5, 1e-5, None], [0.0, 1.0, 0.2, 0.1, 0.1, float("nan")]]


def report(last=70.0, **kwargs) -> Report:
    stages = [
        Stage(stage="original", macs=10**9, top1=72.0, agreement=100.0, feature_error=0.0),
        Stage(stage="pruned", macs=8 * 10**8, top1=last, agreement=None, feature_error=0.2),
    ]
    return Report(**({"model": "tiny", "stages": stages} | kwargs))


def without_top1() -> Report:
    return report(stages=[Stage(stage="original", macs=10**9, feature_error=0.0), Stage(stage="pruned")])


def texts(path) -> str:
    """The drawn texts: matplotlib leaves each in the SVG as a comment."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    comments = ElementTree.parse(path, parser).getroot().iter(ElementTree.Comment)
    return "\n".join(str(c.text).strip() for c in comments)


def by_part(scores):
    return {} if scores is None else {"heads": scores}


def drawn_heads(scores):
    axes = Figure().add_subplot()
    draw_units(axes, PLAN, by_part(scores))
    squares = [p.get_facecolor() for p in axes.patches if isinstance(p, Rectangle)]
    return squares, len(axes.lines)


@pytest.mark.parametrize("scores", [SCORES, [[1.0, 2.0, 3.0], [1.0] * 6], [[0.0] * 3, [0.0] * 6], None])
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_head_map_is_written(tmp_path, scores, suffix):
    path = tmp_path / f"heads.{suffix}"
    head_map(PLAN, by_part(scores), path)
    assert path.stat().st_size > 1000
    if suffix == "svg":
        assert "2 of 9 heads kept" in texts(path) and "removed" in texts(path)


def narrowed(*kept: int) -> SlimPlan:
    """Blocks of 3 heads and 80 neurons of which so many stay; all heads of the first are gone."""
    heads = [(), *([(0, 2)] * (len(kept) - 1))]
    return SlimPlan(
        tuple(block_plan(f"b.{i}", 3, heads[i], 0, 80, tuple(range(n))) for i, n in enumerate(kept)), "tiny"
    )


@pytest.mark.parametrize("scores", [[[0.1, 0.2, 0.3]] * 3, None])
def test_head_map_shows_the_neurons_that_stay(tmp_path, scores):
    head_map(narrowed(80, 20, 0), by_part(scores), tmp_path / "heads.svg")
    shown = texts(tmp_path / "heads.svg")
    assert "100 of 240 neurons kept" in shown and "80 of 80" in shown and "20 of 80" in shown and "none left" in shown
    assert "4 of 9 heads kept" in shown


def test_the_length_of_a_bar_is_the_share_kept():
    axes = Figure().add_subplot()
    draw_units(axes, narrowed(80, 20, 0), {})
    bars = [p for p in axes.patches if p.get_height() < 0.6]
    tracks, filled = bars[0::2], bars[1::2]
    assert [bar.get_width() / BAR for bar in filled] == [1, 0.25, 0]
    assert tracks[2].get_edgecolor() != tracks[1].get_edgecolor() == tracks[0].get_edgecolor()


def test_few_units_are_a_grid_and_panels_stand_side_by_side():
    few = SlimPlan((block_plan("b.0", 3, (0, 2), 0, 8, (0, 1)),), "tiny")
    heads, neurons = panels(few)
    assert heads.is_grid and neurons.is_grid and neurons.left > heads.left + heads.width
    axes = Figure().add_subplot()
    draw_units(axes, few, {"heads": [[1.0, 0.5, 0.1]], "mlp": [[0.1 * i for i in range(8)]]})
    assert len([p for p in axes.patches if p.get_height() > 0.6]) == 3 + 8
    assert not panels(narrowed(80, 20, 0))[1].is_grid


def test_where_no_neuron_is_gone_the_picture_speaks_of_heads_alone(tmp_path):
    head_map(narrowed(80, 80, 80), {}, tmp_path / "all.svg")
    alone = SlimPlan(tuple(block_plan(b.name, 3, b.kept_heads) for b in narrowed(80, 80, 80).blocks), "tiny")
    head_map(alone, {}, tmp_path / "none.svg")
    assert (tmp_path / "all.svg").read_bytes() == (tmp_path / "none.svg").read_bytes()
    assert "neurons" not in texts(tmp_path / "all.svg")


@pytest.mark.parametrize("scores", [SCORES, None])
def test_every_head_is_drawn_and_the_removed_are_crossed(scores):
    squares, lines = drawn_heads(scores)
    stage_line = 1
    assert len(squares) == 9 and lines == 7 * 4 + stage_line


def test_a_higher_score_is_darker():
    squares, _ = drawn_heads(SCORES)
    assert sum(squares[0][:3]) < sum(squares[1][:3])
    assert squares[4] == min(squares[3:8], key=lambda colour: sum(colour[:3]))


def test_stage_accuracy_shows_the_figures(tmp_path):
    path = tmp_path / "stages.svg"
    stage_accuracy(report(), path)
    shown = texts(path)
    assert "72.0" in shown and "70.0" in shown and "agreement (%)" in shown and "pruned" in shown
    assert "nan" not in shown.lower()


def test_without_top1_the_feature_error_is_shown(tmp_path):
    stage_accuracy(without_top1(), tmp_path / "stages.svg")
    assert "feature error" in texts(tmp_path / "stages.svg")


@pytest.mark.parametrize(("last", "start"), [(70.0, 40), (71.9, 70), (5.0, 0)])
def test_the_axis_starts_where_bars_differ_and_says_so(tmp_path, last, start):
    agreement = 72.0 if last > 70.5 else 100.0
    stages = [Stage(stage="original", top1=72.0, agreement=agreement), Stage(stage="pruned", top1=last)]
    stage_accuracy(report(stages=stages), tmp_path / "stages.svg")
    shown = texts(tmp_path / "stages.svg").splitlines()
    label = next(text for text in shown if text.startswith("per cent of the images"))
    assert label == f"per cent of the images; axis starts at {start}" if start else label == "per cent of the images"


def test_curves_name_the_training_of_every_line(tmp_path):
    rows = [{"epoch": e, "loss": 1 / e, "top1": 60.0 + e, "agreement": None} for e in (1, 2)]
    curves({"finetune": rows}, tmp_path / "one.svg")
    shown = texts(tmp_path / "one.svg").splitlines()
    assert {"fine-tuning", "training loss", "validation images: top-1 (%)"} <= set(shown) and "agreement" not in shown
    rounds = [{"epoch": e, "loss": 1.0} for e in (1, 2)]
    agreeing = [row | {"agreement": 70.0} for row in rows]
    curves({"adapt": rows, "round 1": rounds, "round 2": [], "finetune": agreeing}, tmp_path / "two.svg")
    shown = texts(tmp_path / "two.svg").splitlines()
    assert {"adapting the classifier", "round 1", "fine-tuning", "top-1", "agreement"} <= set(shown)
    assert "round 2" not in shown
    drawn = {node.get("id") for node in ElementTree.parse(tmp_path / "two.svg").iter()}
    assert {"adapt top1", "round 1 loss", "finetune agreement"} <= drawn
    assert drawn.isdisjoint({"round 1 top1", "adapt agreement"})


def test_labels_do_not_cover_each_other():
    fig = Figure()
    axes = fig.add_subplot()
    axes.set(xlim=(0, 2), ylim=(0, 100))
    spread_labels(fig, axes, [(0.5, 50.0 + i / 10, f"run {i}") for i in range(4)])
    heights = []
    for label in axes.texts:
        point = axes.transData.transform(label.xy) * 72 / axes.figure.dpi
        heights.append(point[1] + label.get_position()[1])
    assert all(b - a >= LINE - 1e-6 for a, b in zip(heights, heights[1:], strict=False))


def test_global_settings_stay_and_suffixes_are_checked(tmp_path):
    before = dict(matplotlib.rcParams)
    stage_accuracy(report(), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(StoreError, match=r"a\.bmp: a picture is saved as \.svg or \.png, not as \.bmp"):
        stage_accuracy(report(), tmp_path / "a.bmp")
