import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from slimvit.measure.flops import meta
from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params, flop_part_of, params_by_part
from slimvit.models.empty import EmptyAttention
from slimvit.utils.errors import ModelError


def small(**kwargs) -> VisionTransformer:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
    return VisionTransformer(**(settings | kwargs))


def on_meta(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def without_heads(model: VisionTransformer, block: int, heads: int) -> None:
    """Remove the last ``heads`` heads of a block by hand."""
    attn = model.blocks[block].attn
    attn.num_heads -= heads
    attn.attn_dim = attn.num_heads * attn.head_dim
    attn.qkv = nn.Linear(attn.qkv.in_features, 3 * attn.attn_dim)
    attn.proj = nn.Linear(attn.attn_dim, attn.proj.out_features)


@pytest.mark.parametrize(
    ("name", "total", "without_norm"),
    [
        ("deit_tiny_patch16_224", 1_258_411_200, 1_253_683_200),
        ("deit_small_patch16_224", 4_608_338_304, 4_598_882_304),
    ],
)
def test_published_models(name, total, without_norm):
    count = count_macs(on_meta(name))
    assert (count.total, count.without_norm) == (total, without_norm)
    assert count.closed_form == count.torch_counter == without_norm
    assert count.agrees and count.uncounted == () and count.disagreement() is None


def test_attention_is_seen_by_every_counter():
    """Fails when a torch or timm release renames attention's operator, so that a counter misses it again."""
    model = small()
    tokens, expected = 17, 2 * 17 * 17 * 48
    count = count_macs(model)
    assert count.torch_counter is not None
    assert [b["attention"] for b in count.by_block] == [expected] * 3
    assert count.torch_counter == count.without_norm == count.closed_form
    assert count.by_block[0]["qkv"] == tokens * 48 * 3 * 48


def test_equals_the_unfused_path():
    fused, unfused = small(), small()
    for block in unfused.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    assert count_macs(fused) == count_macs(unfused)


VARIANTS = {
    "registers": {"reg_tokens": 4},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "average over patches": {"global_pool": "avg"},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "attention pooling of all tokens": {"global_pool": "map"},
    "CLIP": {"pre_norm": True, "norm_layer": nn.LayerNorm},
    "qk_norm": {"qk_norm": True},
    "LayerScale": {"init_values": 1e-5},
    "no classifier": {"num_classes": 0},
    "any size": {"dynamic_img_size": True},
}


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS.keys())
def test_counters_agree(kwargs):
    model = small(**kwargs)
    count = count_macs(model)
    assert count.without_norm == count.closed_form == count.torch_counter, count.disagreement()
    assert count.uncounted == ()
    assert sum(count.by_part.values()) == count.total
    assert count.by_part["other"] == 0
    assert sum(params_by_part(model).values()) == count_params(model)


def test_gated_attention_counts_the_gate_with_qkv():
    model, plain = small(), count_macs(small())
    for block in model.blocks:
        block.attn.gate = nn.Linear(48, 48)
    count = count_macs(model)
    assert count.agrees
    assert count.by_part["qkv"] - plain.by_part["qkv"] == 3 * 17 * 48 * 48


def test_distilled_model_has_two_heads():
    count = count_macs(on_meta("deit_tiny_distilled_patch16_224", depth=1))
    assert count.agrees and count.by_part["head"] == 2 * 192 * 1000


def test_norms_have_a_line_of_their_own():
    plain, qk_norm = count_macs(small()), count_macs(small(qk_norm=True))
    assert plain.by_part["norm"] == 5 * 17 * 48 * (2 * 3 + 1)
    assert qk_norm.by_part["norm"] - plain.by_part["norm"] == 5 * 17 * 48 * 2 * 3
    assert qk_norm.without_norm == plain.without_norm


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_uneven_heads_and_a_block_without_attention():
    model = small()
    full = count_macs(model)
    without_heads(model, 0, 1)
    without_heads(model, 1, 2)
    block = model.blocks[2]
    block.attn, block.norm1 = EmptyAttention(16, block.attn.proj), nn.Identity()
    count = count_macs(model)
    assert count.agrees, count.disagreement()
    for part in ("qkv", "attention", "proj"):
        assert [3 * b[part] for b in count.by_block] == [2 * full.by_block[0][part], full.by_block[0][part], 0]
    assert [b["mlp"] for b in count.by_block] == [b["mlp"] for b in full.by_block]


def test_pruned_mlp_neurons_are_gone_from_the_count():
    model = small()
    model.blocks[1].mlp.fc1, model.blocks[1].mlp.fc2 = nn.Linear(48, 96), nn.Linear(96, 48)
    count = count_macs(model)
    assert count.agrees and 2 * count.by_block[1]["mlp"] == count.by_block[0]["mlp"]


def test_the_model_is_left_as_it_was():
    model = small(drop_path_rate=0.5).train()
    model.blocks[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    ran = []
    model.register_buffer("_mark", torch.ones(1), persistent=False)
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: ran.append(1))
    count_macs(model)
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(model.blocks[0].attn.qkv._forward_hooks) == 1


def test_half_precision_and_meta_count_the_same():
    model = small()
    with torch.device("meta"):
        assert count_macs(small()) == count_macs(model) == count_macs(small().bfloat16())


def test_input_size():
    model = small(dynamic_img_size=True)
    assert count_macs(model, (3, 64, 32)).by_part["patch_embed"] == 2 * count_macs(model).by_part["patch_embed"]
    with pytest.raises(ModelError, match="VisionTransformer does not take images of 3x40x40: .*40.*32"):
        count_macs(small(), (3, 40, 40))
    with pytest.raises(ModelError, match=r"Linear names no input size; give count_macs one, like \(3, 224, 224\)"):
        count_macs(nn.Linear(3, 3))


class WithMystery(VisionTransformer):
    """Multiplies with an operator fvcore does not know, and with one that no closed form knows."""

    def forward_head(self, x, pre_logits=False):
        x = super().forward_head(x, pre_logits)
        return torch.cdist(x, x) + (x @ torch.ones(10, 4000)).sum(dim=1, keepdim=True)


def test_skipped_operators_and_disagreement_are_said():
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 10}
    model = WithMystery(**settings)
    count = count_macs_on_cpu(model)
    assert count.uncounted == ("cdist",)
    assert not count.agrees
    assert "counters disagree by more than 0.1 % (without norms: fvcore" in count.disagreement()
    assert "leaves out operators it does not know: cdist" in count.disagreement()


def count_macs_on_cpu(model):
    """torch's counter left out: the mystery model makes CPU tensors of its own, which meta refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slimvit.measure.flops.count.torch_count", lambda *_: None)
        return count_macs(model)


def test_torch_counter_that_misses_attention_is_not_used(monkeypatch):
    monkeypatch.setattr(meta, "_sees_attention", meta._sees_attention.__wrapped__)  # asked anew
    monkeypatch.setattr(meta, "_halved", lambda call: 0)
    count = count_macs(small())
    assert count.torch_counter is None and count.agrees


def test_swin_counts_its_patch_merging():
    with torch.device("meta"):
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, depths=(1, 2), num_heads=(3, 6), embed_dim=48
        )
    count = count_macs(model)
    assert count.without_norm == count.closed_form == count.torch_counter
    assert count.by_part["reduction"] > 0 and count.by_part["other"] == 0 and len(count.by_block) == 3
    assert "reduction" in params_by_part(model)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.3.attn.qkv.weight", "qkv"),
        ("layers.1.blocks.0.attn.relative_position_bias_table", "attention"),
        ("layers.1.downsample.reduction.weight", "reduction"),
        ("blocks.3.attn.mix", "mixes"),
        ("attn_pool.mlp.fc1.weight", "head"),
        ("patch_embed.proj.weight", "patch_embed"),
        ("head_dist.bias", "head"),
        ("cls_token", "other"),
    ],
)
def test_part_of(name, part):
    assert flop_part_of(name) == part


def test_params_by_part():
    parts = params_by_part(small())
    assert parts["qkv"] == 3 * (48 * 144 + 144)
    assert parts["norm"] == 7 * 2 * 48
    assert parts["other"] == 17 * 48 + 48
