"""Images stay bytes in rollouts and batches, and training is that on the same numbers as floats."""

import numpy as np
import pytest
import torch
from probes import compose_config, make_env, make_policy
from test_combinations import metrics_of

from rlopt import load
from rlopt.export import Greedy, export
from rlopt.normalize import MAX_FEATURES, RunningNorm
from rlopt.rollout import StepRollout
from rlopt.types import obs_tensor

BASELINES = ["zero", "linear", "mlp"]
SMALL = [
    "~tuned",
    "env=Bytes-v0",
    "env.num_envs=4",
    "rollout.num_steps=16",
    "total_steps=120",
    "eval.final_episodes=4",
]
FLOATS = "env.wrappers=[{_target_: gymnasium.wrappers.DtypeObservation, dtype: float32}]"


def test_a_rollout_of_images_holds_bytes():
    env = make_env("Bytes-v0", 2)
    rollout = StepRollout(env, "cpu", 0, num_steps=5).collect(make_policy(env))
    assert rollout.obs.dtype == torch.uint8
    assert rollout.obs.shape == (6, 2, 48)
    assert rollout.reward.dtype == torch.float32
    wide = StepRollout(make_env("CartPole-v1", 2), "cpu", 0, num_steps=5)
    assert wide.collect(make_policy(wide.recorder.env)).obs.dtype == torch.float32


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("baseline", BASELINES)
def test_bytes_train_as_the_same_floats_do(baseline, normalize, tmp_path):
    choices = [f"baseline={baseline}", f"policy.normalize_obs={normalize}".lower()]
    if baseline != "zero":
        choices.append("baseline.sees_step=true")
    ours, floats = (
        metrics_of(compose_config(*SMALL, *choices, *more), tmp_path / str(len(more)))
        for more in ([], [FLOATS])
    )
    for row, other in zip(ours, floats, strict=True):
        for tag in row.keys() - {"time/steps_per_second", "time/rollout_share"}:
            assert row[tag] == other[tag], tag


def test_statistics_of_many_features_are_those_of_each():
    x = torch.randint(256, (50, 2 * MAX_FEATURES + 3), dtype=torch.uint8)
    norm = RunningNorm(x.shape[1])
    norm.update(x[:20])
    norm.update(x[20:])
    torch.testing.assert_close(norm.mean, x.double().mean(0))
    torch.testing.assert_close(norm.var, x.double().var(0, unbiased=False))
    assert torch.equal(norm(x), norm(x.float()))


def test_a_program_of_images_takes_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("rlopt.export.has_onnx", lambda: False)
    env = make_env("Bytes-v0")
    policy = make_policy(env)
    x = obs_tensor(env.reset(seed=0)[0], torch.float32, policy, "cpu")
    policy.update_statistics(x)
    (path,) = export(Greedy(policy, env.single_action_space), x, tmp_path)
    images = torch.randint(256, (9, 48), dtype=torch.uint8)
    program = torch.export.load(path).module()
    assert torch.equal(program(images), policy(images).mode)


def test_a_loaded_policy_takes_images(tmp_path):
    from test_train_script import train

    policy = load(train(tmp_path / "run", "env=Spot-v0"))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    assert policy(image) in policy.action_space
    assert policy(np.stack([image, image])).tolist() == [policy(image.astype(float))] * 2
