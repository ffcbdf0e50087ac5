import csv
import io
import math
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rlopt.logger import Logger, digits, flat

CONFIG = {"algo": {"max_kl": 0.5, "fisher": "exact"}, "seed": 3, "stop": None, "sizes": [8, 8]}
FLAT = {"algo.max_kl": 0.5, "algo.fisher": "exact", "seed": 3, "stop": "None", "sizes": "[8, 8]"}
FIRST = {"rollout/return_mean": math.nan, "policy/kl": 0.1}
SECOND = {"rollout/return_mean": 1 / 3, "policy/kl": 0.2, "eval/return_mean": -4.0}
THIRD = {"rollout/return_mean": 2.0, "policy/kl": 1e-9}


def write(folder, *rows, close=True):
    logger = Logger(folder, CONFIG, total_steps=100, resumed_at=None)
    for i, row in enumerate(rows):
        logger.log(10 * (i + 1), row)
    if close:
        logger.close()
    return logger


def read_csv(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder):
    return EventAccumulator(str(folder)).Reload()


def hparams_data(events, tag):
    content = events.summary_metadata[tag].plugin_data.content
    return HParamsPluginData.FromString(content)


def test_nan_stays_in_the_csv_and_is_left_out_of_tensorboard(tmp_path):
    write(tmp_path, FIRST, SECOND)
    assert [row["rollout/return_mean"] for row in read_csv(tmp_path)] == ["nan", str(1 / 3)]
    assert [e.step for e in read_events(tmp_path).Scalars("rollout/return_mean")] == [20]


def test_a_column_that_comes_later_keeps_the_rows_before_it(tmp_path):
    write(tmp_path, FIRST, SECOND, THIRD)
    rows = read_csv(tmp_path)
    assert [row["env_steps"] for row in rows] == ["10", "20", "30"]
    assert [row["policy/kl"] for row in rows] == ["0.1", "0.2", "1e-09"]
    assert [row["eval/return_mean"] for row in rows] == ["", "-4.0", ""]


def test_rows_are_in_the_file_before_the_run_ends(tmp_path):
    logger = write(tmp_path, FIRST, SECOND, close=False)
    assert len(read_csv(tmp_path)) == 2
    logger.close()


def test_tensorboard_has_the_numbers_of_the_csv(tmp_path):
    write(tmp_path, SECOND, THIRD)
    events, rows = read_events(tmp_path), read_csv(tmp_path)
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"env_steps"}
    for tag in events.Tags()["scalars"]:
        scalars = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(int(r["env_steps"]), np.float32(r[tag])) for r in rows if r[tag]]
        assert scalars == expected


def test_hyperparameters_are_flat_and_the_session_ends(tmp_path):
    write(tmp_path, FIRST)
    events = read_events(tmp_path)
    start = hparams_data(events, "_hparams_/session_start_info").session_start_info.hparams
    values = {key: getattr(value, value.WhichOneof("kind")) for key, value in start.items()}
    assert values == FLAT
    end = hparams_data(events, "_hparams_/session_end_info")
    assert end.WhichOneof("data") == "session_end_info"


def test_hyperparameters_come_with_the_metrics_that_are_logged(tmp_path):
    write(tmp_path, FIRST)
    experiment = hparams_data(read_events(tmp_path), "_hparams_/experiment").experiment
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"eval/return_mean", "rollout/return_mean"} <= tags


def test_the_config_is_logged_as_text(tmp_path):
    write(tmp_path, FIRST)
    (event,) = read_events(tmp_path).Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert '"max_kl": 0.5' in text
    assert '"seed": 3' in text


def test_two_runs_in_one_process_do_not_share_a_record(tmp_path):
    first, second = (Logger(tmp_path / name, CONFIG, 100, None) for name in "ab")
    first.log(10, THIRD)
    second.log(20, SECOND)
    for logger in (first, second):
        logger.close()
    assert [row["env_steps"] for row in read_csv(tmp_path / "a")] == ["10"]
    assert [e.step for e in read_events(tmp_path / "b").Scalars("policy/kl")] == [20]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "draws"), [(io.StringIO, False), (Terminal, True)])
def test_the_progress_bar_is_for_terminals(tmp_path, monkeypatch, stream, draws):
    monkeypatch.setattr(sys, "stderr", stream())
    write(tmp_path, SECOND, THIRD)
    drawn = sys.stderr.getvalue()
    assert bool(drawn) == draws
    assert not draws or ("return=" in drawn and "kl=" in drawn and "step/s" in drawn)


def test_the_progress_bar_stops_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    logger = write(tmp_path, close=False)
    logger.log(60, SECOND)
    assert logger.bar.n == 60
    logger.log(130, SECOND)
    assert logger.bar.n == 100
    logger.close()


def test_flat_joins_keys_with_dots():
    assert flat(CONFIG) == FLAT
    assert flat({"a": {"b": {"c": True}}, "d": {}}) == {"a.b.c": True}


@pytest.mark.parametrize("resumed_at", [0, 10, 20, 25])
def test_a_record_that_goes_on_has_no_gap_and_no_double_row(tmp_path, resumed_at):
    """The rows after the checkpoint, a half-written one and columns of later rows are dropped."""
    rows = [FIRST, SECOND, THIRD]
    write(tmp_path / "whole", *rows)
    kept = rows[: resumed_at // 10]
    write(tmp_path / "kept", *kept)
    folder = tmp_path / "killed"
    write(folder, FIRST, SECOND, THIRD, THIRD | {"later": 1.0})
    with (folder / "metrics.csv").open("a") as file:
        file.write("1,2")
    logger = Logger(folder, CONFIG, 100, resumed_at)
    if kept:
        assert (folder / "metrics.csv").read_bytes() == (
            tmp_path / "kept" / "metrics.csv"
        ).read_bytes()
    for i, row in enumerate(rows[len(kept) :], len(kept) + 1):
        logger.log(10 * i, row)
    logger.close()
    assert (folder / "metrics.csv").read_bytes() == (
        tmp_path / "whole" / "metrics.csv"
    ).read_bytes()
    events = read_events(folder)
    assert [e.step for e in events.Scalars("policy/kl")] == [10, 20, 30]
    assert "later" not in events.Tags()["scalars"] or not events.Scalars("later")


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0.00"),
        (1234.5678, "1234.57"),
        (-10, "-10.00"),
        (0.71234, "0.7123"),
        (-0.00123, "-0.001230"),
    ],
)
def test_small_returns_have_four_significant_digits(x, text):
    assert digits(x) == text
