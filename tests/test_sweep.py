"""Sweeps: a failed job is recorded and the others go on; a finished one is not run again."""

import json
import shutil
import subprocess
import sys

import pytest
from test_train_script import NAN_REWARD, SMALL, content, process, rows_of, run_here, summary_of

from rlopt.config import ConfigError
from rlopt.folder import LOCK, claimed, is_empty

FAULTY = [argument for argument in NAN_REWARD if "rollout" not in argument]


def sweep(folder, *arguments):
    """Exit code, or the last line of what it said, and the summaries by folder."""
    code, _ = run_here("train.py", "-m", *SMALL, f"hydra.sweep.dir={folder}", *arguments)
    found = {path.parent.name: path.parent for path in folder.rglob("summary.json")}
    return code, {name: summary_of(path) for name, path in found.items()}


def job(folder, part):
    (path,) = (path for path in folder.iterdir() if part in path.name and path.is_dir())
    return path


def test_a_job_that_fails_is_recorded_and_the_others_go_on(tmp_path, capfd):
    code, summaries = sweep(tmp_path, *FAULTY, "seed=1,0,2", "hydra.sweep.subdir=${seed}")
    assert code.startswith("error: 1 failed, see ")
    assert "seed=0" in code
    assert "\n" not in code
    by_seed = {summary["seed"]: summary for summary in summaries.values()}
    assert {seed: s["status"] for seed, s in by_seed.items()} == {
        0: "failed",
        1: "finished",
        2: "finished",
    }
    assert "environment 0 gave a non-finite reward" in by_seed[0]["error"]
    (line,) = (tmp_path / "failed.txt").read_text().splitlines()
    assert "seed=0," in line
    assert "environment 0 gave a non-finite reward" in line
    assert line in capfd.readouterr().err


def test_a_config_that_is_refused_is_one_line_and_the_others_go_on(tmp_path, capfd):
    code, summaries = sweep(tmp_path, "algo=npg", "algo.max_kl=0.01,-1,0.02")
    assert code.startswith("error: 1 failed, see ")
    assert [summary["status"] for summary in summaries.values()] == ["finished"] * 2
    assert is_empty(job(tmp_path, "max_kl=-1"))
    err = capfd.readouterr().err
    assert "algo.max_kl must be greater than 0, got -1" in err
    assert "Traceback" not in err


def test_a_defect_of_ours_does_not_end_a_sweep_either(tmp_path, capfd, monkeypatch):
    def defect(self, obs):
        raise IndexError("ours")

    monkeypatch.setattr("rlopt.policies.MLPPolicy.update_statistics", defect)
    code, summaries = sweep(tmp_path, "seed=0,1")
    assert code.startswith("error: 2 failed, see ")
    assert [summary["error"] for summary in summaries.values()] == ["IndexError: ours"] * 2
    assert capfd.readouterr().err.count("Traceback") == 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["joblib", "submitit_local"])
def test_jobs_in_processes_of_their_own_report_their_failures_too(preset, tmp_path):
    arguments = [*SMALL, "algo.max_kl=0.01,-1", f"hydra.sweep.dir={tmp_path}"]
    started = process("train.py", "-m", *arguments, f"sweep={preset}")
    _, err = started.communicate(timeout=100)
    assert started.returncode == 1
    assert err.splitlines()[-1].startswith("error: 1 failed, see ")
    assert len(list(tmp_path.rglob("summary.json"))) == 1


def test_a_sweep_that_runs_again_skips_what_is_finished_and_resumes_the_rest(tmp_path):
    assert sweep(tmp_path, "seed=0,1,2")[0] is None
    finished, unfinished, unrecorded = (job(tmp_path, f"seed={i}") for i in range(3))
    before, rows = content(finished), rows_of(unfinished)
    for folder in (unfinished, unrecorded):
        summary = summary_of(folder) | {"status": "interrupted"}
        (folder / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(unrecorded / ".hydra")  # killed before there was anything to resume

    code, summaries = sweep(tmp_path, "seed=0,1,2,3", "sweep.resume=true")
    assert code is None
    assert content(finished) == before
    statuses = {name: s["status"] for name, s in summaries.items()}
    assert statuses.pop(f"{unrecorded.name}.unfinished1") == "interrupted"
    assert list(statuses.values()) == ["finished"] * 4
    assert not any("resume" in name for name in statuses)
    assert summary_of(unfinished)["resumed_at"] == int(rows[-1]["env_steps"])
    assert rows_of(unfinished) == rows
    assert summary_of(unrecorded)["resumed_at"] is None


def test_a_sweep_over_a_folder_that_is_used_says_so(tmp_path):
    assert sweep(tmp_path, "seed=0,1")[0] is None
    code, _ = sweep(tmp_path, "seed=0,1")
    assert code.startswith("error: 2 failed, see ")
    assert (tmp_path / "failed.txt").read_text().count("is not empty: name a folder that is") == 2


def test_a_folder_of_another_job_is_not_taken_for_this_one(tmp_path):
    numbered = "hydra.sweep.subdir=${hydra.job.num}"
    assert sweep(tmp_path, "seed=0", numbered)[0] is None
    code, _ = sweep(tmp_path, "seed=1", numbered, "sweep.resume=true")
    assert code.startswith("error: 1 failed, see ")
    assert "holds another job" in (tmp_path / "failed.txt").read_text()


def test_resuming_a_sweep_needs_its_folder():
    code, _ = run_here("train.py", "-m", *SMALL, "seed=0,1", "sweep.resume=true")
    assert code == "error: sweep.resume=true needs hydra.sweep.dir=<the folder of the sweep>"


def test_resuming_a_sweep_needs_a_sweep(tmp_path):
    code, _ = run_here("train.py", *SMALL, "sweep.resume=true", f"hydra.run.dir={tmp_path}")
    assert code == "error: sweep.resume=true goes with -m; one run goes on by resume=<its folder>"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["run", "sweep"])
def test_of_two_processes_started_together_one_writes_a_folder(mode, tmp_path):
    where = [f"hydra.run.dir={tmp_path}"]
    if mode == "sweep":
        where = ["-m", "seed=0", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=job"]
    folder = tmp_path / "job" if mode == "sweep" else tmp_path
    both = [process("train.py", *where, *SMALL, "total_steps=2000") for _ in range(2)]
    errors = [p.communicate(timeout=100)[1] for p in both]
    codes = [p.returncode for p in both]
    error = errors[codes.index(1)]
    if mode == "run":  # two sweeps of one folder share their failed.txt too
        assert sorted(codes) == [0, 1]
        assert error.count("\n") == 1
    error = "".join(errors)
    assert "is being written by another process" in error or "is not empty" in error
    assert "Traceback" not in error
    assert summary_of(folder)["status"] == "finished"
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    steps = [int(row["env_steps"]) for row in rows_of(folder)]
    assert steps == sorted(set(steps))


def test_a_claim_ends_with_its_process(tmp_path):
    code = "import os, sys; from pathlib import Path; from rlopt.folder import claimed\n"
    code += "with claimed(Path(sys.argv[1])): os._exit(9)  # as after kill -9"
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 9
    assert (tmp_path / LOCK).exists()
    assert is_empty(tmp_path)
    with (
        claimed(tmp_path),
        pytest.raises(ConfigError, match="is being written by another process"),
        claimed(tmp_path),
    ):
        pass
    assert not (tmp_path / LOCK).exists()
