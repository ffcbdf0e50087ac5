"""scripts/report.py on run folders of every kind: what is read, grouped, said and drawn."""

import csv
import json
import math
import re
import sys
import time

import numpy as np
import pytest
import yaml
from test_train_script import content, run_here, train

from rlopt.report import groups, runs
from rlopt.report.remarks import remarks
from rlopt.report.summary import ALL, Summary

CONFIG = {
    "seed": 0,
    "total_steps": 400,
    "stop_at_return": None,
    "env": {"id": "CartPole-v1", "num_envs": 4, "kwargs": {}},
    "algo": {"_target_": "rlopt.algos.npg.NPG", "max_kl": 0.02, "damping": 0.1},
    "policy": {"_target_": "rlopt.policies.MLPPolicy", "hidden_sizes": [64, 64]},
    "eval": {"every": 200},
    "checkpoint": {"every": 100},
}
PPO = {"algo": {"_target_": "rlopt.algos.ppo.PPO", "optimizer": {"lr": 0.1}}}
HEADER = "env_steps,rollout/return_mean,policy/kl,time/steps_per_second,eval/return_mean"
FILES = {"report.html", "report.md", "groups.csv", "runs.csv", "curves_steps.png"}
FILES |= {"curves_steps.svg", "curves_seconds.png", "curves_seconds.svg"}


def make_run(folder, final=100.0, status="finished", rows=4, overrides=(), **settings):
    """A run folder of `rows` iterations of 100 steps at 50 steps/s, every second one evaluated."""
    config = {
        key: {**value, **settings[key]} if isinstance(value, dict) and key in settings else value
        for key, value in {**CONFIG, "seed": settings.pop("seed", 0)}.items()
    } | {key: value for key, value in settings.items() if not isinstance(value, dict)}
    if settings.get("algo", {}).get("_target_"):
        config["algo"] = settings["algo"]
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    lines = [HEADER]
    for i in range(1, rows + 1):
        evaluation = final * i / rows if i % 2 == 0 else ""
        lines.append(f"{100 * i},{final * i / rows - 5},0.01,50,{evaluation}")
    if rows:
        (folder / "metrics.csv").write_text("".join(line + "\r\n" for line in lines))
    if status is not None:
        summary = {"status": status, "wall_seconds": 9.5}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def two_rules(folder, num_seeds, env="CartPole-v1"):
    for seed in range(num_seeds):
        make_run(folder / f"npg{env}{seed}", 100.0 + seed, seed=seed, env={"id": env})
        make_run(folder / f"ppo{env}{seed}", 50.0 + seed, seed=seed, env={"id": env}, **PPO)
    return folder


def read(folder):
    found, left_out = runs.read_all(runs.find(str(folder)))
    members, repeated = groups.group(found)
    return Summary(members, {}), [*left_out, *repeated]


def report(*arguments):
    code, out = run_here("report.py", *arguments)
    assert code is None
    return out


def mistake(*arguments):
    code, out = run_here("report.py", *arguments)
    assert isinstance(code, str)
    assert code.startswith("error: ")
    assert "\n" not in code
    assert out == ""
    return code


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Reading


def test_a_run_is_read_from_its_files(tmp_path):
    run = runs.read(make_run(tmp_path / "run", 80.0))
    np.testing.assert_array_equal(run.steps, [100, 200, 300, 400])
    np.testing.assert_allclose(run.seconds, [2, 4, 6, 8])
    np.testing.assert_allclose(run.train_return, [15, 35, 55, 75])
    np.testing.assert_allclose(run.curve("eval_return", "seconds"), [[4, 8], [40, 80]])
    assert (run.final, run.status, run.wall_seconds, run.speed) == (80, "finished", 9.5, 50)


def test_run_folders_are_found_at_any_depth_and_by_a_glob(tmp_path):
    deep = make_run(tmp_path / "a" / "algo=npg,seed=1" / "x")
    flat = make_run(tmp_path / "b")
    (tmp_path / "c").mkdir()
    assert runs.find(str(tmp_path)) == [deep, flat]
    assert runs.find(str(tmp_path / "a*")) == [deep]
    assert runs.find(str(tmp_path / "**" / "x")) == [deep]
    assert runs.find(str(flat)) == [flat]


def test_an_unfinished_row_and_a_skipped_iteration(tmp_path):
    path = make_run(tmp_path / "run", status=None) / "metrics.csv"
    text = path.read_text().replace("200,45.0,0.01,50,", "200,45.0,0.01,,")
    path.write_text(text + "500,95.0,0.0")
    run = runs.read(tmp_path / "run")
    assert run.steps[-1] == 400
    np.testing.assert_allclose(run.seconds, [2, 4, 6, 8])  # at the median speed


@pytest.mark.parametrize(
    ("rows", "status", "expected"),
    [
        (4, None, "finished"),  # without summary.json: it reached total_steps
        (2, None, "unfinished"),
        (2, "interrupted", "unfinished"),
        (2, "failed", "failed"),
        (0, "failed", "failed"),
    ],
)
def test_how_a_run_stands(tmp_path, rows, status, expected):
    run = runs.read(make_run(tmp_path / "run", rows=rows, status=status))
    assert run.status == expected
    assert math.isnan(run.final) == (expected != "finished")


def test_a_run_that_stopped_at_its_return_is_finished(tmp_path):
    run = runs.read(make_run(tmp_path / "run", 80.0, None, rows=2, stop_at_return=70))
    assert run.status == "finished"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (".hydra/config.yaml", "{", "config.yaml can't be read"),
        (".hydra/config.yaml", "a: 1", "config.yaml is that of something else"),
        (".hydra/overrides.yaml", "[", "overrides.yaml can't be read"),
        ("summary.json", "{", "summary.json can't be read"),
        ("metrics.csv", "\xff\xff\n", "metrics.csv can't be read"),
        ("metrics.csv", f"{HEADER}\n100,1\n200,1,0,50,\n", "metrics.csv can't be read"),
        ("metrics.csv", f"{HEADER}\n100,one,0,50,\n", "metrics.csv can't be read"),
        ("metrics.csv", f"{HEADER}\n200,1,0,50,\n100,1,0,50,\n", "do not rise"),
        ("metrics.csv", "env_steps\n100\n", "lacks a column"),
    ],
)
def test_a_damaged_run_is_left_out_and_named(tmp_path, name, text, reason):
    make_run(tmp_path / "sound")
    (make_run(tmp_path / "damaged") / name).write_bytes(text.encode("latin-1"))
    found, remarks = runs.read_all(runs.find(str(tmp_path)))
    assert [run.folder.name for run in found] == ["sound"]
    assert len(remarks) == 1
    assert reason in remarks[0]
    assert str(tmp_path / "damaged") in remarks[0]


# Groups


def labels_of(folder):
    summary, _ = read(folder)
    return {group.label: len(group.runs) for group in summary.groups}


def test_seeds_of_one_setting_are_one_group(tmp_path):
    for seed in range(3):
        make_run(tmp_path / str(seed), seed=seed, checkpoint={"every": seed + 1})
    assert labels_of(tmp_path) == {"npg": 3}


def test_where_the_algorithm_says_it_all_nothing_else_is_named(tmp_path):
    two_rules(tmp_path, 2)
    assert labels_of(tmp_path) == {"npg": 2, "ppo": 2}


def test_a_swept_number_is_named(tmp_path):
    for kl in (0.01, 1e-5):
        make_run(tmp_path / str(kl), algo={"max_kl": kl})
    config = tmp_path / "1e-05" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("1.0e-05", "1e-05"))  # a text in YAML 1.1
    assert labels_of(tmp_path) == {"algo.max_kl=0.01": 1, "algo.max_kl=1e-05": 1}
    assert read(tmp_path)[0].swept == ["algo.max_kl"]


def test_every_key_that_the_command_line_swept_is_named(tmp_path):
    """In a random search one key tells all runs apart, and the others matter all the same."""
    for kl, damping in [(0.01, 0.1), (0.02, 0.2)]:
        overrides = [f"algo.max_kl={kl}", f"algo.damping={damping}"]
        settings = {"max_kl": kl, "damping": damping}
        make_run(tmp_path / str(kl), overrides=overrides, algo=settings)
    assert "algo.max_kl=0.01 algo.damping=0.1" in labels_of(tmp_path)
    assert read(tmp_path)[0].swept == ["algo.max_kl", "algo.damping"]


def test_settings_that_differ_between_environments_are_not_named(tmp_path):
    for env, num_envs in [("CartPole-v1", 4), ("Pendulum-v1", 32)]:
        make_run(tmp_path / env, env={"id": env, "num_envs": num_envs})
        make_run(tmp_path / f"{env}ppo", env={"id": env, "num_envs": num_envs}, **PPO)
    summary, _ = read(tmp_path)
    assert [(g.env, g.label) for g in summary.groups] == [
        (env, label) for env in ("CartPole-v1", "Pendulum-v1") for label in ("npg", "ppo")
    ]


def test_of_many_keys_only_the_unusual_is_named(tmp_path):
    """An ablation: a common setting, and others that change one thing each."""
    make_run(tmp_path / "common")
    changes = {"algo": {"damping": 0.5}, "policy": {"hidden_sizes": []}, "env": {"num_envs": 8}}
    for name, change in changes.items():
        make_run(tmp_path / name, **{name: change})
    make_run(tmp_path / "gamma", gamma=0.9)
    assert set(labels_of(tmp_path)) == {
        "common setting",
        "algo.damping=0.5",
        "policy.hidden_sizes=[]",
        "env.num_envs=8",
        "gamma=0.9",
    }


def test_the_same_seed_twice_counts_once(tmp_path):
    make_run(tmp_path / "a", rows=2, status="interrupted")
    make_run(tmp_path / "b")
    summary, left_out = read(tmp_path)
    assert [run.folder.name for run in summary.groups[0].runs] == ["b"]
    assert left_out == ["left out, 1 runs repeat the settings and the seed of another"]


# Numbers


def test_the_row_of_a_group_by_hand(tmp_path):
    for seed, final in enumerate([480.0, 490.0, 100.0, 500.0]):
        make_run(tmp_path / str(seed), final, seed=seed)
    make_run(tmp_path / "failed", rows=2, status="failed", seed=8)
    make_run(tmp_path / "running", rows=2, status=None, seed=9)
    summary, _ = read(tmp_path)
    (row,) = summary.rows("CartPole-v1")
    assert (row["seeds"], row["failed"], row["unfinished"], row["steps"]) == (4, 1, 1, 400)
    assert row["final_mean"] == pytest.approx(392.5)
    assert row["iqm"] == pytest.approx(485)
    assert row["iqm_low"] < 485 < row["iqm_high"]
    assert (row["threshold"], row["reached"]) == (475, 3)  # CartPole-v1 is registered with 475
    assert (row["steps_to_threshold"], row["seconds_to_threshold"]) == (400, 8)
    assert row["area"] == pytest.approx(485 * 3 / 4)  # from half of it, linearly, to all of it
    assert (row["steps_per_second"], row["wall_seconds"]) == (50, 9.5)


def test_a_threshold_that_half_of_the_seeds_miss_is_not_reached(tmp_path):
    for seed, final in enumerate([480.0, 100.0]):
        make_run(tmp_path / str(seed), final, seed=seed)
    (row,) = read(tmp_path)[0].rows("CartPole-v1")
    assert (row["reached"], row["steps_to_threshold"]) == (1, math.inf)


def test_the_scale_of_an_environment(tmp_path):
    for seed, final in enumerate([80.0, 40.0]):
        make_run(tmp_path / str(seed), final, seed=seed, env={"id": "Pendulum-v1"})
    scale = read(tmp_path)[0].scales["Pendulum-v1"]
    assert (scale.low, scale.high) == (10, 80)  # first training returns are 15 and 5
    np.testing.assert_allclose(scale.score(np.array([10.0, 45.0, 80.0])), [0, 0.5, 1])
    assert scale.threshold == pytest.approx(73)  # none is registered


def test_a_difference_is_claimed_only_of_enough_seeds(tmp_path):
    few, _ = read(two_rules(tmp_path / "few", 3))
    enough, _ = read(two_rules(tmp_path / "enough", 5))
    assert [(p.first, p.second) for p in few.pairs] == [("npg", "ppo")]
    assert few.pairs[0].estimate == (1, 1, 1)  # complete separation
    assert not few.pairs[0].claimed
    assert enough.pairs[0].claimed
    assert any(line.startswith("Too few seeds to claim") and "p = 0.1" in line
               for line in remarks(few))  # fmt: skip
    assert not any(line.startswith("Too few seeds") for line in remarks(enough))
    assert any("fewer than 10" in line for line in remarks(enough))


def test_what_was_lost_is_said(tmp_path):
    make_run(tmp_path / "0")
    make_run(tmp_path / "1", rows=0, status="failed", seed=1)
    make_run(tmp_path / "2", rows=2, status=None, seed=2)
    make_run(tmp_path / "3", rows=1, seed=3)
    text = "\n".join(remarks(read(tmp_path)[0]))
    assert "1 runs failed, npg on CartPole-v1 (1): " in text
    assert "1 runs are not finished, npg on CartPole-v1 (1): " in text
    assert "1 runs have no evaluation in metrics.csv, npg on CartPole-v1 (1): " in text


# The script


def test_a_report_of_two_environments(tmp_path):
    for env in ("CartPole-v1", "Acrobot-v1"):
        two_rules(tmp_path, 4, env)
    out = report(f"runs={tmp_path}", "thresholds={CartPole-v1:40}")
    folder = tmp_path / "report"
    assert f"wrote {folder}" in out
    names = {path.name for path in folder.iterdir()}
    figures = {f"{name}.{kind}" for name in ("improvement", "profiles") for kind in ("png", "svg")}
    assert names == FILES | figures | {"pairs.csv"}
    rows = table(folder / "groups.csv")
    assert [(row["env"], row["group"], row["seeds"], row["threshold"]) for row in rows] == [
        (env, group, "4", threshold)
        for env, threshold in (("Acrobot-v1", "-100.0"), ("CartPole-v1", "40.0"))
        for group in ("npg", "ppo")
    ]
    assert float(rows[0]["iqm"]) == 101.5
    assert len(table(folder / "runs.csv")) == 16
    last = table(folder / "pairs.csv")[-1]
    assert (last["env"], last["first"], last["verdict"]) == (ALL, "npg", "a difference")
    page = (folder / "report.html").read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 4
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # it needs no other file
    assert "101.5" in page
    assert all((folder / f).stat().st_size > 5000 for f in names if f.endswith("png"))


def test_one_run_without_evaluations_or_an_end(tmp_path):
    make_run(tmp_path / "runs" / "seed0", rows=1, status=None)
    out = report(f"runs={tmp_path / 'runs' / 'seed0'}")
    assert "1 runs (1 unfinished) of 1 settings in 1 environment." in out
    names = {path.name for path in (tmp_path / "runs" / "report").iterdir()}
    assert names == FILES
    before = content(tmp_path)
    report(f"runs={tmp_path / 'runs'}")  # the same runs give the same files, and a report is no run
    assert content(tmp_path) == before
    assert content(tmp_path / "runs" / "seed0").keys() == {
        tmp_path / "runs" / "seed0" / name
        for name in (".hydra/config.yaml", ".hydra/overrides.yaml", "metrics.csv")
    }


@pytest.mark.slow
def test_a_sweep_is_drawn_and_the_best_groups_are_compared(tmp_path):
    for i in range(11):
        for seed in range(2):
            folder = tmp_path / f"algo.max_kl={i},seed={seed}"
            make_run(folder, 100.0 + i, seed=seed, algo={"max_kl": 0.01 + i})
    out = report(f"runs={tmp_path}/*", f"out={tmp_path / 'a=1,b'}")
    assert (tmp_path / "a=1,b" / "sensitivity_algo.max_kl.png").stat().st_size > 5000
    assert "the 8 groups with the best score; 3 others are in the table" in out
    shown = {row["first"] for row in table(tmp_path / "a=1,b" / "pairs.csv")}
    assert "algo.max_kl=0.01" not in shown
    assert "algo.max_kl=10.01" in shown


def test_a_run_of_train_is_reported(tmp_path):
    train(tmp_path / "run", "algo=npg", "seed=3").rename(tmp_path / "algo=npg,seed=3")
    report(f"runs={tmp_path / 'algo=npg,seed=3'}")
    (row,) = table(tmp_path / "report" / "runs.csv")
    summary = json.loads((tmp_path / "algo=npg,seed=3" / "summary.json").read_text())
    assert float(row["final"]) == pytest.approx(summary["eval_return_mean"])
    assert 0 < float(row["training_seconds"]) < summary["wall_seconds"]


def test_five_hundred_runs_are_read_in_seconds(tmp_path):
    """The whole report of 500 is measured in docs/experiments.md; here what grows with them."""
    for seed in range(100):
        make_run(tmp_path / str(seed), seed=seed, rows=200, total_steps=20000)
    start = time.process_time()
    summary, _ = read(tmp_path)
    assert len(summary.groups[0].runs) == 100
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("runs={tmp}/none", ["runs=", "holds no run folder", ".hydra/config.yaml", "metrics.csv"]),
        ("out={tmp}/mine", ["out=", "is not empty and holds no report"]),
        ("thresholds=3", ["thresholds=3", "thresholds={<env>:<return>}"]),
        ("thresholds={CartPole-v1:high}", ["thresholds.CartPole-v1 must be a number, got 'high'"]),
        ("thresholds={CartPole-v0:1}", ["thresholds.CartPole-v0: the runs are of CartPole-v1"]),
        ("run=x", ["run is no setting: did you mean runs?"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, argument, parts):
    make_run(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    before = content(tmp_path)
    message = mistake(f"runs={tmp_path}", argument.replace("{tmp}", str(tmp_path)))
    assert [part for part in parts if part not in message] == []
    assert content(tmp_path) == before


def test_runs_must_be_named():
    assert "runs" in mistake()


def test_only_damaged_runs_are_an_error_that_says_why(tmp_path):
    (make_run(tmp_path / "run") / "metrics.csv").write_text("x\n")
    assert "metrics.csv" in mistake(f"runs={tmp_path}")
    make_run(tmp_path / "early", rows=0, status="failed")
    assert "holds no run folder" in mistake(f"runs={tmp_path}")


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert mistake(f"runs={tmp_path}").startswith(
        "error: report.py needs a package: pip install -e '.[bench]'"
    )
