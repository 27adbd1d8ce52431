"""Models side by side: whose turn it is, what is compiled, and what happens without memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimvit.measure.latency import interleave as module
from slimvit.measure.latency import timer
from slimvit.measure.latency.batch_size import OutOfMemory
from slimvit.measure.latency.interleave import InterleavedTimer, compile_defect, compiling
from slimvit.utils.errors import ModelError

SIZE = (3, 8, 8)


class Told(nn.Module):
    """Tells what it is called with."""

    def __init__(self, name: str, tell: Callable[[Any], object]) -> None:
        super().__init__()
        self.name, self.tell = name, tell
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        self.tell((self.name, tuple(x.shape), x.dtype, torch.is_grad_enabled()))
        return x * self.weight


def contest(tell: Callable[[Any], object], names: str = "ab") -> InterleavedTimer:
    return InterleavedTimer({n: Told(n, tell) for n in names}, dict.fromkeys(names, SIZE))


def test_all_models_have_as_many_passes_in_turns_that_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "TURN", 0.0)
    seen: list[Any] = []
    times = contest(seen.append).times(4, 3)
    passes = timer.PASSES[0]
    rounds = [["a"] * passes + ["b"] * passes, ["b"] * passes + ["a"] * passes, ["a"] * passes + ["b"] * passes]
    assert [name for name, *_ in seen[-6 * passes :]] == sum(rounds, [])
    before = Counter(name for name, *_ in seen[: -6 * passes])
    assert before["a"] == before["b"] > timer.WARM_UP  # warmed up before any round
    assert {tuple(rest) for _, *rest in seen} == {((4, *SIZE), torch.bfloat16, False)}
    assert {name: [len(turn) for turn in turns] for name, turns in times.items()} == {n: [passes] * 3 for n in "ab"}


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate", "DefaultCPUAllocator: can't allocate memory"]
)
def test_a_full_device_is_told_from_a_bug(words: str) -> None:
    def fail(text: str, _: Any) -> None:
        raise RuntimeError(text)

    with pytest.raises(OutOfMemory):
        contest(partial(fail, words)).times(1, 1)
    with pytest.raises(RuntimeError, match="bug"):
        contest(partial(fail, "bug")).times(1, 1)


def test_every_model_is_compiled_for_its_own_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    names = [f"m{i}" for i in range(12)]  # more of one class than torch compiles by default
    models = {n: nn.Sequential(nn.Flatten(), nn.Linear(192, 8 + i)).eval() for i, n in enumerate(names)}
    with torch.inference_mode(), compiling():
        found = InterleavedTimer(models, dict.fromkeys(names, SIZE), compiled=True)
        found.calls(1), found.calls(2)
    assert len(compiled) == 2 * len(names)


def test_what_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    told = compile_defect(torch.device("cpu"))
    assert told is not None and "no compiler" in told and "\n" not in told
    found = InterleavedTimer({"a": nn.Linear(8, 8)}, {"a": SIZE}, compiled=True)
    with pytest.raises(ModelError, match="^a: torch.compile fails on it: .*no compiler.*; leave --compile out$"):
        found.calls(1)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    assert module.compile_defect(torch.device("cpu")) is None


def test_the_real_compiler() -> None:
    if (defect := compile_defect(torch.device("cpu"))) is not None:
        pytest.skip(defect)
    models = {n: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.GELU()).eval() for n in "ab"}
    with compiling():
        times = InterleavedTimer(models, dict.fromkeys(models, SIZE), compiled=True).times(2, 3)
    assert [len(turns) for turns in times.values()] == [3, 3] and min(min(t) for t in times["a"]) > 0
