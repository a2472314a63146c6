"""What is built once per machine is complete, or is built again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parts import cache


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def write(content: str) -> Callable[[Path], None]:
    """Return a builder that writes a file."""

    def build(path: Path) -> None:
        (path / "file").write_text(content)

    return build


def fail_halfway(path: Path) -> None:
    """Write a part, and fail."""
    (path / "file").write_text("half")
    (path / "rest").mkdir()
    raise KeyboardInterrupt


def refuse(path: Path) -> None:
    """Fail, since nothing must be built."""
    raise AssertionError(path)


def test_what_is_whole_is_made_once() -> None:
    path = cache.built("part", ["source"], write("whole"))
    assert cache.built("part", ["source"], refuse) == path
    assert (path / "file").read_text() == "whole"


def test_from_another_source_another_is_made() -> None:
    first = cache.built("part", ["source"], write("first"))
    second = cache.built("part", ["another source"], write("second"))
    assert [(path / "file").read_text() for path in (first, second)] == ["first", "second"]


def test_what_a_failure_left_is_made_again_and_nothing_of_it_stays() -> None:
    with pytest.raises(KeyboardInterrupt):
        cache.built("part", ["source"], fail_halfway)
    path = cache.built("part", ["source"], write("whole"))
    assert (path / "file").read_text() == "whole"
    assert not (path / "rest").exists()


def test_what_has_broken_since_is_made_again() -> None:
    path = cache.built("part", ["source"], write("whole"))
    (path / "file").write_text("broken")

    def is_whole(path: Path) -> bool:
        return (path / "file").read_text() == "whole"

    again = cache.built("part", ["source"], write("whole"), is_whole)
    assert again == path
    assert is_whole(path)


def test_a_repair_that_fails_is_not_taken_for_whole() -> None:
    cache.built("part", ["source"], write("whole"))
    with pytest.raises(KeyboardInterrupt):
        cache.built("part", ["source"], fail_halfway, lambda _path: False)
    path = cache.built("part", ["source"], write("whole"))
    assert (path / "file").read_text() == "whole"
