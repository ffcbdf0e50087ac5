from itertools import pairwise

import pytest
import torch
from oracles import random_spd
from torch import nn

from rlopt.linalg import (
    assign,
    conjugate_gradient,
    damped,
    dense,
    flatten,
    gradient,
    jacobian_metric_operator,
    solve_dense,
)

pytestmark = pytest.mark.usefixtures("float64")


def operator(matrix):
    return lambda v: matrix @ v


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_conjugate_gradient_solves_spd_systems(size):
    A, b = random_spd(size), torch.randn(size)
    solution = conjugate_gradient(operator(A), b, 3 * size, 1e-13)
    torch.testing.assert_close(solution.x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-11)


def test_a_norm_error_falls_monotonically():
    A, b = random_spd(50), torch.randn(50)
    exact = torch.linalg.solve(A, b)
    errors = []
    for n in range(40):
        error = conjugate_gradient(operator(A), b, n, 0.0).x - exact
        errors.append(float(error @ A @ error))
    assert all(later < earlier for earlier, later in pairwise(errors))
    # and each iterate is the best of its Krylov space
    krylov = torch.stack([torch.linalg.matrix_power(A / 100, k) @ b for k in range(5)], dim=1)
    best = krylov @ torch.linalg.solve(krylov.T @ A @ krylov, krylov.T @ b)
    torch.testing.assert_close(conjugate_gradient(operator(A), b, 5, 0.0).x, best)


def test_zero_right_hand_side_costs_nothing():
    def never(v):
        raise AssertionError("no product is needed")

    solution = conjugate_gradient(never, torch.zeros(3), 10, 1e-3)
    assert (solution.iterations, solution.relative_residual) == (0, 0.0)
    assert torch.equal(solution.x, torch.zeros(3))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_conjugate_gradient_is_linear_in_the_scale_of_b(scale):
    A, b = random_spd(30), torch.randn(30)
    unit = conjugate_gradient(operator(A), b, 100, 1e-3)
    scaled = conjugate_gradient(operator(A), scale * b, 100, 1e-3)
    assert scaled.iterations == unit.iterations > 5
    torch.testing.assert_close(scaled.x / scale, unit.x, rtol=1e-9, atol=1e-12)


def test_conjugate_gradient_stops_at_the_relative_tolerance_and_no_later():
    A, b = random_spd(30), torch.randn(30)
    solution = conjugate_gradient(operator(A), b, 100, 1e-3)
    before = conjugate_gradient(operator(A), b, solution.iterations - 1, 1e-3)
    assert solution.relative_residual <= 1e-3 < before.relative_residual
    true_residual = float((b - A @ solution.x).norm() / b.norm())
    assert solution.relative_residual == pytest.approx(true_residual)


def test_conjugate_gradient_spends_at_most_max_iterations():
    products = []
    A = random_spd(30)
    conjugate_gradient(lambda v: products.append(v) or A @ v, torch.randn(30), 7, 0.0)
    assert len(products) == 7


def test_conjugate_gradient_leaves_b_alone():
    b = torch.randn(5)
    before = b.clone()
    conjugate_gradient(operator(random_spd(5)), b, 5, 0.0)
    assert torch.equal(b, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-3, 0.0])
def test_a_singular_but_consistent_system_stays_at_its_least_norm_solution(dtype, tolerance):
    Q, _ = torch.linalg.qr(torch.randn(20, 20))
    eigenvalues = torch.cat([torch.linspace(1, 5, 5), torch.zeros(15)])
    A = (Q @ torch.diag(eigenvalues) @ Q.T).to(dtype)
    least_norm = Q[:, :5].to(dtype) @ torch.randn(5, dtype=dtype)
    solution = conjugate_gradient(operator(A), A @ least_norm, 50, tolerance)
    assert (solution.x - least_norm).norm() < max(1e-5, 2 * tolerance) * least_norm.norm()


def test_an_operator_without_curvature_gives_a_zero_step():
    solution = conjugate_gradient(torch.zeros_like, torch.randn(4), 10, 1e-3)
    assert torch.equal(solution.x, torch.zeros(4))
    assert solution.relative_residual == 1


def test_negative_curvature_returns_the_iterate_before_it():
    A = torch.diag(torch.tensor([2.0, -1.0]))
    solution = conjugate_gradient(operator(A), torch.tensor([1.0, 0.1]), 10, 0.0)
    first = conjugate_gradient(operator(A), torch.tensor([1.0, 0.1]), 1, 0.0)
    assert torch.equal(solution.x, first.x)
    assert first.x.norm() > 0


def test_dense_rebuilds_the_matrix():
    A = random_spd(6)
    torch.testing.assert_close(dense(operator(A), torch.zeros(6)), A)


def test_dense_solve_agrees_with_torch():
    A, b = random_spd(9), torch.randn(9)
    solution = solve_dense(operator(A), b)
    torch.testing.assert_close(solution.x, torch.linalg.solve(A, b))
    assert solution.relative_residual < 1e-12


def test_dense_solve_of_zero_is_zero():
    solution = solve_dense(operator(random_spd(3)), torch.zeros(3))
    assert torch.equal(solution.x, torch.zeros(3))
    assert solution.relative_residual == 0


def test_dense_solve_refuses_a_singular_matrix_and_names_the_damping():
    with pytest.raises(ValueError, match="damping"):
        solve_dense(torch.zeros_like, torch.ones(3))


def test_damping_is_added_to_the_diagonal():
    A = random_spd(5)
    B = dense(damped(operator(A), 0.25), torch.zeros(5))
    torch.testing.assert_close(B, A + 0.25 * torch.eye(5))


def test_jacobian_metric_operator_is_the_dense_product():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    parameters, x = list(network.parameters()), torch.randn(6, 3)
    outputs = network(x)
    J = torch.stack([gradient(y, parameters) for y in outputs.flatten()])
    blocks = [random_spd(2) for _ in range(6)]
    metric = torch.stack(blocks)

    product = jacobian_metric_operator(
        outputs, parameters, lambda u: torch.einsum("bij,bj->bi", metric, u)
    )
    expected = J.T @ torch.block_diag(*blocks) @ J
    for v in torch.randn(3, J.shape[1]):
        torch.testing.assert_close(product(v), expected @ v)


def test_gradient_is_flat_and_keeps_the_graph():
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    scalar = (x**2).sum() * y
    for _ in range(2):
        torch.testing.assert_close(gradient(scalar, [x, y]), torch.tensor([6.0, 12.0, 5.0]))


def test_assign_reverses_flatten():
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    assign(list(target.parameters()), flatten(source.parameters()).detach())
    assert torch.equal(source.weight, target.weight)
    assert torch.equal(source.bias, target.bias)


def test_parameters_never_become_views_of_an_assigned_vector():
    layer, vector = nn.Linear(2, 1), torch.tensor([1.0, 2.0, 3.0])
    assign(list(layer.parameters()), vector)
    with torch.no_grad():
        layer.weight.add_(1)
    assert torch.equal(vector, torch.tensor([1.0, 2.0, 3.0]))
    vector.zero_()
    assert torch.equal(flatten(layer.parameters()), torch.tensor([2.0, 3.0, 3.0]))


@pytest.mark.parametrize("layer", [nn.Linear(2, 1), nn.Linear(2, 1, bias=False)])
def test_flatten_is_a_copy(layer):
    theta = flatten(layer.parameters()).detach()
    before = theta.clone()
    with torch.no_grad():
        layer.weight.add_(1)
    assert torch.equal(theta, before)


def test_assign_refuses_a_vector_of_another_size():
    with pytest.raises(RuntimeError):
        assign(list(nn.Linear(2, 1).parameters()), torch.zeros(4))
