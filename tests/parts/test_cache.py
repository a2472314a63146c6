"""What is made once per machine is whole, or is made again."""

from pathlib import Path

import pytest

from tests.parts import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Use a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache.folder()


def write(content):
    """Return a builder that writes a file."""
    return lambda path: (path / "file").write_text(content)


def fail_halfway(path) -> None:
    """Write a part, and fail."""
    (path / "file").write_text("half")
    (path / "rest").mkdir()
    raise KeyboardInterrupt


def refuse(path) -> None:
    """Fail, since nothing is to be made."""
    raise AssertionError(path)


def test_what_is_whole_is_made_once() -> None:
    made = cache.built("part", ["source"], write("whole"))
    assert cache.built("part", ["source"], refuse) == made
    assert (made / "file").read_text() == "whole"


def test_from_another_source_another_is_made() -> None:
    first = cache.built("part", ["source"], write("first"))
    second = cache.built("part", ["another source"], write("second"))
    assert [(each / "file").read_text() for each in (first, second)] == ["first", "second"]


def test_what_a_failure_left_is_made_again_and_nothing_of_it_stays() -> None:
    with pytest.raises(KeyboardInterrupt):
        cache.built("part", ["source"], fail_halfway)
    made = cache.built("part", ["source"], write("whole"))
    assert (made / "file").read_text() == "whole"
    assert not (made / "rest").exists()


def test_what_has_broken_since_is_made_again() -> None:
    made = cache.built("part", ["source"], write("whole"))
    (made / "file").write_text("broken")

    def is_whole(path):
        return (path / "file").read_text() == "whole"

    again = cache.built("part", ["source"], write("whole"), is_whole)
    assert again == made
    assert is_whole(made)


def test_a_repair_that_fails_is_not_taken_for_whole() -> None:
    cache.built("part", ["source"], write("whole"))
    with pytest.raises(KeyboardInterrupt):
        cache.built("part", ["source"], fail_halfway, lambda _path: False)
    made = cache.built("part", ["source"], write("whole"))
    assert (made / "file").read_text() == "whole"
