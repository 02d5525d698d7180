"""Fixtures that all tests share."""
import jax
import pytest


@pytest.fixture
def x64():
    """Double precision for the length of one test, so that a formula is told apart from its rounding."""
    with jax.enable_x64(True):
        yield
