import pytest

from rlopt.line_search import backtrack


def test_the_full_step_is_tried_first_and_fractions_shrink_geometrically():
    tried = []
    backtrack(lambda scale: tried.append(scale) or "no", 0.5, 4)
    assert tried == [1, 0.5, 0.25, 0.125]


def test_the_first_acceptable_fraction_is_taken_and_the_search_ends():
    tried = []
    search = backtrack(
        lambda scale: tried.append(scale) or ("big" if scale > 0.3 else None), 0.5, 9
    )
    assert (search.scale, search.tries, len(tried)) == (0.25, 3, 3)
    assert search.rejected == {"big": 2}


def test_reasons_are_counted_apart():
    reasons = iter(["kl", "kl", "surrogate", None])
    search = backtrack(lambda scale: next(reasons), 0.8, 10)
    assert search.rejected == {"kl": 2, "surrogate": 1}
    assert search.scale == pytest.approx(0.8**3)


@pytest.mark.parametrize("max_tries", [1, 5])
def test_a_failed_search_has_scale_zero(max_tries):
    search = backtrack(lambda scale: "kl", 0.5, max_tries)
    assert (search.scale, search.tries, search.rejected["kl"]) == (0, max_tries, max_tries)
