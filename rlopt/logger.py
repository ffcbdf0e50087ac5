"""The record of a run: TensorBoard and metrics.csv, and a progress bar on a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from rlopt.checkpoint import write, writing

# TensorBoard's Custom Scalars: what belongs into one picture; tags are regular expressions
LAYOUT = {
    "return": {
        "training and evaluation": ["Multiline", ["rollout/return_mean", "eval/return_mean"]],
        "episode length": ["Multiline", ["rollout/length_mean", "eval/length_mean"]],
    },
    "update": {
        "KL, measured and predicted": ["Multiline", ["policy/kl$", ".*/predicted_kl"]],
        "gain, measured and predicted": [
            "Multiline",
            ["policy/surrogate_gain", ".*/predicted_gain"],
        ],
        "entropy": ["Multiline", ["policy/entropy$"]],
        "step": ["Multiline", ["algo/(step_size|penalty)", "algo/line_search_scale"]],
        "gradient norm": ["Multiline", ["algo/grad_norm"]],
        "work": ["Multiline", ["algo/cg_iterations", "algo/line_search_tries"]],
    },
    "gradient": {
        "signal": ["Multiline", ["audit/gradient_snr"]],
        "angles": ["Multiline", ["audit/.*_cosine"]],
    },
    "baseline": {
        "explained variance": ["Multiline", ["baseline/explained_variance"]],
        "loss": ["Multiline", ["baseline/loss"]],
    },
    "time": {
        "steps per second": ["Multiline", ["time/steps_per_second"]],
        "share of sampling": ["Multiline", ["time/rollout_share"]],
    },
}
HPARAM_METRICS = ["eval/return_mean", "rollout/return_mean", "time/steps_per_second"]


class Logger:
    """Writes one row of metrics an iteration; the x axis is environment steps.

    Args:
        folder: the run folder.
        config: resolved settings, nested; logged as text and, flattened, as hyperparameters.
        total_steps: the end of the progress bar.
        resumed_at: the steps of the checkpoint that a resumed run goes on from, after which the
            record in `folder` is dropped; None for a new run.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], total_steps: int, resumed_at: int | None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.columns: list[str] = []
        self.bar = tqdm(
            total=total_steps,
            initial=resumed_at or 0,
            unit="step",
            disable=None,
            dynamic_ncols=True,
        )
        experiment, start, self.session_end = hparams(
            hyperparameters(config), dict.fromkeys(HPARAM_METRICS)
        )
        if resumed_at is not None:
            self._truncate(resumed_at)  # TensorBoard drops its later points by purge_step
            time.sleep(1 - time.time() % 1)  # and reads files in order of the second in their names
            self.writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)
            return
        self.writer = SummaryWriter(str(folder))
        text = json.dumps(config, indent=2)
        self.writer.add_text("config", "".join(f"\t{line}\n" for line in text.splitlines()))
        self._add_summaries(experiment, start)
        self.writer.add_custom_scalars(LAYOUT)
        self.writer.flush()

    def log(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Write one row; TensorBoard leaves out nan, which means nothing to report yet.

        Raises:
            WriteError: the disk is full, or the folder read-only.
        """
        with writing(self.folder):
            for tag, value in metrics.items():
                if not math.isnan(value):
                    self.writer.add_scalar(tag, value, env_steps)
            self._write_row({"env_steps": env_steps, **metrics})
        self.bar.set_postfix(
            {
                "return": digits(metrics["rollout/return_mean"]),
                "kl": f"{metrics['policy/kl']:.4f}",
            },
            refresh=False,
        )
        self.bar.update(min(env_steps, self.bar.total or env_steps) - self.bar.n)

    def histograms(self, env_steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the distribution of each tensor's entries."""
        with writing(self.folder):
            for tag, x in tensors.items():
                self.writer.add_histogram(tag, x, env_steps)

    def gif(self, tag: str, env_steps: int, content: bytes) -> None:
        """Write an animation; TensorBoard plays it among the images."""
        image = Summary.Image(encoded_image_string=content, colorspace=3)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        with writing(self.folder):
            self.writer._get_file_writer().add_summary(summary, env_steps)

    def _write_row(self, row: Mapping[str, float]) -> None:
        path = self.folder / "metrics.csv"
        new_columns = [key for key in row if key not in self.columns]
        if new_columns:  # the first row, or the first evaluation: write a wider header
            lines = path.read_text().splitlines() if self.columns else []
            old_rows = list(csv.DictReader(lines))
            self.columns += new_columns
            self._write_table(old_rows)
        with path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _write_table(self, rows: list[dict[str, str]]) -> None:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write(self.folder / "metrics.csv", file.getvalue().encode())

    def _truncate(self, env_steps: int) -> None:
        """Drop the rows after `env_steps`, a half-written last one, and columns left empty."""
        path = self.folder / "metrics.csv"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        rows = [row for row in csv.DictReader(whole) if int(row["env_steps"]) <= env_steps]
        if rows:
            self.columns = [key for key in rows[0] if any(row[key] for row in rows)]
            self._write_table(rows)
        else:
            path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Bring all rows to the disk, before a checkpoint relies on them."""
        with writing(self.folder):
            self.writer.flush()
            if self.columns:
                with (self.folder / "metrics.csv").open("rb") as file:
                    os.fsync(file.fileno())

    def close(self) -> None:
        """End the progress bar and TensorBoard's session."""
        self.bar.close()
        self._add_summaries(self.session_end)
        self.writer.close()

    def _add_summaries(self, *summaries: Any) -> None:
        for summary in summaries:
            self.writer._get_file_writer().add_summary(summary)


class NoLogger:
    """In place of a logger where another process keeps the record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def histograms(self, env_steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def gif(self, tag: str, env_steps: int, content: bytes) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config with `algo: NPG` in place of `algo._target_: rlopt.algos.npg.NPG`."""
    return {
        key.removesuffix("._target_"): value.split(".")[-1] if "_target_" in key else value
        for key, value in flat(config).items()
        if "_partial_" not in key
    }


def digits(x: float) -> str:
    """A return as text: two decimals, and of a small one four significant digits."""
    return f"{x:.2f}" if x == 0 or not abs(x) < 10 else f"{x:#.4g}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as {"algo.max_kl": 0.01, ...}; other types of values become strings."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = (
                value if isinstance(value, bool | int | float | str) else str(value)
            )
    return result
