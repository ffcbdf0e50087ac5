"""Each plant of plants.py fails in the row that docs/verify.md names for it."""

from pathlib import Path

import pytest
from plants import PLANTS, table
from test_verify import QUICK, audited, failed

from rlopt.verify import CHECKS, name_of

pytestmark = pytest.mark.usefixtures("float64")

DOCS = Path(__file__).resolve().parent.parent / "docs" / "verify.md"
EPISODES = ["rollout.episodes=12", "env.num_envs=8"]
IN_THE_DEFAULT_SUITE = [  # the two that no test had found, and one of a few kinds
    "a subsample of the first rows",
    "ridge times the number of samples",
    "std 5% too large",
    "penalty times 4",
    "a logit that is only small",
    "evaluation samples",
]


def rows_of(plant, monkeypatch, names=None):
    """The rows of the plant's configuration with the plant in it."""
    plant.into(monkeypatch)
    checks = [check for check in CHECKS if names is None or name_of(check) in names]
    quick = EPISODES if "rollout=episodes" in plant.overrides else QUICK
    return audited(*quick, *plant.overrides.split(), checks=checks)


def marked(plant):
    marks = [] if plant.fault in IN_THE_DEFAULT_SUITE else [pytest.mark.slow]
    return pytest.param(plant, id=plant.fault, marks=marks)


@pytest.mark.parametrize("plant", [*map(marked, PLANTS)])
def test_a_plant_fails_its_row(plant, monkeypatch):
    assert plant.row in failed(rows_of(plant, monkeypatch, {plant.row}))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", sorted({plant.overrides for plant in PLANTS}))
def test_the_settings_of_the_plants_pass_without_them(overrides):
    quick = EPISODES if "rollout=episodes" in overrides else QUICK
    assert not failed(audited(*quick, *overrides.split()))


def test_the_docs_list_the_plants_and_the_checks():
    lines = DOCS.read_text().splitlines()
    assert [line for line in lines if "| `rlopt/" in line] == table()
    named = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert [n for n in named if n in map(name_of, CHECKS)] == list(map(name_of, CHECKS))
    assert f"holds {len(PLANTS)} faults" in DOCS.read_text()


def test_every_fault_has_its_own_name():
    assert len({plant.fault for plant in PLANTS}) == len(PLANTS)
