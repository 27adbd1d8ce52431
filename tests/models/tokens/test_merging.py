"""Token merging on plain tensors."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from slimvit.models.tokens.merging import (
    Tokens,
    group_means,
    match,
    merge,
    most_merged,
    take,
    unmerge,
    within_bounds,
)
from slimvit.utils.errors import ModelError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "prefix", "r"), [(9, 1, 3), (10, 1, 4), (8, 0, 4), (13, 5, 2), (6, 2, 0)])
def test_the_most_similar_pairs_are_chosen(n, prefix, r):
    """Against loops over all pairs."""
    keys = draw(3, n, 5)
    by = match(keys, prefix, r)
    for b in range(3):
        every = list(range(prefix, n))
        first, second = every[::2], every[1::2]
        best = {}
        for i in first:
            similar = {j: float(cosine_similarity(keys[b, i], keys[b, j], dim=0)) for j in second}
            best[i] = max(similar, key=similar.get)
        chosen = sorted(first, key=lambda i: -float(cosine_similarity(keys[b, i], keys[b, best[i]], dim=0)))[:r]
        assert by.merged[b].tolist() == chosen
        assert by.kept[b].tolist() == [i for i in range(n) if i not in chosen]
        assert [int(by.kept[b, j]) for j in by.into[b]] == [best[i] for i in chosen]


def test_a_merged_token_is_the_mean_of_all_that_it_stands_for():
    """Three merges in a row, against means over the original tokens."""
    x = draw(2, 21, 3)
    tokens, present = Tokens.unmerged(x), x
    for seed, r in enumerate((6, 4, 3)):
        by = match(draw(2, present.shape[1], 4, seed=seed), 1, r)
        present, tokens = merge(present, tokens.sizes, by), tokens.after(by)
    assert present.shape == (2, 8, 3) and tokens.sizes.sum(1).tolist() == [21, 21]
    for b in range(2):
        for i in range(8):
            group = [j for j in range(21) if tokens.sources[b, j] == i]
            assert len(group) == tokens.sizes[b, i] and int(tokens.places[b, i]) in group
            assert torch.allclose(present[b, i], x[b, group].mean(0), atol=1e-6)
    assert torch.allclose(group_means(x, tokens), present, atol=1e-6)
    assert torch.equal(take(unmerge(present, tokens.sources), tokens.places), present)


def test_merging_nothing_changes_no_bit():
    x = draw(2, 9, 4)
    by, tokens = match(x, 1, 0), Tokens.unmerged(x)
    assert torch.equal(merge(x, tokens.sizes, by), x)
    assert all(torch.equal(a, b) for a, b in zip(tokens.after(by), tokens, strict=True))
    assert torch.equal(unmerge(x, tokens.sources), x)


def test_prefix_tokens_and_those_without_partners_do_not_change_a_bit():
    x = draw(2, 12, 4)
    by = match(x, 2, 3)
    merged = merge(x, Tokens.unmerged(x).sizes, by)
    for b in range(2):
        alone = [i for i in range(len(by.kept[b])) if i not in by.into[b].tolist()]
        assert {0, 1} <= {*alone} and torch.equal(merged[b, alone], x[b, by.kept[b, alone]])


def test_too_few_tokens_are_named():
    with pytest.raises(ModelError, match=r"merges 5 tokens, but gets 8 of the image, of which it can merge 4; give"):
        match(draw(1, 9, 4), 1, 5)


def test_a_block_merges_at_most_half_of_what_is_left():
    assert [most_merged(98, before) for before in (0, 1, 160, 176, 196)] == [98, 97, 18, 10, 0]
    assert within_bounds(98, [16] * 12) == [16] * 11 + [10]
    assert within_bounds(4, [9, 9, 9]) == [4, 2, 1]
