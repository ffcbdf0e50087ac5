"""Every rule learns to remember with a recurrent policy, and none can with a flat one."""

import pytest
from oracles import RULES
from probes import compose_config

from rlopt.build import make_trainer
from rlopt.verify import verify

SMALL = ["policy=gru", "policy.state_size=8", "baseline.hidden_sizes=[8]", "~tuned"]
FEW = ["env.num_envs=4", "env.max_episode_steps=9", "rollout.num_steps=16"]
TMAZE = {
    "pg": ["algo.optimizer.lr=0.03"],
    "npg": ["algo.max_kl=0.05"],
    "trpo": ["algo.max_kl=0.05"],
    "ppo": ["algo.optimizer.lr=0.01", "algo.minibatch_size=32", "algo.epochs=4"],
    "ppo_clip": ["algo.optimizer.lr=0.01", "algo.minibatch_size=32", "algo.epochs=4"],
}


def return_in_the_maze(policy, algo, folder, *overrides):
    groups = [f"algo={algo}", "env=TMaze-v0", f"policy={policy}", "rollout=episodes", "~tuned"]
    values = ["rollout.episodes=32", "env.num_envs=32", "gamma=1", "total_steps=3200"]
    more = ["baseline.hidden_sizes=[8]", "eval.every=800", "eval.final_episodes=200"]
    more += ["eval.episodes=32", "stop_at_return=1"]
    cfg = compose_config(*groups, *values, *more, *TMAZE[algo], *overrides)
    trainer = make_trainer(cfg, folder)
    evaluation = trainer.train()
    trainer.logger.close()
    return evaluation.mean


@pytest.mark.parametrize("algo", RULES)
def test_the_sign_at_the_start_of_the_maze_is_remembered_to_its_end(algo, tmp_path):
    assert return_in_the_maze("gru", algo, tmp_path, "policy.state_size=8") == 1.0


@pytest.mark.parametrize("algo", ["npg", pytest.param("ppo", marks=pytest.mark.slow)])
def test_without_memory_the_turn_is_a_guess(algo, tmp_path):
    mean = return_in_the_maze("mlp", algo, tmp_path, "policy.hidden_sizes=[8]")
    assert abs(mean) < 4 / 200**0.5  # a sign that it can't know: 0, within four standard errors


@pytest.mark.slow
def test_a_pole_whose_velocity_is_not_shown_is_balanced_from_memory(tmp_path):
    means = {}
    for policy, size in (("gru", "policy.state_size=32"), ("mlp", "policy.hidden_sizes=[64,64]")):
        groups = ["algo=npg", "env=Positions-v0", f"policy={policy}", size, "~tuned"]
        values = ["env.num_envs=32", "rollout.num_steps=64", "total_steps=150000"]
        cfg = compose_config(*groups, *values, "eval.every=1000000")
        trainer = make_trainer(cfg, tmp_path / policy)
        means[policy] = trainer.train().mean
        trainer.logger.close()
    assert means["gru"] > 200
    assert means["mlp"] < 80


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "algo", ["npg", *(pytest.param(a, marks=pytest.mark.slow) for a in RULES if a != "npg")]
)
def test_the_audit_of_scripts_verify_passes(algo, tmp_path):
    cfg = compose_config(f"algo={algo}", "env=CartPole-v1", *SMALL, *FEW)
    trainer = make_trainer(cfg, tmp_path)
    trainer.logger.close()
    rows = verify(trainer)
    assert [(name, row) for name, row in rows if row.verdict == "FAIL"] == []
    assert sum(row.verdict == "PASS" for _, row in rows) >= 35
