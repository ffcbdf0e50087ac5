"""rlopt/report/stats.py by hand, by enumeration, by scipy's tests, and by a published result."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from rlopt.report import stats

# Micheli, Alonso & Fleuret 2023, "Transformers are sample-efficient world models": the scores of
# IRIS on Atari 100k, five runs of each game, as published beside the paper
# (github.com/eloialonso/iris, results/data), after those of a random and of a human player.
IRIS = """
Alien             227.8   7127.7    368.7   452.5   437.2   331.7     510
Amidar              5.8   1719.5      196     126   164.9   162.9    65.1
Assault           222.4      742   1481.3   928.1  1121.8    1556  2534.8
Asterix             210   8503.3    762.5    1114    1082   716.5     593
BankHeist          14.2    753.1     42.2    48.8    68.4    46.4    59.6
BattleZone         2360  37187.5    16990   14570   11300   10070   12440
Boxing              0.1     12.1     86.2    49.3    55.8    83.5    75.5
Breakout            1.7     30.5    104.6    85.6    69.7    70.3    88.1
ChopperCommand      811   7387.8     1150    1276    1659    2162    1578
CrazyClimber    10780.5  35829.4    64101   66127   62740   77066   26587
DemonAttack       152.1     1971      905  2011.9  2888.5  2613.4    1753
Freeway               0     29.6     30.9    31.5    30.5    30.8    31.6
Frostbite          65.2   4334.7    274.3     250     295     250   226.3
Gopher            257.6   2412.5   2987.2  2476.8  3110.4  1171.4  1434.8
Hero               1027  30826.4   6916.2  6933.9  6740.6  7881.6  6714.7
Jamesbond            29    302.8    487.5     394     486     464     482
Kangaroo             52     3035     2249     732     750      90     370
Krull              1598   2665.5   6047.4  7364.8  4980.6  6006.3    8683
KungFuMaster      258.5  22736.3     7301   15949   34406   14372   36771
MsPacman          307.3   6951.6   1251.6   941.5   590.3   770.8  1441.1
Pong              -20.7     14.6     19.3    18.5    16.6     6.2    12.4
PrivateEye         24.9  69571.3      100     100     100     100     100
Qbert             163.9    13455      853     575   790.2  1027.2   483.2
RoadRunner         11.5     7845    11355    2033   17106    7614    9965
Seaquest           68.4  42054.7    752.2   855.8     691     386   621.6
UpNDown           533.4  11693.2     3793  5367.5  2943.7  3637.9  1988.9
"""


@pytest.fixture(scope="module")
def iris():
    """Human-normalised scores, 26 games x 5 runs."""
    rows = np.array([line.split()[1:] for line in IRIS.strip().splitlines()], dtype=float)
    random, human = rows[:, :1], rows[:, 1:2]
    return (rows[:, 2:] - random) / (human - random)


# The interquartile mean


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6], 6.5),  # (5 + 6 + 6 + 7 + 7 + 8) / 6
        ([1, 2, 3, 4, 100], 3),  # one falls away at each end
        ([1, 2, 6], 3),  # nothing does below four
        ([7], 7),
    ],
)
def test_the_interquartile_mean_by_hand(scores, expected):
    assert stats.iqm(np.array(scores, float)) == pytest.approx(expected)


def test_the_interquartile_mean_of_nothing_is_nan():
    assert math.isnan(stats.iqm(np.empty(0)))


def test_a_published_interquartile_mean(iris):
    """Table 1 of the paper: interquartile mean 0.501, mean 1.046, over 26 games and 5 runs."""
    assert iris.shape == (26, 5)
    assert stats.pooled_iqm(*iris) == pytest.approx(0.501, abs=5e-4)
    assert iris.mean() == pytest.approx(1.046, abs=5e-4)


def test_the_stratified_interval_of_the_published_case(iris):
    """Against the definition, written out with numpy: runs are drawn anew within each game."""
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 5, (20000, 26, 5))
    resamples = np.take_along_axis(np.broadcast_to(iris, drawn.shape), drawn, 2)
    middle = np.sort(resamples.reshape(20000, 130))[:, 32:98].mean(1)  # 130 / 4 = 32.5
    low, high = np.percentile(middle, [2.5, 97.5])
    estimate = stats.estimate(stats.pooled_iqm, *iris)
    assert estimate.low == pytest.approx(low, abs=0.004)
    assert estimate.high == pytest.approx(high, abs=0.004)
    assert (low, high) == pytest.approx((0.442, 0.565), abs=0.004)


# Intervals


@pytest.mark.parametrize("scores", [[1.0, 2.0, 4.0, 8.0], [3.0, 1.0, 4.0, 1.0, 5.0]])
def test_an_interval_is_that_of_all_resamples(scores):
    """n^n equally likely resamples, their percentiles by enumeration."""
    resamples = np.array(list(itertools.product(scores, repeat=len(scores))))
    low, high = np.percentile(stats.iqm(resamples), [2.5, 97.5])
    estimate = stats.estimate(stats.iqm, np.array(scores))
    assert estimate.value == stats.iqm(np.array(scores))
    assert estimate.low == pytest.approx(low, abs=0.13)
    assert estimate.high == pytest.approx(high, abs=0.13)


def test_the_points_of_a_curve_have_the_intervals_of_each_alone():
    scores = np.random.default_rng(0).normal(size=(3, 6))
    together = stats.estimate(stats.iqm, scores)
    alone = [stats.estimate(stats.iqm, row) for row in scores]
    np.testing.assert_allclose(np.array(together).T, np.array(alone))


def test_one_run_has_no_interval():
    assert np.isnan(stats.estimate(stats.iqm, np.array([3.0]))[1:]).all()
    assert np.isnan(stats.estimate(stats.iqm, np.empty(0))).all()
    assert stats.estimate(stats.iqm, np.ones((4, 1))).low.shape == (4,)


# Comparisons


def test_the_probability_of_improvement_by_hand():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    assert stats.improvement(x, y) == pytest.approx(4.5 / 6)  # four wins and a draw
    better = np.array([9.0, 9.0])
    assert stats.improvement(x, y, better, x) == pytest.approx((4.5 / 6 + 1) / 2)


def test_the_probability_of_improvement_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 3, 7)).astype(float)
    u = mannwhitneyu(x, y, axis=-1).statistic
    np.testing.assert_allclose(stats.improvement(x, y), u / 49)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (4, 4), (3, 5), (10, 10)])
def test_the_smallest_p_is_that_of_complete_separation(n, m):
    exact = mannwhitneyu(np.arange(n), np.arange(m) + 100, method="exact").pvalue
    assert stats.smallest_p(n, m) == pytest.approx(exact)


def test_the_smallest_p_of_two_environments():
    assert stats.smallest_p(2, 2, 2, 2) == pytest.approx(2 / 36)


def test_a_performance_profile_by_hand():
    scores = [np.array([0.2, 0.6, 1.0, 0.6]), np.array([0.0, 0.9])]
    profile = stats.profile(scores, np.array([-1.0, 0.5, 0.6, 1.0]))
    np.testing.assert_allclose(profile.value, [1, (3 / 4 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2, 0])
    assert (profile.low <= profile.value).all()
    assert (profile.value <= profile.high).all()
    assert profile.low[0] == profile.high[0] == 1


# Curves


def test_when_a_threshold_is_first_reached():
    x, y = np.array([10.0, 20.0, 30.0, 40.0]), np.array([1.0, 5.0, 4.0, 6.0])
    assert stats.first_reached(x, y, 5) == 20
    assert stats.first_reached(x, y, 5.5) == 40
    assert stats.first_reached(x, y, 7) == math.inf


def test_the_mean_height_of_a_curve():
    x, y = np.array([0.0, 10.0, 30.0]), np.array([0.0, 10.0, 10.0])
    assert stats.mean_height(x, y, 0, 30) == pytest.approx((50 + 200) / 30)
    assert stats.mean_height(x, y, 5, 15) == pytest.approx((37.5 + 50) / 10)
    assert math.isnan(stats.mean_height(x, y, 0, 31))
    assert math.isnan(stats.mean_height(np.empty(0), np.empty(0), 0, 1))
    assert math.isnan(stats.mean_height(x, y, math.nan, math.nan))


def test_curves_share_the_range_that_all_of_them_have():
    long, short = np.array([0.0, 4.0]), np.array([1.0, 3.0])
    grid, values = stats.on_grid([(long, 2 * long), (short, short)], 3)
    np.testing.assert_allclose(grid, [1, 2, 3])
    np.testing.assert_allclose(values, [[2, 1], [4, 2], [6, 3]])
    apart = np.array([5.0, 6.0])
    assert stats.on_grid([(long, long), (apart, apart)], 3)[0].size == 0
