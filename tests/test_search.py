"""Searches by Optuna over seeds: presets, refusals, and a kill after which it goes on."""

import functools
import re
import time

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from probes import CONFIGS
from test_train_script import (
    SMALL,
    content,
    process,
    run_here,
    summary_of,
    timeless,
    train,
)

import sweep
from rlopt.config import Config, ConfigError
from rlopt.folder import claimed

ConfigStore.instance().store("schema", Config)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Optuna 2 on SQLAlchemy
KL = "algo.max_kl=tag(log,interval(0.001,0.1))"
LONGER = ["total_steps=1500", "eval.every=500", "checkpoint.every=300"]
SEARCH = ["-m", *SMALL, "sweep=optuna", "sweep.seeds=[100,101]"]


def search(folder, *arguments):
    return run_here("train.py", *SEARCH, f"hydra.sweep.dir={folder}", *arguments)[0]


def study_of(folder):
    import optuna

    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/optuna.db")


def trials_of(folder):
    return study_of(folder).get_trials()


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_presets_divide_the_cores_among_jobs(num_threads, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 6)
    jobs = 6 // num_threads
    cfg = composed("sweep=[optuna,joblib]", f"num_threads={num_threads}")
    assert cfg.sweep.jobs == cfg.hydra.launcher.n_jobs == cfg.hydra.sweeper.n_jobs == jobs
    assert cfg.hydra.sweeper.sampler._target_ == "optuna.samplers.TPESampler"
    cfg = composed("sweep=submitit_local", f"num_threads={num_threads}")
    assert cfg.hydra.launcher._target_.endswith("LocalLauncher")
    assert cfg.sweep.jobs == jobs


def test_a_job_of_many_threads_still_runs(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    assert sweep.jobs_that_fit(3) == 1


def test_other_presets_and_samplers_compose():
    cfg = composed("sweep=submitit_slurm", "sweep.jobs=7", "num_threads=3")
    assert cfg.hydra.launcher._target_.endswith("SlurmLauncher")
    assert (cfg.hydra.launcher.array_parallelism, cfg.hydra.launcher.cpus_per_task) == (7, 3)
    cfg = composed("sweep=optuna", "hydra/sweeper/sampler=random", "sweep.trials=9")
    assert cfg.hydra.sweeper.sampler._target_ == "optuna.samplers.RandomSampler"
    assert (cfg.hydra.sweeper.n_trials, cfg.hydra.sweeper.n_jobs) == (9, 1)


GRID_MISTAKES = [
    ("sweep.seeds=[1]", "sweep.seeds=[1] goes with sweep=optuna; a grid's seeds are seed=0,1,2"),
    ("sweep.objective=auc", "sweep.objective=auc goes with sweep=optuna"),
    ("sweep.trials=3", "sweep.trials=3 goes with sweep=optuna"),
    ("sweep.jobs=3", "sweep.jobs=3 needs a launcher: add sweep=joblib"),
    ("sweep.jobs=0", "sweep.jobs must be a whole number of at least 1, got 0"),
    ("sweep=optuna,joblib", "is sweep=[optuna,joblib] meant?"),
    ("sweep.resume=true,false", "is several sweeps"),
    (KL, f"{KL}: an interval is searched by sweep=optuna"),
]
SEARCH_MISTAKES = [
    ("seed=3", "seed=3: sweep=optuna trains on sweep.seeds=[100, 101, 102]"),
    ("seed=1,2", "seed=1,2: sweep=optuna trains on sweep.seeds=[100, 101, 102]"),
    ("sweep.seeds=[]", "sweep.seeds=[] must be different whole numbers of at least 0"),
    ("sweep.seeds=[1,1]", "sweep.seeds=[1, 1] must be different whole numbers"),
    ("sweep.seeds=[-1]", "sweep.seeds=[-1] must be different whole numbers"),
    ("sweep.trials=0", "sweep.trials must be a whole number of at least 1"),
    ("hydra.sweeper.n_trials=3", "hydra.sweeper.n_trials=3: write sweep.trials="),
    ("hydra.sweeper.sampler._target_=optuna.samplers.GridSampler", "a grid is -m key=a,b"),
    ("sweep.objective=best", "must be one of iqm, auc, steps_to_threshold, got 'best'"),
    ("sweep.objective=steps_to_threshold", "needs the threshold: add stop_at_return="),
    ("sweep.objective=auc stop_at_return=9", "needs whole curves: leave out stop_at_return=9"),
    ("sweep.objective=auc total_steps=9", "eval.every=20000 must be less than total_steps=9"),
]


@functools.cache
def sweeps_config(*overrides):
    """The config of a whole sweep, as Hydra hands it to `prepare`."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        return hydra.compose_config("train", list(overrides), run_mode=RunMode.MULTIRUN)


@pytest.mark.parametrize(
    ("start", "arguments", "part"),
    [(("seed=0,1",), *case) for case in GRID_MISTAKES]
    + [(("sweep=optuna", KL), *case) for case in SEARCH_MISTAKES],
)
def test_a_sweep_that_contradicts_itself_is_refused_in_one_line(start, arguments, part, tmp_path):
    config = sweeps_config(*start).copy()
    for argument in arguments.split():
        config.hydra.overrides.task.append(argument)
        if argument not in (KL, "seed=1,2", "sweep=optuna,joblib", "sweep.resume=true,false"):
            config.merge_with_dotlist([argument])
    config.hydra.sweep.dir = str(tmp_path / "sweep")
    with pytest.raises(ValueError, match=re.escape(part)):
        sweep.prepare(config)
    assert not (tmp_path / "sweep").exists()


def test_what_is_refused_ends_the_command_before_any_training(tmp_path):
    code = search(tmp_path / "sweep")
    assert code == (
        "error: sweep=optuna has nothing to search: "
        "add for example 'algo.max_kl=tag(log,interval(0.001,0.1))'"
    )
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("override", ["sweep=joblib", "sweep.seeds=[1,2]"])
def test_a_run_has_no_settings_of_a_sweep(override, tmp_path):
    code, _ = run_here("train.py", *SMALL, override, f"hydra.run.dir={tmp_path}")
    assert code == f"error: {override} goes with -m"


@pytest.mark.slow
def test_trials_that_fail_or_repeat_others_count_and_the_rest_go_on(tmp_path):
    arguments = ["algo.max_kl=-1,0.01", "sweep.trials=4", "hydra/sweeper/sampler=random"]
    assert search(tmp_path, *arguments).startswith("error: ")
    by_value = {}
    for trial in trials_of(tmp_path):
        by_value.setdefault(str(trial.params["algo.max_kl"]), []).append(trial)
    assert {t.state.name for t in by_value["-1"]} == {"FAIL"}
    assert {t.state.name for t in by_value["0.01"]} == {"COMPLETE"}
    assert len(by_value["0.01"]) > 1  # and its two runs ran once
    assert len(list(tmp_path.rglob("summary.json"))) == 2
    failed = (tmp_path / "failed.txt").read_text()
    assert failed.count("algo.max_kl must be greater than 0, got -1") == len(by_value["-1"])


def test_a_folder_that_holds_a_search_goes_on_with_the_same_one_alone(tmp_path):
    config = sweeps_config("sweep=optuna", KL).copy()
    config.hydra.sweep.dir = str(tmp_path)
    sweep.prepare(config.copy())
    with pytest.raises(ConfigError, match="holds a sweep: add"):
        sweep.prepare(config.copy())
    config.sweep.resume = True
    with pytest.raises(ConfigError, match=r"sweep\.resume=true needs"):
        sweep.prepare(config.copy())
    config.hydra.overrides.hydra.append(f"hydra.sweep.dir={tmp_path}")
    config.hydra.overrides.task += ["sweep.resume=true", "sweep.jobs=1", "sweep=[optuna,joblib]"]
    sweep.prepare(config.copy())
    config.hydra.overrides.task.append("gamma=0.5")
    with pytest.raises(ConfigError, match=f"the sweep in {tmp_path} differs in gamma=0.5"):
        sweep.prepare(config.copy())
    (tmp_path / "trial").mkdir()
    at_work = re.escape(f"a process is still at work in {tmp_path / 'trial'}: wait for it")
    with claimed(tmp_path / "trial"), pytest.raises(ConfigError, match=at_work):
        sweep.prepare(config.copy())


def test_steps_to_a_threshold_are_minimised_and_a_sampler_is_not_seeded_alike_twice(tmp_path):
    config = sweeps_config("sweep=optuna", KL).copy()
    config.hydra.sweep.dir, config.stop_at_return = str(tmp_path), 9.0
    config.sweep.objective, config.sweep.resume = "steps_to_threshold", True
    config.hydra.overrides.hydra.append(f"hydra.sweep.dir={tmp_path}")
    first, second = config.copy(), config.copy()
    sweep.prepare(first)
    assert first.hydra.sweeper.direction == "minimize"
    assert (first.hydra.sweeper.n_trials, first.hydra.sweeper.sampler.seed) == (20, 0)
    study = study_of(tmp_path)
    for value in (None, 3.0, 2.0):  # the first one is left running
        trial = study.ask()
        trial.suggest_float("algo.max_kl", 0.001, 0.1, log=True)
        if value is not None:
            study.tell(trial, value)
    sweep.prepare(second)
    assert (second.hydra.sweeper.n_trials, second.hydra.sweeper.sampler.seed) == (18, 3)
    assert study_of(tmp_path).ask().number == 0


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_and_ends_with_as_many_trials(tmp_path):
    folder, arguments = tmp_path / "sweep", [KL, "sweep.trials=3", *LONGER]
    started = process("train.py", *SEARCH, f"hydra.sweep.dir={folder}", *arguments)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:  # until the second seed of the second trial has a checkpoint
        if len(list(folder.glob("*/seed101/checkpoints/last.pt"))) == 2:
            break
        time.sleep(0.01)
    started.kill()
    started.communicate(timeout=60)
    first, killed = trials_of(folder)
    assert (first.state.name, killed.state.name) == ("COMPLETE", "RUNNING")
    done = {path.parent: content(path.parent) for path in folder.rglob("summary.json")}
    assert len(done) == 3

    assert search(folder, *arguments, "sweep.resume=true") is None
    trials = trials_of(folder)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert [trial.params for trial in trials[:2]] == [first.params, killed.params]
    assert len({trial.params["algo.max_kl"] for trial in trials}) == 3
    assert {path: content(path) for path in done} == done  # nothing ran twice
    for trial in trials:
        (place,) = folder.glob(f"algo.max_kl={trial.params['algo.max_kl']},*")
        returns = [summary_of(place / f"seed{s}")["eval_return_mean"] for s in (100, 101)]
        assert trial.value == sum(returns) / 2
    (place,) = folder.glob(f"algo.max_kl={killed.params['algo.max_kl']},*")
    assert summary_of(place / "seed101")["resumed_at"] > 0
    override = f"algo.max_kl={killed.params['algo.max_kl']}"
    alone = train(tmp_path / "alone", *LONGER, "seed=101", override)
    assert timeless(place / "seed101") == timeless(alone)
