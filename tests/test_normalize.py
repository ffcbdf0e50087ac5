import pytest
import torch

from rlopt.normalize import RunningNorm

pytestmark = pytest.mark.usefixtures("float64")


def seen(*batches):
    norm = RunningNorm(batches[0].shape[-1])
    for batch in batches:
        norm.update(batch)
    return norm


@pytest.mark.parametrize("sizes", [[40], [1, 39], [10, 25, 5], [1] * 40])
def test_statistics_are_those_of_everything_seen(sizes):
    x = 1e4 + torch.randn(40, 3) * torch.tensor([0.1, 1.0, 10.0])
    norm = seen(*x.split(sizes))
    torch.testing.assert_close(norm.mean, x.mean(0))
    torch.testing.assert_close(norm.var, x.var(0, unbiased=False))
    assert norm.count == 40


def test_seen_data_comes_out_standardised():
    x = 5 + 3 * torch.randn(200, 2)
    y = seen(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(2))
    torch.testing.assert_close(y.std(0, unbiased=False), torch.ones(2))


def test_float32_data_far_from_zero_keeps_its_precision():
    x = 1e4 + torch.randn(100, 1, dtype=torch.float32)
    norm = seen(*x.split(10))
    assert norm.var.item() == pytest.approx(x.double().var(unbiased=False).item(), rel=1e-9)
    assert norm.float()(x).dtype == torch.float32


def test_it_is_the_identity_before_the_first_update():
    x = torch.randn(4, 2)
    assert torch.equal(RunningNorm(2)(x), x)


def test_a_constant_feature_becomes_zero():
    x = torch.full((10, 1), 7.0)
    assert torch.equal(seen(x)(x), torch.zeros(10, 1))


def test_a_single_observation_gives_finite_outputs():
    x = torch.randn(1, 3)
    assert torch.equal(seen(x)(x), torch.zeros(1, 3))


def test_output_is_clipped_at_ten_standard_deviations():
    norm = seen(torch.randn(100, 1))
    assert norm(torch.tensor([[1e6], [-1e6]])).tolist() == [[10], [-10]]


def test_an_empty_batch_changes_nothing():
    norm = seen(torch.randn(10, 2))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    norm.update(torch.empty(0, 2))
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


def test_use_does_not_change_the_statistics():
    norm = seen(torch.randn(10, 2))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    norm.train()(100 + torch.randn(50, 2))
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


def test_a_checkpoint_carries_the_statistics():
    norm, restored, x = seen(torch.randn(10, 2)), RunningNorm(2), torch.randn(5, 2)
    restored.load_state_dict(norm.state_dict())
    assert torch.equal(restored(x), norm(x))
    restored.update(x)
    norm.update(x)
    assert torch.equal(restored.var, norm.var)


@pytest.mark.parametrize(("offset", "scale"), [(1.7e9, 1.0), (-1e6, 1e-3), (0, 1e-12), (0, 1e12)])
def test_statistics_far_from_0_and_of_any_scale_keep_their_digits(offset, scale):
    torch.set_default_dtype(torch.float32)
    x = torch.randn(1000, 2, dtype=torch.float64)
    norm, plain = seen(*(offset + scale * x).split(10)), seen(x)
    digits = 1e-6
    torch.testing.assert_close(norm.var / scale**2, plain.var, rtol=digits, atol=0)
    y = norm(offset + scale * x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, plain(x), rtol=0, atol=10 * digits)


@pytest.mark.parametrize("value", [0.1, 1.7e9 + 0.1, 5e-9, -3e12, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_stays_0_however_often_it_is_seen(value, dtype):
    torch.set_default_dtype(torch.float32)
    x = torch.full((7, 1), value, dtype=dtype)
    norm = seen(*[x] * 100)
    assert norm(x).abs().max() < 1e-3
    assert (norm(x + 100 * max(1, abs(value))) == 10).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 6e-8), (torch.float64, 1e-13)])
def test_a_constant_with_the_rounding_of_a_computation_is_a_constant(dtype, rounding):
    torch.set_default_dtype(torch.float32)
    for value in (8.9, 1e5, -3e-7):
        x = (value * (1 + rounding * torch.randn(500, 1, dtype=torch.float64))).to(dtype)
        assert seen(x)(x).std() < 0.2


def test_the_same_numbers_give_the_same_bits_in_every_type():
    torch.set_default_dtype(torch.float32)
    x = torch.randint(-100, 100, (50, 3), dtype=torch.int64)
    x[:, 2] = 7
    norm = seen(x.float())
    assert norm.count == 50
    for dtype in (torch.int8, torch.int64, torch.float64):
        assert torch.equal(seen(x.to(dtype))(x.to(dtype)), norm(x.float()))


def test_statistics_of_an_older_checkpoint_are_taken():
    """Their `shift` was in float32."""
    torch.set_default_dtype(torch.float32)
    norm, x = seen(3 + torch.randn(10, 2)), torch.randn(5, 2)
    old = {key: v.float() if key == "shift" else v for key, v in norm.state_dict().items()}
    restored = RunningNorm(2)
    restored.load_state_dict(old)
    assert torch.equal(restored(x), norm(x))


def test_leading_dimensions_are_free():
    norm, x = seen(torch.randn(10, 2)), torch.randn(3, 4, 2)
    assert torch.equal(norm(x).flatten(0, 1), norm(x.flatten(0, 1)))
