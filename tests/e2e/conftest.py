"""The main jobs run on each Home Assistant that is to be had."""

from pathlib import Path

import pytest

from tests.parts.installations import installations


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that starts an installation on every installation."""
    if "installation" in metafunc.fixturenames:
        metafunc.parametrize("installation", installations(), ids=str, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests of a file that share a Home Assistant run in one worker."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "home_assistant" in item.fixturenames:
            installation = getattr(item, "callspec", None) and item.callspec.params.get("installation")
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {installation or ''}"))
