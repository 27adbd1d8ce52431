import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria import elimination as eliminate_module
from slimvit.prune.criteria import statistics
from slimvit.prune.criteria.calibration import batch_loss, observe
from slimvit.prune.criteria.elimination import DAMPING
from slimvit.prune.criteria.residual import MILESTONES, rank
from slimvit.prune.criteria.statistics import BranchMoments, MomentSums


def case(units, width, outputs=7, seed=0):
    """Statistics of 12 images of 5 tokens whose features depend on each other, and weights."""
    g = torch.Generator().manual_seed(seed)
    k = units * width
    z = torch.randn(12, 5, k, generator=g, dtype=torch.float64) @ torch.randn(k, k, generator=g, dtype=torch.float64)
    z = z - z.mean((0, 1))
    gradients = torch.randn(12, 5, outputs, generator=g, dtype=torch.float64) + torch.randn(12, 1, outputs, generator=g)
    a = z.mT @ gradients
    flat = z.flatten(0, 1)
    seen = BranchMoments(flat.T @ flat / len(flat), (a @ a.mT).mean(0), (a.mT @ a).mean(0))
    return seen, torch.randn(k, outputs, generator=g, dtype=torch.float64)


def rise(seen, weight, gone, width):
    """trace(E[A^T A] P^T E[A A^T] P) / trace(E[A A^T]), P from the least squares that the refit solves."""
    lost = torch.zeros(len(weight), dtype=torch.bool)
    for unit in gone:
        lost[unit * width : (unit + 1) * width] = True
    damping = DAMPING * seen.covariance.diagonal().mean()
    covariance = seen.covariance + damping * torch.eye(len(weight), dtype=torch.float64)
    root = torch.linalg.cholesky(covariance).T  # S = root^T root
    p = torch.where(lost[:, None], weight, 0.0)
    if not lost.all():
        p[~lost] = -torch.linalg.lstsq(root[:, ~lost], root[:, lost] @ weight[lost]).solution
    return float((p.T @ seen.inputs @ p @ seen.outputs).trace() / seen.inputs.trace())


@pytest.mark.parametrize(("units", "width"), [(4, 3), (20, 1), (1, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_costs_add_up_to_the_rise_of_what_is_gone(units, width, seed):
    seen, weight = case(units, width, seed=seed)
    order, costs, alone = rank(seen, weight, width)
    assert sorted(order) == list(range(units)) and min(costs) >= 0
    stops = range(1, units + 1) if width > 1 else {max(1, round(m * units)) for m in MILESTONES}
    highest = 0.0
    for stop in sorted(stops):  # a stop cheaper than one before it counts as much
        highest = max(highest, rise(seen, weight, order[:stop], width))
        assert sum(costs[:stop]) == pytest.approx(highest, rel=1e-6)
    assert alone == pytest.approx([rise(seen, weight, [u], width) for u in range(units)], rel=1e-6)


def test_tokens_whose_errors_add_up_cost_more():
    """The same features and gradients token by token, once with signs that cancel within an image."""
    seen, weight = case(4, 3)
    g = torch.Generator().manual_seed(1)
    z, gradients = (torch.randn(200, n, generator=g, dtype=torch.float64) for n in (12, 7))
    found = []
    for signs in ([1, 1, 1, 1], [1, -1, 1, -1]):
        a = (z[:, None] * torch.tensor(signs)[:, None]).mT @ gradients[:, None].expand(-1, 4, -1)
        a = a + 0.1 * torch.randn(200, 12, 7, generator=g, dtype=torch.float64)
        moments = BranchMoments(seen.covariance, (a @ a.mT).mean(0), (a.mT @ a).mean(0))
        found.append(sum(rank(moments, weight, 3)[1]))
    assert found[0] > 100 * found[1]


def test_a_copy_of_another_unit_costs_nothing_alone(monkeypatch):
    monkeypatch.setattr(eliminate_module, "DAMPING", 1e-6)
    seen, weight = case(5, 1)
    again = [*range(5), 2]
    covariance, inputs = (t[again][:, again] for t in (seen.covariance, seen.inputs))
    twice = BranchMoments(covariance, inputs, seen.outputs)
    order, costs, alone = rank(twice, torch.cat([weight, weight[:1]]), 1)
    assert order[0] in (2, 5) and max(alone[2], alone[5]) < 0.05 * max(alone) and costs[0] < 0.05 * max(alone)


def test_nothing_to_rank():
    seen = BranchMoments(torch.zeros(0, 0), torch.zeros(0, 0), torch.eye(3))
    assert rank(seen, torch.zeros(0, 3), 1) == ((), (), ())


def test_what_no_gradient_reaches_costs_nothing():
    seen, weight = case(6, 1)
    still = BranchMoments(seen.covariance, 0 * seen.inputs, 0 * seen.outputs)
    order, costs, alone = rank(still, weight, 1)
    assert sorted(order) == list(range(6)) and costs == alone == (0.0,) * 6


@pytest.mark.parametrize("by_tokens", [True, False])
def test_moments_of_the_weight_gradients(by_tokens, vit, batches, monkeypatch):
    """Against autograd, an image at a time; by the products of the tokens and by the gradients themselves."""
    model = vit()
    data = batches(model, count=2, size=4)
    if not by_tokens:
        monkeypatch.setattr(statistics, "_by_tokens", lambda z, grad: False)
    found = observe(model, data, "labels", MomentSums, parts=("heads", "mlp"))
    for part in ("heads", "mlp"):
        for i, block in enumerate(attention_blocks(model)):
            out = block.attn.proj if part == "heads" else block.mlp.fc2
            entered = []
            hook = out.register_forward_pre_hook(lambda _, args, entered=entered: entered.append(args[0].detach()))
            with torch.no_grad():
                for images, _ in data:
                    model(images)
            hook.remove()
            means = (
                torch.cat(entered).double().mean(1).cumsum(0) / torch.arange(1, 9)[:, None]
            )  # of the images up to it
            inputs, outputs = 0.0, 0.0
            pairs = ((x, y) for images, labels in data for x, y in zip(images, labels, strict=True))
            for (image, label), mean in zip(pairs, means, strict=True):
                loss = F.cross_entropy(model(image[None]), label[None])
                weight, bias = torch.autograd.grad(loss, (out.weight, out.bias))
                a = weight.T.double() - torch.outer(mean, bias.double())  # sum over tokens of (z - mean) g^T
                inputs, outputs = inputs + a @ a.T / 8, outputs + a.T @ a / 8
            seen = found[part][i]
            assert (seen.inputs - inputs).norm() < 1e-3 * inputs.norm()
            assert (seen.outputs - outputs).norm() < 1e-3 * outputs.norm()
            assert seen.inputs.trace() == pytest.approx(float(seen.outputs.trace()), rel=1e-4)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[2.0, -1.0, 0.5, 0.0]], dtype=torch.float64))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_random_signs_are_a_root_of_the_fisher_information(monkeypatch):
    model = Classifier()
    total = torch.zeros(4, 4, dtype=torch.float64)
    for signs in itertools.product([0, 1], repeat=4):
        monkeypatch.setattr(torch, "randint", lambda *_, signs=signs, **__: torch.tensor([signs]))
        loss = batch_loss(model, torch.zeros(1, 3, 2, 2), torch.tensor([-1]), "signs", torch.Generator())
        (gradient,) = torch.autograd.grad(loss, model.logits)
        total += gradient.T @ gradient / 16
    p = model.logits.detach().softmax(-1)[0]
    assert torch.allclose(total, torch.diag(p) - torch.outer(p, p), atol=1e-6)
