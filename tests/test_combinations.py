"""Every algorithm with every policy, advantage, baseline and rollout, on both kinds of actions."""

import csv
import itertools
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from probes import CONFIGS, compose_config

from rlopt.build import make_trainer
from rlopt.targets import GROUPS

CHOICES = [sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) for group in GROUPS]
NETWORKS = {"fourier", "cnn", "network", "trunk"}  # nothing but other networks: with each rule once
PLAIN = [[choice for choice in choices if choice not in NETWORKS] for choices in CHOICES]
COMBINATIONS = [
    *itertools.product(*PLAIN),
    *((algo, "fourier", "gae", "trunk", "steps") for algo in CHOICES[0]),
]
SMALL = [
    "~tuned",
    "total_steps=20",
    "env.num_envs=2",
    "env.max_episode_steps=8",
    "env.backend=sync",
    "eval.final_episodes=2",
]
SMALL_ROLLOUT = {"steps": ["rollout.num_steps=10"], "episodes": ["rollout.episodes=2"]}


def compose_small(combination):
    groups = [f"{group}={choice}" for group, choice in zip(GROUPS, combination, strict=True)]
    small = [*SMALL, *SMALL_ROLLOUT.get(combination[-1], [])]
    if {"ppo", "ppo_clip"} & set(combination):
        small.append("algo.minibatch_size=16")
    return compose_config(*groups, *small)


def metrics_of(cfg, folder):
    trainer = make_trainer(cfg, folder)
    trainer.train()
    trainer.logger.close()
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_are_combinations_of_all_groups():
    assert len(COMBINATIONS) >= 5 * 3 * 3 * 3 * 2


def is_quick(combination):
    """A third, which holds every pair of choices; of the recurrent ones, which are slower, one."""
    if "gru" in combination:
        return combination == ("trpo", "gru", "td", "linear", "episodes")
    places = [c.index(name) for c, name in zip(CHOICES, combination, strict=True)]
    return "trunk" in combination or sum(places[:4]) % 3 == 0


def test_the_quick_ones_hold_every_pair_of_choices():
    def pairs(combinations):
        return {pair for c in combinations for pair in itertools.combinations(enumerate(c), 2)}

    flat = [c for c in COMBINATIONS if "gru" not in c]
    assert pairs(filter(is_quick, flat)) == pairs(flat)


@pytest.mark.parametrize(
    "combination",
    [pytest.param(c, marks=() if is_quick(c) else pytest.mark.slow) for c in COMBINATIONS],
    ids="-".join,
)
def test_two_updates_have_finite_metrics(combination, tmp_path: Path):
    cfg = compose_small(combination)
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        rows = metrics_of(OmegaConf.merge(cfg, {"env": {"id": env_id}}), tmp_path / env_id)
        assert len(rows) == 2
        assert rows[-1]["eval/return_mean"]
        assert all(math.isfinite(float(x)) for row in rows for x in row.values() if x)
        assert float(rows[0]["policy/kl"]) > 0
