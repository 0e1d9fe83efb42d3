"""What two networks of equal weights say: a BLAS may round a product by where its weight lies in memory."""

from torch import Tensor

ROUNDING = 1e-5  # of the largest value; float32 through a few dozen layers


def gap(said: Tensor, expected: Tensor, floor: float = 1e-30) -> float:
    """The largest difference over the largest expected value, or over `floor` where that is larger."""
    said, expected = said.detach().double(), expected.detach().double()
    return float((said - expected).abs().max() / expected.abs().max().clamp(min=floor))


def assert_alike(said: Tensor, expected: Tensor, within: float = ROUNDING) -> None:
    """Equal shapes and dtypes, and values equal up to the rounding of networks at two addresses."""
    assert (said.shape, said.dtype) == (expected.shape, expected.dtype)
    found = gap(said, expected)
    assert found <= within, f"{found:.1e} of the largest value apart, allowed {within:.1e}"
