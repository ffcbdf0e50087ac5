"""Five probe environments x five rules learn through the real trainer.

The first probe that fails names the fault; see probes.py.
"""

import pytest
import torch
from probes import compose_config

from rlopt.build import make_trainer

GAMMA = 0.5
RULES = {
    "pg": ["algo.optimizer.lr=0.05"],
    "npg": ["algo.max_kl=0.1"],
    "trpo": ["algo.max_kl=0.1"],
    "ppo": ["algo.optimizer.lr=0.02", "algo.epochs=5", "algo.target_kl=0.1"],
    "ppo_clip": ["algo.optimizer.lr=0.02", "algo.epochs=5"],
}
KINDS = pytest.mark.parametrize("kind", ["", "Continuous"], ids=["Discrete", "Box"])
ALGOS = pytest.mark.parametrize("algo", RULES)


@pytest.fixture
def train(tmp_path):
    def run(algo, env_id, iterations):
        """Iterations of 64 steps: half of 16 x 8 rows are resets where an episode is one step."""
        cfg = compose_config(
            f"algo={algo}",
            f"env={env_id}-v0",
            "~tuned",
            f"gamma={GAMMA}",
            "env.num_envs=16",
            "env.backend=sync",
            "rollout.num_steps=8",
            f"total_steps={iterations * 64}",
            "policy.hidden_sizes=[8]",
            "baseline.hidden_sizes=[8]",
            "baseline.epochs=3",
            "baseline.damping=0.001",
            "eval.final_episodes=16",
            *RULES[algo],
        )
        trainer = make_trainer(cfg, tmp_path)
        evaluation = trainer.train()
        trainer.logger.close()
        return trainer, evaluation

    return run


def value(trainer, obs, step=0):
    with torch.no_grad():
        return float(trainer.baseline(torch.tensor([obs]), torch.tensor(step)))


@KINDS
@ALGOS
def test_constant_reward_has_value_1(train, algo, kind):
    trainer, _ = train(algo, f"ConstantReward{kind}", 4)
    assert abs(value(trainer, 0.0) - 1) < 0.05


@KINDS
@ALGOS
def test_reward_that_is_the_observation_has_that_value(train, algo, kind):
    trainer, _ = train(algo, f"RewardIsObservation{kind}", 6)
    for obs in (-1.0, 1.0):
        assert abs(value(trainer, obs) - obs) < 0.05


@KINDS
@ALGOS
def test_a_reward_one_step_later_is_discounted(train, algo, kind):
    trainer, _ = train(algo, f"TwoSteps{kind}", 10)
    assert abs(value(trainer, 0.0, 0) - GAMMA) < 0.05
    assert abs(value(trainer, 1.0, 1) - 1) < 0.05


@KINDS
@ALGOS
def test_the_better_action_is_learnt(train, algo, kind):
    trainer, evaluation = train(algo, f"RewardIsAction{kind}", 20)
    assert evaluation.mean > 0.9
    assert value(trainer, 0.0) > 0.6


@KINDS
@ALGOS
def test_the_better_action_is_learnt_for_each_observation(train, algo, kind):
    trainer, evaluation = train(algo, f"RewardIsProduct{kind}", 25)
    assert evaluation.mean > 0.9
    for obs in (-1.0, 1.0):
        assert value(trainer, obs) > 0.6
