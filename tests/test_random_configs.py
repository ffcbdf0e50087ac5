"""Whatever is written into a config: two updates, or one line that says what is wrong."""

import math
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from probes import CONFIGS, compose_config

import cli
from rlopt.build import make_trainer
from rlopt.targets import GROUPS

ENVS = ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Counting-v0", "RewardIsActionContinuous-v0"]
SMALL = {  # what every draw starts from: small enough for hundreds of them
    "env.num_envs": 2,
    "env.max_episode_steps": 6,
    "env.backend": "sync",
    "eval.every": 50,
    "eval.episodes": 2,
    "eval.final_episodes": 2,
    "policy.hidden_sizes": [4],
    "policy.num_features": 8,
    "policy.state_size": 4,
    "baseline.hidden_sizes": [4],
    "rollout.num_steps": 8,
    "rollout.episodes": 4,
    "algo.minibatch_size": 8,
    "baseline.minibatch_size": 8,
}
YES_NO, PART = [True, False], [0.0, 0.3, 0.9, 1.0]
VALID = {
    "seed": [0, 7, 2**40],
    "total_steps": [1, 20, 10**9],
    "device": ["cpu"],
    "num_threads": [1, 2],
    "gamma": PART,
    "average_over": ["steps", "trajectories"],
    "chunk_size": [None, 1, 5],
    "standardize_advantage": YES_NO,
    "stop_at_return": [None, -1e9, 1e9],
    "diagnostics": YES_NO,
    "sweep.resume": YES_NO,
    "schedule": [{}, {"algo": {"max_kl": 1e-3}}, {"algo": {"optimizer": {"lr": 0}}}],
    "env.num_envs": [1, 2, 3],
    "env.backend": ["sync", "auto"],
    "env.max_episode_steps": [1, 2, 9],
    "eval.every": [1, 20, 10**6],
    "eval.episodes": [1, 3],
    "eval.final_episodes": [1, 3],
    "checkpoint.every": [1, 30],
    "algo.max_kl": [1e-8, 0.02, 10.0, 1e6],
    "algo.step_size": [None, 0.1, 1e6],
    "algo.fisher": ["exact", "empirical"],
    "algo.solver": ["cg", "dense"],
    "algo.damping": [0, 1e-4, 10.0],
    "algo.cg_iterations": [1, 20],
    "algo.cg_tolerance": [0, 1e-3, 0.9],
    "algo.kl": ["analytic", "sampled"],
    "algo.backtrack_ratio": [0.01, 0.99],
    "algo.backtrack_tries": [1, 3],
    "algo.epochs": [1, 3],
    "algo.minibatch_size": [1, 3, 64],
    "algo.penalty": [0, 0.3, 50.0, 1000],
    "algo.target_kl": [None, 1e-4, 1.0],
    "algo.clip_range": [1e-9, 0.2, 5.0],
    "algo.entropy_bonus": [0, 0.01, 10.0],
    "algo.standardize_minibatch": YES_NO,
    "algo.max_grad_norm": [None, 1e-6, 0.5],
    "algo.penalty_range": [[0.3, 100.0], [1, 1], [1e-9, 1e9]],
    "algo.optimizer.lr": [0, 1e-3, 1.0, 1e6],
    "algo.optimizer._target_": ["torch.optim.SGD", "torch.optim.AdamW", "torch.optim.RMSprop"],
    "policy.hidden_sizes": [[], [1], [4, 4]],
    "policy.state_size": [1, 4],
    "policy.update_bias": [-20, 0, 5.0],
    "policy.orthogonal_init": YES_NO,
    "policy.activation": ["tanh", "relu", "elu", "silu"],
    "policy.distribution": ["gaussian", "gaussian_state_std", "full_gaussian", "beta"],
    "policy.log_std_init": [-20, -1.0, 0, 5.0],
    "policy.output_gain": [1e-6, 1, 100.0],
    "policy.normalize_obs": YES_NO,
    "policy.num_features": [1, 8],
    "policy.bandwidth": [1e-3, 1.0, 1e3],
    "advantage.lambda_": PART,
    "advantage.bootstrap": YES_NO,
    "advantage.num_steps": [1, 3, 10**6],
    "baseline.hidden_sizes": [[], [1], [4, 4]],
    "baseline.activation": ["tanh", "relu", "elu", "silu"],
    "baseline.orthogonal_init": YES_NO,
    "baseline.sees_step": YES_NO,
    "baseline.standardize_target": YES_NO,
    "baseline.fit": ["gauss_newton", "optimizer"],
    "baseline.epochs": [1, 3],
    "baseline.damping": [1e-9, 0.01, 100.0],
    "baseline.cg_iterations": [1, 20],
    "baseline.chunk_size": [None, 1, 5],
    "baseline.minibatch_size": [1, 3, 64],
    "baseline.optimizer.lr": [0, 1e-3, 1.0],
    "baseline.optimizer._target_": ["torch.optim.SGD", "torch.optim.AdamW"],
    "baseline.ridge": [1e-300, 1e-5, 1e5],
    "rollout.num_steps": [1, 2, 9],
    "rollout.episodes": [1, 4],
    "rollout.baseline_episodes": [0, 1, 3],
    "rollout.max_episode_steps": [1, 1000],
}
JUNK = [
    None, True, "abc", "", "1e-3", "${nothing}", "???", -1, 0, 1, 1.5, 1e30, -1e-9, 1e-300,
    math.nan, math.inf, -math.inf, [], [1, "a"], [[2]], {}, {"a": 1}, {"_target_": "os.getcwd"},
]  # fmt: skip
TARGETS = [
    None, 5, "", "os", "os.path", "no.such", "builtins.dict", "builtins.object",
    "torch.nn.Identity", "rlopt.algos.pg.PG", "rlopt.policies.MLPPolicy",
    "rlopt.advantages.gae", "torch.optim.LBFGS",
    "torch.optim.SparseAdam", "torch.optim.Adagrad",
]  # fmt: skip
STRANGE = {
    "device": ["cuda:99", "meta", "tpu", "cpu:7", "mps", ":"],
    "seed": [2**63, 2**70, -1],
    "num_threads": [10**9, -3],
    "schedule": [{"algo": {"fisher": 1}}, {"algo": {"damping": -1}}, {"gamma": 1}, {"a": {}}],
    "env.id": ["CartPoel-v1", ":", "a:b:c", "..x:y", "v1", "-v1", "CartPole-v99", "os:CartPole-v1"],
    "env.kwargs": [{"foo": 1}, {"render_mode": "nope"}, {"max_episode_steps": 3}, {"g": "x"}],
    "env.backend": ["envpool", "vector_entry_point", "threads"],
    "algo.penalty_range": [[1], [2, 1], ["a", "b"], [None, 1], [0, 1], [math.nan, 1]],
    **{f"{group}._target_": TARGETS for group in GROUPS},
    "algo.optimizer._target_": TARGETS,
    "baseline.optimizer._target_": TARGETS,
    "algo.optimizer._partial_": [False, None],
    **{f"{group}.foo": [1] for group in (*GROUPS, "env", "eval")},
    "foo": [1],
}
ELSEWHERE = {"cnn", "network"}  # want an image, or a class: tests/test_networks.py
CHOICES = {
    group: sorted({path.stem for path in (CONFIGS / group).glob("*.yaml")} - ELSEWHERE)
    for group in GROUPS
}
OUTCOMES: Counter[str] = Counter()


class TwoUpdatesError(Exception):
    """Enough."""


@st.composite
def configs(draw):
    """A choice of each group, some sound settings, and in two draws of three a wild one."""
    groups = [f"{group}={draw(st.sampled_from(CHOICES[group]))}" for group in GROUPS]
    base = compose_config("~tuned", *groups)
    known = [key for key in VALID if OmegaConf.select(base, key, default=groups) is not groups]
    changes = {"env.id": draw(st.sampled_from(ENVS))}
    for key in draw(st.lists(st.sampled_from(known), max_size=6, unique=True)):
        changes[key] = draw(st.sampled_from(VALID[key]))
        if key.endswith("._target_") and changes[key] == "torch.optim.RMSprop":
            changes[key.replace("_target_", "fused")] = None
    kind = draw(st.sampled_from(["sound", "junk", "strange"]))
    if kind == "junk":
        changes[draw(st.sampled_from(known))] = draw(st.sampled_from(JUNK))
    elif kind == "strange":
        key = draw(st.sampled_from(sorted(STRANGE)))
        changes[key] = draw(st.sampled_from(STRANGE[key]))
    small = {key: value for key, value in SMALL.items() if key in known}
    return groups, {**small, **changes}


def outcome(groups, changes):
    """`updated`, or the one line that the command ends in."""
    cfg = compose_config("~tuned", *groups)
    try:
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, merge=False)
        OmegaConf.resolve(cfg)
        with tempfile.TemporaryDirectory() as folder:
            two_updates(cfg, Path(folder))
    except cli.MISTAKES as error:
        return cli.explain(error)
    return "updated"


def two_updates(cfg, folder):
    trainer = make_trainer(cfg, folder)
    log, rows = trainer.logger.log, []

    def count(env_steps, metrics):
        log(env_steps, metrics)
        rows.append(metrics)
        if len(rows) == 2:
            raise TwoUpdatesError

    trainer.logger.log = count
    try:
        trainer.train()  # or fewer, where total_steps says so
    except TwoUpdatesError:
        pass
    finally:
        trainer.logger.close()
    assert all(math.isfinite(row["policy/kl"]) for row in rows)


def check_config(config):
    result = outcome(*config)
    assert result
    assert "\n" not in result
    OUTCOMES["updated" if result == "updated" else "refused"] += 1
    event("updated" if result == "updated" else "refused")


EXHAUSTIVE = {"derandomize": True, "deadline": None, "database": None}
EXHAUSTIVE["suppress_health_check"] = list(HealthCheck)


@settings(max_examples=30, **EXHAUSTIVE)
@given(configs())
def test_thirty_random_configs_update_twice_or_end_in_one_line(config):
    check_config(config)


@pytest.mark.slow
@settings(max_examples=400, **EXHAUSTIVE)
@given(configs())
def test_hundreds_of_random_configs_update_twice_or_end_in_one_line(config):
    check_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(VALID))
def test_every_setting_refuses_junk_or_works_with_it(key):
    for algo, baseline, rollout in (("npg", "mlp", "steps"), ("ppo", "linear", "episodes"),
                                    ("trpo", "zero", "steps")):  # fmt: skip
        groups = [f"algo={algo}", f"baseline={baseline}", f"rollout={rollout}"]
        base = compose_config("~tuned", *groups)
        if OmegaConf.select(base, key, default=groups) is groups:
            continue
        small = {k: v for k, v in SMALL.items() if OmegaConf.select(base, k) is not None}
        for junk in JUNK:
            result = outcome(groups, {**small, "env.id": "CartPole-v1", key: junk})
            assert result
            assert "\n" not in result
