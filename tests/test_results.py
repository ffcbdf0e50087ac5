"""What the table of benchmarks/results.py rests on; nothing is trained here."""

import json
import math

import numpy as np
import pytest
import results
import results_page
from ours import compose_config
from published import PUBLISHED, Published, verdict

from rlopt.report.stats import first_reached
from rlopt.targets import bind


@pytest.mark.parametrize(
    ("ours", "std", "expected"),
    [
        ([104.0, 106.0], math.nan, "above"),  # standard error 1
        ([100.5, 102.5], math.nan, "above"),
        ([99.5, 101.5], math.nan, "within noise"),
        ([100.5, 102.5], 4.0, "within noise"),  # theirs is 2
        ([94.0, 96.0], 4.0, "below"),
    ],
)
def test_a_win_counts_beyond_the_combined_standard_error(ours, std, expected):
    assert verdict(ours, Published(100.0, std, 4, "evaluation", "")) == expected


def record(train, evals, budget=1000):
    steps = list(range(100, 1001, 100))
    return {
        "budget": budget,
        "commit": "0123456789",
        "wall_seconds": 60,
        "eval_return": evals[-1],
        "eval_episodes": 100,
        "steps": steps,
        "train_returns": train,
        "eval_steps": steps,
        "eval_returns": evals,
    }


def test_a_row_is_the_last_tenth_and_the_last_evaluation(monkeypatch):
    monkeypatch.setitem(PUBLISHED, ("E", "npg", 500), Published(5, 1, 4, "training", "someone"))
    rising = [float(x) for x in range(1, 11)]
    runs = {("E", "npg"): [record(rising, [10 * x for x in rising]) for _ in range(2)]}
    half, whole = results_page.rows_of(runs)
    assert (half.steps, half.training, half.evaluation) == (500, [5.0, 5.0], [50.0, 50.0])
    assert (whole.steps, whole.training, whole.evaluation) == (1000, [10.0, 10.0], [100.0, 100.0])
    assert half.published and not whole.published
    assert "5.0 ± 1.0, training: someone | within noise" in results_page.table([half])


def test_five_in_a_row_ends_at_the_fifth():
    returns = np.array([500, 0, 480, 480, 480, 480, 480, 480.0])
    lowest = results_page.lowest_of_last(returns, 5)
    assert first_reached(np.arange(1.0, 9.0), lowest, 475) == 7
    assert first_reached(np.arange(1.0, 9.0), returns, 475) == 1


def test_pages_are_made_of_records_alone(tmp_path):
    solved = record([500.0] * 10, [100.0] * 3 + [500.0] * 7)
    records = {
        "defaults/CartPole-v1/npg/seed0": solved,
        "tuned/CartPole-v1/npg/seed0": solved,
        "first_crossing/CartPole-v1/npg/seed0": solved,
        "first_crossing/CartPole-v1/npg/seed1": record([1.0] * 10, [1.0] * 10),
    }
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{results_page.START}old\n{results_page.END}z\n")
    results_page.write(json.loads(results.dumped(records)), tmp_path, readme)
    first, *table, last = readme.read_text().splitlines()
    assert (first, last) == ("a", "z")
    assert table[1] == "| environment | steps | npg |"
    assert table[3] == "| CartPole-v1 | 0.001M | 500.0 |"
    text = (tmp_path / "results.md").read_text()
    assert "## As shipped" in text
    assert "nan" not in text  # of one seed there is no interval
    assert "## Defaults alone" in text
    assert "| npg | 2 | not by every seed | not by every seed |" in text
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_the_readme_has_the_table_of_what_is_recorded():
    assert results_page.summary(results.read_records()) in (results.ROOT / "README.md").read_text()


def test_commands_of_the_table_compose():
    for settings in results.SETTINGS:
        cfg = compose_config(results.Job(settings, "CartPole-v1", "npg", 3).overrides)
        bind(cfg, "algo")
        assert (cfg.seed, cfg.total_steps, cfg.env.id) == (3, 97_000, "CartPole-v1")
    assert cfg.eval.every == 1000
