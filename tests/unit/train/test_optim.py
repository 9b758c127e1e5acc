import math
import subprocess
import sys

import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from torch import nn

from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import AdamSpec, AdamWSpec, CosineSpec, MilestonesSpec, SGDSpec
from ssl_backdoor.train.optim import build_optimizer, build_schedule
from tests.support.tiny_training import objective


@pytest.mark.parametrize(
    ("spec", "expected"),
    [  # 4 epochs of 2 steps, peak 1
        (CosineSpec(), [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (0, 0, 1, 1, 2, 2, 3, 3)]),
        (CosineSpec(per="step"), [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]),
        (
            CosineSpec(per="step", warmup_epochs=1),
            [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * done / 6)) for done in range(6))],
        ),
        (
            CosineSpec(per="step", warmup_steps=4),
            [0.25, 0.5, 0.75, 1.0, *(0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4))],
        ),
        (MilestonesSpec(milestones=(1, 3), factor=0.2), [1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04]),
        (MilestonesSpec(milestones=(2,), factor=0.5, warmup_steps=3), [1 / 3, 2 / 3, 1, 1, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_schedules(spec: CosineSpec | MilestonesSpec, expected: list[float]) -> None:
    schedule = build_schedule(spec, 2.0, 4, 2)
    assert [schedule(step) for step in range(8)] == pytest.approx([2 * value for value in expected])


def quadratic_path(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> list[float]:
    path = []
    for _ in range(3):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        path.append(weight.item())
    return path


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbooks(nesterov: bool) -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    spec = SGDSpec(lr=0.1, sgd_momentum=0.9, weight_decay=0.5, nesterov=nesterov)
    path = quadratic_path(build_optimizer(spec, [weight]), weight)
    w, velocity, expected = 1.0, 0.0, []
    for _ in range(3):
        gradient = 2 * w + 0.5 * w
        velocity = 0.9 * velocity + gradient
        w -= 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
        expected.append(w)
    assert path == pytest.approx(expected)


def test_adam_is_the_textbooks() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    path = quadratic_path(build_optimizer(AdamSpec(lr=0.1, weight_decay=0.5), [weight]), weight)
    w, m, v, expected = 1.0, 0.0, 0.0, []
    for step in range(1, 4):
        gradient = 2 * w + 0.5 * w
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
        expected.append(w)
    assert path == pytest.approx(expected, rel=1e-5)


def test_adamw_is_the_textbooks_and_decays_matrices_alone() -> None:
    spec = AdamWSpec(lr=0.1, weight_decay=0.5, beta2=0.98)
    for shape, decay in (((1, 1), 0.5), ((1,), 0.0), ((), 0.0)):
        weight, other = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(2, 2))
        path = quadratic_path(build_optimizer(spec, [weight, other]), weight)
        w, m, v, expected = 1.0, 0.0, 0.0, []
        for step in range(1, 4):
            m, v = 0.9 * m + 0.1 * 2 * w, 0.98 * v + 0.02 * (2 * w) ** 2
            w -= 0.1 * decay * w
            w -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.98**step)) + 1e-8)
            expected.append(w)
        assert path == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["jigsaw", "clip"])
def test_sgd_spares_what_upstream_spares(kind: str) -> None:
    """open_clip's rule (open_clip_train/main.py); for ResNets it is Saha et al.'s: no bias and no BatchNorm."""
    method = objective(kind)
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(SGDSpec(weight_decay=0.02, decays="matrices"), named.values())
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    spared = {
        name
        for name, p in named.items()
        if p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    }
    assert spared
    assert {name for name, p in named.items() if id(p) not in decaying} == spared
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)
    (everything,) = build_optimizer(SGDSpec(weight_decay=0.02), named.values()).param_groups
    assert len(everything["params"]) == len(named)


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "warmup_epochs"), [(30, 7, 2), (5, 3, 0), (3, 10, 0.25)])
def test_the_cosine_is_open_clips_at_every_step(epochs: int, steps_per_epoch: int, warmup_epochs: float) -> None:
    steps, warmup_steps = epochs * steps_per_epoch, round(warmup_epochs * steps_per_epoch)
    theirs = cosine_lr(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 2e-3, warmup_steps, steps)
    ours = build_schedule(CosineSpec(per="step", warmup_epochs=warmup_epochs), 2e-3, epochs, steps_per_epoch)
    assert [ours(step) for step in range(steps)] == pytest.approx([theirs(step) for step in range(steps)], rel=1e-12)


@pytest.mark.parametrize("spec", [SGDSpec(lr=0.1), AdamSpec(lr=0.1), AdamWSpec(lr=0.1)])
def test_memory_layout_does_not_matter(spec: SGDSpec | AdamSpec | AdamWSpec) -> None:
    """Fused kernels walk weight, gradient and state side by side: they must lie alike in channels-last too."""
    images = torch.randn(2, 4, 5, 5, generator=torch_generator(0, "images"))
    start = torch.randn(3, 4, 3, 3, generator=torch_generator(0, "weight"))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone(memory_format=layout))
        optimizer = build_optimizer(spec, [weight])
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.conv2d(images.contiguous(memory_format=layout), weight).square().mean().backward()
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(results[1], results[0])


def test_all_reach_a_minimum() -> None:
    goal = torch.randn(4, generator=torch_generator(0, "goal"))
    for spec in (SGDSpec(lr=0.05, weight_decay=0), AdamSpec(lr=0.1, weight_decay=0), AdamWSpec(lr=0.1)):
        weight = nn.Parameter(torch.zeros(4))
        optimizer = build_optimizer(spec, [weight])
        for _ in range(300):
            optimizer.zero_grad()
            ((weight - goal) ** 2).sum().backward()
            optimizer.step()
        torch.testing.assert_close(weight.detach(), goal, atol=1e-2, rtol=0)


TRAINING = """
import sys, torch
from ssl_backdoor.methods.backbones import ResNet, build_with_torchvision_init
from ssl_backdoor.specs import AdamWSpec, ResNetSpec
from ssl_backdoor.train import fit, pretrain
from ssl_backdoor.train.optim import build_optimizer

backbone = build_with_torchvision_init(lambda: ResNet(ResNetSpec(depth=8, width=4), 1), torch.Generator())
optimizer = build_optimizer(AdamWSpec(lr=0.1), backbone.parameters())
optimizer.zero_grad()
torch.autograd.backward(backbone(torch.ones(2, 3, 16, 16)).sum())
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""


def test_training_leaves_the_compiler_unimported() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
