"""Each plant of plants.py fails in the row that docs/verify.md names for it."""

import pytest
from test_verify import QUICK, audited

from rlopt.verify import CHECKS, name_of

pytestmark = pytest.mark.usefixtures("float64")
EPISODES = ["rollout.episodes=12", "env.num_envs=8"]


def rows_of(plant, monkeypatch, names=None):
    """The rows of the plant's configuration with the plant in it."""
    plant.into(monkeypatch)
    checks = [check for check in CHECKS if names is None or name_of(check) in names]
    quick = EPISODES if "rollout=episodes" in plant.overrides else QUICK
    return audited(*quick, *plant.overrides.split(), checks=checks)
