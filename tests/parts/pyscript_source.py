"""Where pyscript comes from: its public repository, else our stand-in.

The release depends on that of Home Assistant: 1.7.0 does not load on 2026.5 or later, 2 needs Python 3.14.
"""

import compileall
import functools
import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.parts import cache
from tests.parts.git import GitError, git

RELEASE = "1.7.0"
DEVELOPMENT = "master"
"""The branch used for pyscript 2 as long as its repository has no release of it."""
FIRST_FOR_DEVELOPMENT = (2026, 5)
"""The first Home Assistant that needs pyscript 2."""
REPOSITORY = "https://github.com/custom-components/pyscript"
PACKAGE = Path("custom_components", "pyscript")
STAND_IN = Path(__file__).parents[1] / "stand_in" / PACKAGE


@dataclass(frozen=True)
class Source:
    """A `custom_components/pyscript` folder, and its description for output."""

    path: Path
    description: str
    is_real: bool


def source(ref: str | None = None, *, home_assistant: str | None = None) -> Source:
    """Return pyscript of a tag or branch.

    The default is PYSCRIPT_REF, else the release for a Home Assistant, by default that of this environment.
    """
    ref = ref or os.environ.get("PYSCRIPT_REF") or _for(home_assistant or version("homeassistant"))
    return _stand_in("as chosen") if ref == "stand-in" else _clone(ref)


def _for(home_assistant: str) -> str:
    """Return the release of pyscript that goes with one of Home Assistant."""
    if tuple(map(int, home_assistant.split(".")[:2])) < FIRST_FOR_DEVELOPMENT:
        return RELEASE
    return _newest_of_version_2() or DEVELOPMENT


@functools.cache
def _newest_of_version_2() -> str | None:
    """Return the tag of the newest release 2.x, or None if there is none or git fails."""
    try:
        tags = git("ls-remote", "--tags", "--sort=-version:refname", REPOSITORY, "refs/tags/2.*")
    except GitError:
        return None
    names = [line.rpartition("/")[2] for line in tags.splitlines()]
    return next((name for name in names if re.fullmatch(r"2[.\d]*", name)), None)


def _stand_in(reason: str) -> Source:
    return Source(STAND_IN, f"STAND-IN for pyscript ({reason})", is_real=False)


@functools.cache
def _clone(ref: str) -> Source:
    """Return a clone, made once; a failure is cached for this process only."""

    def clone(path: Path) -> None:
        cache.progress(f"Fetching pyscript {ref}")
        git("clone", "--quiet", "--depth", "1", "--branch", ref, REPOSITORY, str(path))
        compileall.compile_dir(path / PACKAGE, quiet=2)

    try:
        key = ref if ref[0].isdigit() else git("ls-remote", REPOSITORY, ref)  # a branch moves
        path = cache.built(
            f"pyscript-{ref.replace('/', '-')}", [REPOSITORY, key, str(sys.implementation.cache_tag)], clone
        )
        commit = git("-C", str(path), "rev-parse", "--short=7", "HEAD")
    except GitError as error:
        return _stand_in(f"the pyscript repository could not be cloned: {error}")
    return Source(path / PACKAGE, f"real pyscript {ref} (commit {commit})", is_real=True)
