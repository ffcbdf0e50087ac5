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


def pairs_of(combination):
    return set(itertools.combinations(enumerate(combination), 2))


def every_pair_once(combinations):
    """Greedily, those with the most pairs of choices that none before them holds."""
    left = set().union(*map(pairs_of, combinations))
    while left:
        best = max(combinations, key=lambda c: len(pairs_of(c) & left))
        left -= pairs_of(best)
        yield best


FLAT = [c for c in COMBINATIONS if "gru" not in c]
# The recurrent ones are slower: of them one, the rest are marked slow.
QUICK = {("trpo", "gru", "td", "linear", "episodes"), *every_pair_once(FLAT)}


def test_the_quick_ones_are_few_and_hold_every_pair_of_choices():
    assert len(QUICK) < len(COMBINATIONS) / 4
    assert set().union(*map(pairs_of, QUICK)) >= set().union(*map(pairs_of, FLAT))


@pytest.mark.parametrize(
    "combination",
    [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in COMBINATIONS],
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
