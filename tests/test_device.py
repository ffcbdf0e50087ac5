"""`device` is where everything is: shown without a second device.

Modules are built on `meta`, which holds no data. In an iteration, any tensor that is made without a
device would be made on the CPU and fail beside tensors of a GPU: there must be none.
"""

import itertools

import pytest
import torch
from probes import compose_config
from torch.overrides import TorchFunctionMode

from rlopt.build import make_trainer
from rlopt.linalg import flatten

FACTORIES = {
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.ones, torch.rand,
    torch.randn, torch.tensor, torch.zeros,
}  # fmt: skip
COMBINATIONS = [
    *(("gae", "mlp", "steps", algo) for algo in ("pg", "npg", "trpo", "ppo", "ppo_clip")),
    ("reward_to_go", "linear", "episodes", "npg"),
    ("td", "zero", "steps", "trpo"),
]


class WithoutDevice(TorchFunctionMode):
    """Records the factory calls that name no device."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FACTORIES and kwargs.get("device") is None:
            self.calls.append(func.__name__)
        return func(*args, **kwargs)


def build(tmp_path, *overrides):
    return make_trainer(compose_config("env.num_envs=4", *overrides), tmp_path)


def test_a_tensor_without_a_device_is_recorded():
    with WithoutDevice() as mode:
        torch.zeros(3)
        torch.zeros(3, device="cpu")
        torch.zeros(3).new_zeros(2)
    assert mode.calls == ["zeros", "zeros"]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("advantage", "baseline", "rollout", "algo"), COMBINATIONS)
def test_an_iteration_makes_every_tensor_on_the_configured_device(
    tmp_path, env, advantage, baseline, rollout, algo
):
    size = "rollout.num_steps=16" if rollout == "steps" else "rollout.episodes=4"
    choices = [f"advantage={advantage}", f"baseline={baseline}", f"rollout={rollout}", size]
    short = ["total_steps=1", "eval.final_episodes=1", "env.max_episode_steps=20"]
    trainer = build(tmp_path, f"algo={algo}", f"env={env}", *choices, *short)
    with WithoutDevice() as mode:
        trainer.train()
    assert mode.calls == []


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("baseline", ["mlp", "linear", "zero"])
def test_networks_and_their_buffers_are_on_the_configured_device(
    tmp_path, monkeypatch, env, baseline
):
    monkeypatch.setattr("rlopt.config._use_device", lambda device: None)  # nothing runs on meta
    trainer = build(tmp_path, "algo=pg", f"env={env}", f"baseline={baseline}", "device=meta")
    modules = (trainer.policy, trainer.baseline)
    tensors = itertools.chain(*((*m.parameters(), *m.buffers()) for m in modules))
    optimized = [p for group in trainer.rule.optimizer.param_groups for p in group["params"]]
    assert {t.device.type for t in (*tensors, *optimized)} == {"meta"}
    assert flatten(trainer.policy.parameters()).device.type == "meta"
    assert str(trainer.rollout.recorder.device) == "meta"
