import pytest
import torch

from slimvit.models.dense import mixing
from slimvit.models.dense.mixing import mix_size, mix_values, pairs_of

KEPT = {
    "even": [(0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2)],
    "uneven": [(0, 2, 3), (1, 2), (), (0, 1, 3), (2, 3)],
    "gaps": [(0, 1, 3, 4, 6), (1, 3, 4, 5, 6), (0, 3, 6), (0, 1, 2, 3, 4, 5, 6)],
}
UNMIXED = {"nothing shared": [(0, 1), (2,), (3, 4), ()], "one block": [(0, 1)]}
D = 2
each_kept = pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT.keys())
each_stage = pytest.mark.parametrize("kept", (KEPT | UNMIXED).values(), ids=(KEPT | UNMIXED).keys())
each_mix = pytest.mark.parametrize("per_head", [False, True], ids=["layer", "head"])


def draw(kept, per_head, rows=(3, 5), dtype=torch.float64, seed=0):
    """Own values of the last block, and for its pairs the values of earlier ones and the mixes."""
    generator = torch.Generator().manual_seed(seed)
    pairs = pairs_of(kept)[-1]
    own = torch.randn(*rows, len(kept[-1]) * D, generator=generator, dtype=dtype)
    earlier = [torch.randn(*rows, len(kept[p.earlier]) * D, generator=generator, dtype=dtype) for p in pairs]
    return own, earlier, pairs, torch.randn(mix_size(pairs, per_head), generator=generator, dtype=dtype)


def plain_sum(own, earlier, kept, mix, per_head):
    """By head id, one head at a time."""
    mine, weights = list(kept[-1]), iter(mix)
    out = list(own.split(D, -1))
    sharing = [heads for heads in kept[:-1] if set(heads) & set(mine)]
    for values, theirs in zip(earlier, sharing, strict=True):
        one = None if per_head else next(weights)
        for head in (h for h in mine if h in theirs):
            weight = next(weights) if per_head else one
            part = values[..., theirs.index(head) * D :][..., :D]
            out[mine.index(head)] = out[mine.index(head)] + weight * part
    return torch.cat(out, -1)


def gradients(function, own, earlier, mix):
    """Of a random direction of the output, with respect to own values, mixes and earlier values."""
    inputs = [t.clone().requires_grad_() for t in (own, mix, *earlier)]
    out = function(inputs[0], inputs[2:], inputs[1])
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return torch.autograd.grad((out * direction).sum(), inputs)


@each_mix
@each_kept
def test_equals_the_plain_sum(kept, per_head):
    own, earlier, pairs, mix = draw(kept, per_head)
    found = mix_values(own, earlier, pairs, mix, per_head, D)
    assert torch.allclose(found, plain_sum(own, earlier, kept, mix, per_head), rtol=1e-14, atol=1e-14)


@each_mix
@each_kept
@pytest.mark.parametrize("chunk", [1, 20, 1 << 16])
def test_gradients_are_those_of_the_plain_sum(kept, per_head, chunk, monkeypatch):
    monkeypatch.setattr(mixing, "CHUNK", chunk)
    own, earlier, pairs, mix = draw(kept, per_head)
    found = gradients(lambda o, e, m: mix_values(o, e, pairs, m, per_head, D), own, earlier, mix)
    wanted = gradients(lambda o, e, m: plain_sum(o, e, kept, m, per_head), own, earlier, mix)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, wanted, strict=True))


@each_mix
@each_kept
@pytest.mark.parametrize("chunk", [20, 1 << 16])
def test_gradcheck(kept, per_head, chunk, monkeypatch):
    monkeypatch.setattr(mixing, "CHUNK", chunk)
    own, earlier, pairs, mix = draw(kept, per_head, rows=(2, 3))
    inputs = [t.requires_grad_() for t in (own, mix, *earlier)]
    assert torch.autograd.gradcheck(lambda o, m, *e: mix_values(o, e, pairs, m, per_head, D), inputs)


@each_mix
@pytest.mark.parametrize("chunk", [1, 7, 50, 61])
def test_chunks_make_no_difference(per_head, chunk, monkeypatch):
    own, earlier, pairs, mix = draw(KEPT["gaps"], per_head)
    whole = mix_values(own, earlier, pairs, mix, per_head, D)
    monkeypatch.setattr(mixing, "CHUNK", chunk)
    assert torch.equal(mix_values(own, earlier, pairs, mix, per_head, D), whole)


@each_mix
@each_kept
def test_mixes_of_zero_change_no_bit(kept, per_head):
    own, earlier, pairs, mix = draw(kept, per_head, dtype=torch.float32)
    assert torch.equal(mix_values(own, earlier, pairs, torch.zeros_like(mix), per_head, D), own)


@each_mix
def test_what_goes_in_stays_as_it_was(per_head):
    own, earlier, pairs, mix = draw(KEPT["uneven"], per_head)
    before = [t.clone() for t in (own, mix, *earlier)]
    out = mix_values(own, earlier, pairs, mix, per_head, D)
    assert all(torch.equal(a, b) for a, b in zip(before, (own, mix, *earlier), strict=True))
    assert out.data_ptr() != own.data_ptr()


@each_mix
def test_values_need_not_be_contiguous(per_head):
    """They are slices of what qkv gives, or one row for all tokens."""
    own, earlier, pairs, mix = draw(KEPT["gaps"], per_head)
    wanted = mix_values(own, earlier, pairs, mix, per_head, D)
    wide = [torch.cat([torch.zeros_like(t), t], -1).split(t.shape[-1], -1)[1] for t in (own, *earlier)]
    assert not any(t.is_contiguous() for t in wide)
    assert torch.equal(mix_values(wide[0], wide[1:], pairs, mix, per_head, D), wanted)
    one = own[:1, :1]
    found = mix_values(one.expand_as(own), earlier, pairs, mix, per_head, D)
    assert torch.equal(found, mix_values(one.repeat(3, 5, 1), earlier, pairs, mix, per_head, D))


@each_mix
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision(per_head, dtype, gap):
    own, earlier, pairs, mix = draw(KEPT["uneven"], per_head)
    found = mix_values(own.to(dtype), [e.to(dtype) for e in earlier], pairs, mix.float(), per_head, D)
    assert found.dtype == dtype
    assert gap(found.double(), mix_values(own, earlier, pairs, mix, per_head, D)) < 0.03


@each_mix
def test_mixes_learn_where_nothing_else_does(per_head):
    own, earlier, pairs, mix = draw(KEPT["uneven"], per_head)
    out = mix_values(own, earlier, pairs, mix.requires_grad_(), per_head, D)
    (found,) = torch.autograd.grad(out.sum(), mix)
    assert (found != 0).all()


@each_mix
@each_kept
def test_a_compiler_sees_the_same_sum(kept, per_head, monkeypatch):
    own, earlier, pairs, mix = draw(kept, per_head)
    wanted = mix_values(own, earlier, pairs, mix, per_head, D)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(mix_values(own, earlier, pairs, mix, per_head, D), wanted, rtol=1e-14, atol=1e-14)
    found = gradients(lambda o, e, m: mix_values(o, e, pairs, m, per_head, D), own, earlier, mix)
    expected = gradients(lambda o, e, m: plain_sum(o, e, kept, m, per_head), own, earlier, mix)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, expected, strict=True))


@each_stage
def test_pairs_are_the_earlier_blocks_that_share_a_head(kept):
    for block, pairs in enumerate(pairs_of(kept)):
        assert [p.earlier for p in pairs] == [i for i in range(block) if set(kept[i]) & set(kept[block])]
        for pair in pairs:
            assert set(pair.heads) == set(kept[pair.earlier]) & set(kept[block])
            assert list(pair.heads) == sorted(pair.heads)
            assert [kept[block][i] for i in pair.here] == list(pair.heads)
            assert [kept[pair.earlier][i] for i in pair.there] == list(pair.heads)


@each_stage
def test_runs_are_the_shared_heads_in_as_few_pieces_as_possible(kept):
    for pair in (pair for pairs in pairs_of(kept) for pair in pairs):
        spread = [(here + i, there + i) for here, there, n in pair.runs for i in range(n)]
        assert spread == list(zip(pair.here, pair.there, strict=True))
        for (a, b, n), (c, d, _) in zip(pair.runs, pair.runs[1:], strict=False):
            assert (a + n, b + n) != (c, d)


def test_blocks_that_keep_every_head_mix_in_one_run():
    assert {pair.runs for pairs in pairs_of([range(6)] * 4) for pair in pairs} == {((0, 0, 6),)}


@each_stage
def test_one_mix_a_pair_or_one_a_pair_and_shared_head(kept):
    for pairs in pairs_of(kept):
        assert mix_size(pairs, False) == len(pairs)
        assert mix_size(pairs, True) == sum(len(p.heads) for p in pairs)


@pytest.mark.parametrize(("depths", "count"), [((12,), 66), ((2, 2, 6, 2), 18), ((2, 2, 18, 2), 156)])
def test_number_of_mixes(depths, count):
    assert sum(mix_size(pairs, False) for depth in depths for pairs in pairs_of([(0, 1)] * depth)) == count
