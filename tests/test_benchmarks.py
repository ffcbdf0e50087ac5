"""What the benchmarks in benchmarks/ rest on; none is run here."""

import json
import time

import fisher_product
import peers
import performance
import pytest
import scaling
import speed
import torch
import update_cost
from clock import Clock, TimeUp
from jobs import PAIRS, overrides
from ours import compose_config
from startup import is_solved, read_rows

from rlopt.fisher import fisher_operator
from rlopt.targets import bind


def test_the_clock_counts_what_follows_the_warmup(monkeypatch):
    now = iter([0.0, 10.0, 12.0, 13.0, 14.0, 16.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock(seconds=1.5, min_steps=300, warmup=2)
    for ticks in range(5):
        clock.tick(100 * ticks)
    with pytest.raises(TimeUp):
        clock.tick(500)
    assert clock.result() == {"steps_per_second": 75.0, "steps": 300, "seconds": 4.0}


@pytest.mark.parametrize("name", PAIRS)
def test_our_side_of_a_pair_composes_to_the_work_it_names(name):
    peer, work = PAIRS[name]
    cfg = compose_config(overrides(work))
    for section in ("algo", "baseline", "rollout"):
        bind(cfg, section)
    assert peer in peers.SETUPS
    assert (cfg.env.id, cfg.env.num_envs) == (work["env"], work["num_envs"])
    assert cfg.rollout.num_steps == work["num_steps"]
    assert list(cfg.policy.hidden_sizes) == list(cfg.baseline.hidden_sizes) == [64, 64]
    assert cfg.baseline.fit == "optimizer"


@pytest.mark.parametrize("problem", fisher_product.PROBLEMS)
def test_double_backprop_is_the_same_product_as_ours(problem, float64, monkeypatch):
    monkeypatch.setattr(fisher_product, "BATCH", 32)
    policy, batch = fisher_product.make_problem(*fisher_product.PROBLEMS[problem])
    v = torch.randn(sum(p.numel() for p in policy.parameters()))
    reference = fisher_product.double_backprop(policy, batch)(v)
    torch.testing.assert_close(fisher_operator(policy, batch, "exact")(v), reference)


def test_a_run_is_solved_by_the_mean_of_a_hundred_episodes_and_by_whole_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("env_steps,rollout/return_mean,rollout/episodes\n2048,480,60\n4096,476,4")
    assert not is_solved(read_rows(path))
    path.write_text(path.read_text() + "0\n")
    assert is_solved(read_rows(path))


def test_a_peer_that_was_held_up_is_no_comparison():
    tried = [{"steps_per_second": 100.0}, {"steps_per_second": 300.0}]
    speed.expect_as_tried([{"peer": {"steps_per_second": 200.0}}], tried)
    with pytest.raises(speed.ContenderError, match="busy"):
        speed.expect_as_tried([{"peer": {"steps_per_second": 140.0}}], tried)


def turn(**speeds):
    versions = {"versions": {"package": "1.0"}, "num_envs": 16, "backend": "sync"}
    return {name: {"steps_per_second": speed, **versions} for name, speed in speeds.items()}


def test_the_report_takes_medians_of_ratios_turn_by_turn(tmp_path):
    peer, work = PAIRS["sb3-ppo-cartpole"]
    setup = peers.SETUPS[peer][0]
    turns = [
        turn(ours=100.0, peer=50.0, shipped=70.0, raw=1000.0),
        turn(ours=300.0, peer=100.0, shipped=80.0, raw=1000.0),
        turn(ours=200.0, peer=50.0, shipped=90.0, raw=1000.0),
    ]
    tried = [{"setup": setup, "steps_per_second": 55.0}]
    entry = {"peer": peer, "work": work, "setup": setup, "tried": tried, "turns": turns}
    machine = {"cores": 2, "versions": {"torch": "2.0"}}
    results = {"sb3-ppo-cartpole": {**entry, "machine": machine}, "raw": {"turns": turns}}
    performance.write(json.loads(json.dumps(results)), tmp_path)
    text = (tmp_path / "performance.md").read_text()
    assert "| PPO, CartPole-v1, 8 x 256 | 200 | SB3 50 | 3.0 (2.0-4.0) | 1,000 | 20% | 80 |" in text
    assert "8 (7-9) %" in text
    assert "## A Fisher product" not in text
    assert (tmp_path / "performance.png").stat().st_size > 0


def test_a_point_of_scaling_times_whole_updates(monkeypatch):
    monkeypatch.setattr(update_cost, "SECONDS", 0.0)
    point = update_cost.measure(batch=32, hidden=8, chunk_size=None)
    assert point["parameters"] == 17 * 8 + 8 + 8 * 8 + 8 + 8 * 6 + 6 + 6
    assert point["seconds"] > 0
    assert point["memory"] >= point["memory_before"] > 1e7


def test_scaling_draws_and_tells_the_parts_that_were_measured(tmp_path):
    gigabytes = {"memory": 2e9, "memory_before": 1e9}
    points = [
        {"batch": 1000, "parameters": 5708, "seconds": 0.02, **gigabytes},
        {"batch": 4000, "parameters": 5708, "seconds": 0.04, **gigabytes},
    ]
    results = {
        "batch": {"chunk_size": 1000, "points": points},
        "environments": {"CartPole-v1": [{"num_envs": 4, "train": 50.0, "raw": 200.0}]},
    }
    scaling.draw(results, tmp_path / "scaling.png")
    text = scaling.report(results)
    assert "| 4,000 | 40.0 | 10.00 | 2.00 | 1.00 |" in text
    assert "| 4 | 50 | 200 | 25.0% |" in text
    assert "chunks of 1,000" in text
    assert "Parameters" not in text
