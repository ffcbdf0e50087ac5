import pytest
import torch


@pytest.fixture(autouse=True)
def clean_torch():
    """Seed 0 and one thread for each test; what a test changes of torch is put back."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture
def float64(clean_torch):
    """Double precision, for comparisons to rounding."""
    torch.set_default_dtype(torch.float64)
