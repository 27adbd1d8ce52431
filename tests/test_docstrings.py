"""Every public name of the package says what it is, in plain Markdown, and functions of tensors give their shapes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "slimvit"
TREES = {str(f.relative_to(PACKAGE)): ast.parse(f.read_text()) for f in sorted(PACKAGE.rglob("*.py"))}

SHAPE = re.compile(r"(?<!\w)\[(?:\w+|\.\.\.)(?:, ?[^\[\]]+)*\](?!\()")
"""`[B, N, C]`, `[k, C]`, `[tokens]`, `[..., C]`."""
ROLE = re.compile(r":(?:attr|class|const|data|exc|func|meth|mod|obj|ref):`")
DOUBLE = re.compile(r"(?<!`)``(?!`)")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Entry = tuple[str, Documented, str]
"""Where it is defined, its node, its docstring."""
CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def base_names(node: ast.ClassDef) -> list[str]:
    """Names of a class's bases, without modules and type arguments: `nn.Module` is `Module`."""
    return [ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases]


def inherited(node: ast.ClassDef, method: str) -> str | None:
    """The docstring of a method, its own or that of the nearest base in the package."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == method and (text := ast.get_docstring(member)):
            return text
    bases = (CLASSES[name] for name in base_names(node) if name in CLASSES)
    return next((text for base in bases if (text := inherited(base, method))), None)


def public(body: list[ast.stmt], where: str, owner: ast.ClassDef | None = None) -> Iterator[Entry]:
    """Where, node and docstring of every public class and function, methods too."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node) or (inherited(owner, node.name) if owner is not None else None)
        yield f"{where}{node.name}", node, text or ""
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{where}{node.name}.", node)


def documented() -> list[Entry]:
    found: list[Entry] = []
    for file, tree in TREES.items():
        found.append((file, tree, ast.get_docstring(tree) or ""))
        found.extend(public(tree.body, f"{file}:"))
    return found


def takes_tensors(node: Documented) -> bool:
    """Whether a function's signature names a Tensor."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [a.annotation for a in arguments] + [node.returns]
    return any("Tensor" in ast.unparse(a) for a in annotations if a is not None)


def test_every_public_name_has_a_docstring() -> None:
    assert len(documented()) > 1000
    assert [where for where, _, text in documented() if not text.strip()] == []


def test_functions_of_tensors_give_shapes() -> None:
    texts = {where: text for where, node, text in documented() if takes_tensors(node)}
    without = [where for where, text in texts.items() if not SHAPE.search(text)]
    assert texts and len(without) <= 0.1 * len(texts), without


def test_no_sphinx_markup() -> None:
    """In docstrings, and in the strings below constants and fields that stand for them."""
    strings = [
        (file, node)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [f"{f}:{s.lineno}" for f, s in strings if ROLE.search(s.value) or DOUBLE.search(s.value)] == []


@pytest.mark.parametrize("text", ["of [B, N, C]", "[k, C] on the CPU", "sums, [tokens]", "[..., C]"])
def test_shapes_are_recognised(text: str) -> None:
    assert SHAPE.search(text)


@pytest.mark.parametrize("text", ["a list[int]", "no shape", "[a](page.md)", "[]"])
def test_other_brackets_are_no_shapes(text: str) -> None:
    assert not SHAPE.search(text)
