"""What a run leaves besides numbers: a layout, histograms, videos."""

import re
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from test_train_script import SMALL, rows_of, run_here, timeless, train

from rlopt.audit import copied, histograms

CARTPOLE = ["env=CartPole-v1", "algo=trpo"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that leaves numbers alone."""
    return train(tmp_path_factory.mktemp("plain") / "run", *CARTPOLE)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The same run with everything."""
    for package in ("moviepy", "pygame"):
        pytest.importorskip(package)
    options = ["log.histograms=true", "log.video=true"]
    return train(tmp_path_factory.mktemp("full") / "run", *CARTPOLE, *options)


def events_of(folder):
    return EventAccumulator(str(folder), {"histograms": 0, "images": 0, "tensors": 0}).Reload()


def evaluations(folder):
    return [int(row["env_steps"]) for row in rows_of(folder) if row["eval/return_mean"]]


def test_the_layout_groups_tags_that_exist(plain):
    events = events_of(plain)
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    tags = set(events.Tags()["scalars"])
    assert [c.title for c in layout.category] == [
        "return",
        "update",
        "gradient",
        "baseline",
        "time",
    ]
    for category in layout.category:
        for chart in category.chart:
            patterns = chart.multiline.tag
            found = {tag for tag in tags for p in patterns if re.match(p, tag)}
            assert found, chart.title
    shown = {p for c in layout.category for chart in c.chart for p in chart.multiline.tag}
    matched = {tag for tag in tags if any(re.match(p, tag) for p in shown)}
    assert {"rollout/return_mean", "eval/return_mean", "policy/kl", "audit/predicted_kl"} <= matched


def test_numbers_are_the_same_with_histograms_and_videos(plain, full):
    assert timeless(full) == timeless(plain)


def test_histograms_come_with_each_evaluation(plain, full):
    events = events_of(full)
    parameters = torch.load(full / "checkpoints" / "last.pt")["policy"]
    names = {name for name in parameters if name.startswith("network")}
    expected = {f"{kind}/{name}" for kind in ("parameters", "step") for name in names}
    assert set(events.Tags()["histograms"]) == expected | {"batch/advantage", "batch/ratio"}
    for tag in events.Tags()["histograms"]:
        assert [e.step for e in events.Histograms(tag)] == evaluations(full)
    for name in names:  # of the last one, which the checkpoint holds
        histogram, x = events.Histograms(f"parameters/{name}")[-1].histogram_value, parameters[name]
        assert histogram.num == x.numel()
        assert histogram.max == pytest.approx(float(x.max()))
        assert histogram.sum == pytest.approx(float(x.double().sum()), abs=1e-5)
    assert events_of(plain).Tags()["histograms"] == []


def test_the_step_is_what_the_update_moved():
    policy = torch.nn.Linear(2, 1)
    before = copied(policy)
    with torch.no_grad():
        policy.weight += 0.25
    ratio, advantage = torch.rand(2, 3)
    tensors = histograms(policy, before, advantage, ratio)
    torch.testing.assert_close(tensors["step/weight"], torch.full((1, 2), 0.25))
    torch.testing.assert_close(tensors["parameters/weight"], policy.weight.detach())
    assert tensors["step/bias"].count_nonzero() == 0
    assert torch.equal(tensors["batch/ratio"], ratio)


def test_a_video_comes_with_each_evaluation(plain, full):
    steps = evaluations(full)
    videos = [full / "videos" / f"step_{n}" / "rl-video-episode-0.mp4" for n in steps]
    assert sorted(full.rglob("*.mp4")) == sorted(videos)
    assert all(b"ftyp" in video.read_bytes()[:16] for video in videos)
    images = events_of(full).Images("eval/video")
    assert [image.step for image in images] == steps
    assert all(image.encoded_image_string[:6] == b"GIF89a" for image in images)
    assert not (plain / "videos").exists()


def test_an_environment_that_cant_be_drawn_is_one_line_before_the_run(tmp_path):
    pytest.importorskip("moviepy")
    folder = tmp_path / "run"
    arguments = ["env=probes:Echo-v0", "log.video=true", f"hydra.run.dir={folder}"]
    code, out = run_here("train.py", *SMALL, *arguments)
    assert code.startswith("error: log.video=true: env=probes:Echo-v0 can't be drawn: ")
    assert "\n" not in code
    assert out == ""
    assert not list(folder.iterdir())


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    run = f"hydra.run.dir={tmp_path / 'run'}"
    code, _ = run_here("train.py", *SMALL, *CARTPOLE, "log.video=true", run)
    needed = "a video of env=CartPole-v1 needs a package: pip install -e '.[video]'"
    assert code.startswith(f"error: log.video=true: {needed}")
