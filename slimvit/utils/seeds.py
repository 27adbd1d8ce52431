"""Seeds from a few numbers, such as seed and epoch, so that no state of a generator has to be saved."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Seed the CPU generators of random, numpy and torch for the block, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second, third = (int(word) for word in np.random.SeedSequence(words).generate_state(3))
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)  # torch.manual_seed would seed the accelerators too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_step(*words: int) -> None:
    """Seed torch, accelerators included, and numpy for one step of training: for dropout and timm's Mixup."""
    first, second = (int(word) for word in np.random.SeedSequence(words).generate_state(2))
    torch.manual_seed(first)
    np.random.seed(second)
