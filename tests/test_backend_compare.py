"""The comparison of implementations tells one that agrees from one that does not."""

import json

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("envpool")

import backend_compare
import backend_table
import backends as script
import backends_page
from backend_compare import episodes_needed, paired, resets, resets_needed
from backend_table import chi_squared, table

from rlopt import backends


def test_pairs_tell_a_pendulum_that_moves_on_with_its_speed_before_the_clip():
    same = paired("Acrobot-v1", "envpool", 1000, 0)
    other = paired("Pendulum-v1", "envpool", 1000, 0)
    assert same["agrees"]
    assert same["obs_error"] < 1e-6
    assert not other["agrees"]
    assert other["obs_error"] > 1e-2


def test_pairs_see_other_rewards_and_ends(monkeypatch):
    """CartPole with another threshold of its end, and a reward of 0 where it falls."""
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    assert paired("CartPole-v1", "envpool", 300, 0)["agrees"]
    monkeypatch.setattr(CartPoleEnv, "metadata", CartPoleEnv.metadata)
    original = CartPoleEnv.step

    def step(self, action):
        obs, reward, terminated, truncated, info = original(self, action)
        return obs, 0.0 if terminated else reward, terminated, truncated, info

    monkeypatch.setattr(CartPoleEnv, "step", step)
    assert paired("CartPole-v1", "envpool", 300, 0)["reward_error"] > 0.5
    monkeypatch.setattr(CartPoleEnv, "step", original)
    init = CartPoleEnv.__init__

    def wider(self, **kwargs):
        init(self, **kwargs)
        self.theta_threshold_radians *= 1.5

    monkeypatch.setattr(CartPoleEnv, "__init__", wider)
    found = paired("CartPole-v1", "envpool", 300, 0)
    assert found["other_ends"] > 0
    assert not found["agrees"]


@pytest.mark.parametrize("scale", [0.0, 0.9])
def test_resets_see_no_randomness_and_too_little(scale, monkeypatch):
    assert resets("CartPole-v1", "envpool", 3000, 0)["agrees"]
    make_other = backend_compare.make_other

    def planted(*args, **kwargs):
        env = make_other(*args, **kwargs)
        reset = env.reset
        env.reset = lambda **options: (scale * reset(**options)[0], {})
        return env

    monkeypatch.setattr(backend_compare, "make_other", planted)
    found = resets("CartPole-v1", "envpool", 3000, 0)
    assert not found["agrees"]


def test_a_table_sees_a_successor_that_is_too_likely(monkeypatch):
    monkeypatch.setattr(backend_table, "COPIES", 512)
    found = table("CliffWalking-v1", "envpool", 2_000_000, 0)
    assert found["agrees"]
    assert found["fewest_visits"] >= found["visits_needed"]
    counts = np.array([3600, 3600, 2800])
    assert chi_squared(counts, np.full(3, 1 / 3)) < 1e-6
    assert chi_squared(np.array([1, 0]), np.array([0.0, 1.0])) == 0


def test_the_sizes_see_two_percent():
    """By simulation: at the size that is asked for, 2% is seen nine times in ten at the least."""
    random = np.random.default_rng(0)
    n, seen, trials = resets_needed(4), 0, 40
    for _ in range(trials):  # two halves of an interval, 0.52 of the probability on one of them
        ours = random.uniform(size=n)
        halves = random.uniform(0, 0.5, n), random.uniform(0.5, 1, n)
        other = np.where(random.random(n) < 0.52, *halves)
        p = backend_compare.stats.ks_2samp(ours, other, method="asymp").pvalue
        seen += p < backend_compare.ALPHA / 4
    assert seen >= 0.75 * trials
    returns = random.normal(100, 50, 2000)
    n, seen = episodes_needed(returns, 10), 0
    for _ in range(trials):
        samples = random.normal(100, 50, n), random.normal(102, 50, n)
        seen += backend_compare.stats.ttest_ind(*samples).pvalue < backend_compare.ALPHA / 10
    assert seen >= 0.75 * trials


def test_the_list_and_the_page_are_those_of_the_figures():
    rows = json.loads(script.FIGURES.read_text())
    assert backends.comparisons() == backends_page.runtime_list(rows)
    assert backends_page.LIST.read_text() == backends_page.dumped(backends_page.runtime_list(rows))
    assert backends_page.table(rows) in backends_page.PAGE.read_text()


def test_the_list_has_gymnasiums_own_registrations():
    for ids in backends.comparisons().values():
        for env_id, entry in ids.items():
            assert backends.registration(gym.spec(env_id)) == entry["registration"], env_id


def test_what_agrees_was_measured_at_the_full_size():
    for row in json.loads(script.FIGURES.read_text()):
        if not row["agrees"]:
            continue
        if "resets" in row:
            assert row["resets"]["resets"] >= row["resets"]["resets_needed"]
        if row["method"] == "table":
            assert row["table"]["visited_enough"]
        if row["method"] == "pairs":
            assert row["play"]["steps"] >= 3 * script.STEPS
        if row["method"] == "episodes":
            assert len(row["episodes"]["plays"]) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize(
    ("backend", "env_id"),
    [(backend, env_id) for backend, ids in backends.comparisons().items() for env_id in ids],
)
def test_the_pairs_are_as_recorded(backend, env_id):
    spec = gym.spec(env_id)
    rows = backends.comparisons()[backend][env_id]["compared"]
    row = next((r for r in rows if backends._are_installed(r["versions"])), None)
    if row is None or not row["finding"].startswith("largest"):
        pytest.skip("not compared in these versions, or by other means")
    try:
        gym.make(spec).close()
    except (gym.error.Error, ImportError) as error:  # a package is missing
        pytest.skip(str(error))
    assert paired(env_id, backend, 3000, 1)["agrees"] == row["agrees"]
