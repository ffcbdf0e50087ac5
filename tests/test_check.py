import math

import pytest

from rlopt import check

NOT_NUMBERS = ["1", None, True, [1], math.nan]


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (check.number, [-1, 0.5], [*NOT_NUMBERS, math.inf]),
        (check.positive, [1e-9, 1], [0, -0.1, math.inf, *NOT_NUMBERS]),
        (check.non_negative, [0, 0.0, 2], [-1e-9, *NOT_NUMBERS]),
        (check.fraction, [0, 0.5, 1], [-1e-9, 1.001, *NOT_NUMBERS]),
        (check.open_fraction, [0.001, 0.999], [0, 1, -1, *NOT_NUMBERS]),
        (check.whole, [1, 10], [0, -1, 1.0, *NOT_NUMBERS]),
        (check.relative_tolerance, [0, 0.5], [1, -1e-9, *NOT_NUMBERS]),
        (check.sizes, [[], [1, 2], (3,)], [3, "ab", {}]),
        (check.interval, [[1, 2], [1, 1.0]], [[2, 1], [1], 1, "ab"]),
        (check.flag, [True, False], [0, 1, "true", None]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_check_passes_what_is_allowed_and_names_what_is_not(rule, good, bad):
    for value in good:
        rule(setting=value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^setting must be .*, got ") as raised:
            rule(setting=value)
        assert str(raised.value).split(": write ")[0].endswith(repr(value))


@pytest.mark.parametrize(
    ("rule", "value", "write"),
    [
        (check.whole, 1e5, "100000"),
        (check.whole, "1e5.0", "100000"),
        (check.whole, "100k", "100000"),
        (check.whole, "100_000.0", "100000"),
        (check.whole, 1.5, None),
        (check.whole, 0.0, None),
        (check.whole, "many", None),
        (check.whole, math.inf, None),
        (check.sizes, 64, "[64]"),
        (check.sizes, "64 32", "[64,32]"),
        (check.sizes, "64x32", "[64,32]"),
        (check.sizes, [64.0, "32"], "[64,32]"),
        (check.sizes, [0], None),
        (check.sizes, "wide", None),
        (check.flag, "yes", "true"),
        (check.flag, "Off", "false"),
        (check.flag, "maybe", None),
    ],
)
def test_a_message_says_what_to_write_where_that_is_known(rule, value, write):
    with pytest.raises(ValueError, match=r"^setting must be ") as raised:
        rule(setting=value)
    _, _, hint = str(raised.value).partition(": write ")
    assert hint == (f"setting={write}" if write else "")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sgd", "torch.optim.SGD"),
        ("torch.optim.Adm", "torch.optim.Adam"),
        ("rlopt.algos.npg.NGP", "rlopt.algos.npg.NPG"),
        ("no_such_module.adamw", "torch.optim.AdamW"),
        ("no_such_module.Zebra", None),
    ],
)
def test_a_class_is_found_by_a_name_like_it(name, meant):
    assert check.class_like(name) == meant


def test_whole_takes_another_minimum():
    check.whole(0, setting=0)
    with pytest.raises(ValueError, match="at least 5, got 4"):
        check.whole(5, setting=4)


def test_one_of_lists_the_choices():
    check.one_of(["a", "b"], setting="b")
    with pytest.raises(ValueError, match=r"^setting must be one of a, b, got 'c'$"):
        check.one_of(["a", "b"], setting="c")


def test_every_setting_is_checked():
    with pytest.raises(ValueError, match=r"^second must"):
        check.positive(first=1, second=0)
