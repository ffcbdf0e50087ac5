"""What a trial is worth, from metrics.csv, against numbers worked by hand."""

import csv

import pytest

from rlopt.objectives import evaluations, objective


def write_run(folder, evaluated):
    """A metrics.csv with rows between the evaluations, as training writes them."""
    folder.mkdir()
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env_steps", "rollout/return_mean", "eval/return_mean"])
        for steps, value in evaluated:
            writer.writerow([steps - 50, 7.0, ""])
            writer.writerow([steps, 7.0, value])
    return folder


@pytest.fixture
def value(tmp_path):
    """The objective of runs with these evaluations, (steps, return), of 400 steps at most."""

    def value(name, *runs, threshold=None):
        folders = [write_run(tmp_path / f"{i}", run) for i, run in enumerate(runs)]
        return objective(name, folders, total_steps=400, threshold=threshold)

    return value


def test_rows_without_an_evaluation_are_passed_over(tmp_path):
    steps, returns = evaluations(write_run(tmp_path / "run", [(100, 1.5), (200, -2.0)]))
    assert steps.tolist() == [100, 200]
    assert returns.tolist() == [1.5, -2.0]


def test_iqm_is_the_mean_of_the_middle_half_of_final_returns(value):
    finals = [300.0, 10.0, -900.0, 20.0]
    assert value("iqm", *([(100, 5.0), (400, final)] for final in finals)) == 15.0


def test_iqm_of_three_runs_is_their_mean(value):
    assert value("iqm", *([(400, final)] for final in (0.0, 30.0, 60.0))) == 30.0


def test_auc_is_the_mean_height_of_the_trapezoids(value):
    curve = [(100, 0.0), (200, 10.0), (400, 40.0)]  # 500 + 5000 over 300 steps
    flat = [(100, 3.0), (400, 3.0)]
    assert value("auc", curve, flat) == pytest.approx((5500 / 300 + 3) / 2)


def test_auc_of_one_evaluation_is_its_return(value):
    assert value("auc", [(400, 4.0)]) == 4.0


@pytest.mark.parametrize(
    ("run", "steps"),
    [
        ([(100, 1.0), (200, 9.5)], 200),
        ([(100, 1.0), (200, 8.0)], 200),  # the longer evaluation after the one that ended it
        ([(100, 1.0), (410, 9.0)], 410),
        ([(100, 1.0), (410, 8.9)], 800),
    ],
)
def test_steps_to_threshold_are_twice_the_budget_where_it_is_not_reached(value, run, steps):
    assert value("steps_to_threshold", run, threshold=9.0) == steps
