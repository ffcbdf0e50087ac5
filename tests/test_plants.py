"""Each plant of plants.py fails in the row that docs/verify.md names for it."""

import pytest
from plants import PLANTS
from test_verify import QUICK, audited, failed

from rlopt.verify import CHECKS, name_of

pytestmark = pytest.mark.usefixtures("float64")


def rows_of(plant, monkeypatch, names=None):
    """The rows of the plant's configuration with the plant in it."""
    plant.into(monkeypatch)
    checks = [check for check in CHECKS if names is None or name_of(check) in names]
    return audited(*QUICK, *plant.overrides.split(), checks=checks)
