"""The main jobs run on each Home Assistant that is to be had."""

import pytest

from tests.parts.installations import installations


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what starts an installation on each."""
    if "installation" in metafunc.fixturenames:
        metafunc.parametrize("installation", installations(), ids=str, scope="session")
