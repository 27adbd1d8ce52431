"""Parts by name: no file but its own spells one, and a new one is known everywhere."""

import ast
from pathlib import Path

import pytest

from slimvit.models.parts.heads import Heads
from slimvit.models.parts.registry import PARTS, label, limits_of, part_of, register_part
from slimvit.utils.errors import PlanError

PACKAGE = Path(__file__).parents[3] / "slimvit"
ALLOWED = {
    "config/choices.py": "words of --parts",
    "config/recipe.py": "recipe keys",
    "io/create.py": "the argument `heads` of create_model",
    "io/open.py": "the recipe key `model.heads`",
    "io/export/timm_folder.py": "arguments of timm's constructors",
    "measure/flops/parts.py": "parts of the MAC count, which are modules",
    "measure/flops/meta.py": "mixes of dense attention, which are between heads",
    "models/base.py": "arguments of timm's constructors",
    "models/dense/mixing.py": "dense attention mixes heads",
    "models/families/swin.py": "arguments of timm's constructors",
    "models/insert_dense.py": "dense attention mixes heads",
    "report/compare/part_plots.py": "parts of the MAC count, which are modules",
}
"""Files that name a part's word for another reason."""


def words() -> set[str]:
    units = {part.units for part in PARTS.values()}
    return {*PARTS, "branches", *units, *(prefix + word for word in units for prefix in ("kept_", "removed_"))}


def spelled(text: str, known: set[str]) -> set[str]:
    """The words of parts that stand in a source as a string or as an attribute; `view.mlp` is a module of timm's."""
    nodes = list(ast.walk(ast.parse(text)))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return known & (strings | {node.attr for node in nodes if isinstance(node, ast.Attribute)} - {"mlp", "tokens"})


def test_no_file_but_its_own_spells_the_name_of_a_part():
    files = {str(f.relative_to(PACKAGE)): f for f in PACKAGE.rglob("*.py") if "models/parts" not in str(f)}
    found = {name for name, file in files.items() if spelled(file.read_text(), words())}
    assert found == {*ALLOWED}


def test_a_name_that_is_spelled_is_found():
    source = 'plan.kept_heads; costs["mlp"]; view.mlp; "of all heads"'
    assert spelled(source, words()) == {"kept_heads", "mlp"}
    assert spelled("view.mlp", words()) == set()


def test_an_unknown_part_is_met_with_the_known_ones():
    with pytest.raises(PlanError, match="part 'neurons' is not known, or has no units; choose from heads, mlp"):
        part_of("neurons")
    assert label("mlp") == "MLP neurons" and label("branches") == "branches"


def test_units_of_two_parts_have_two_words():
    class Other(Heads):
        name = "other"

    with pytest.raises(ValueError, match="its units cannot be called heads, a word that is taken"):
        register_part(Other())
    assert "other" not in PARTS


@pytest.mark.parametrize(("now", "stops"), [(1, []), (6, [5, 4, 3, 2, 1])])
def test_a_head_at_least_stays(now, stops):
    assert list(limits_of()["heads"].stops(now)) == stops and limits_of()["heads"].may_go(now) == len(stops)


@pytest.mark.parametrize(("now", "stops"), [(8, []), (20, [16, 8]), (24, [16, 8])])
def test_neurons_go_in_groups(now, stops):
    assert list(limits_of()["mlp"].stops(now)) == stops and limits_of()["mlp"].may_go(now) == len(stops)
