"""Where pyscript comes from: its public repository, else our stand-in.

The release depends on that of Home Assistant: 1.7.0 does not load on 2026.5 or later, 2 needs Python 3.14.
"""

import compileall
import functools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.parts import cache

RELEASE = "1.7.0"
DEVELOPMENT = "master"
"""What stands for pyscript 2 where its repository has no release of it yet."""
FIRST_FOR_DEVELOPMENT = (2026, 5)
"""The first Home Assistant that needs pyscript 2."""
REPOSITORY = "https://github.com/custom-components/pyscript"
PACKAGE = Path("custom_components", "pyscript")
STAND_IN = Path(__file__).parents[1] / "stand_in" / PACKAGE


@dataclass(frozen=True)
class Source:
    """A `custom_components/pyscript` folder, and what to call it in any output."""

    path: Path
    description: str
    is_real: bool


def source(ref: str | None = None, *, home_assistant: str | None = None) -> Source:
    """Return pyscript of a tag or branch: by default PYSCRIPT_REF's, else that for a Home Assistant.

    The release of Home Assistant is by default the one of this environment.
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
    """Return the tag of the newest release 2.x, or None while there is none or it cannot be known."""
    try:
        listed = _git("ls-remote", "--tags", "--sort=-version:refname", REPOSITORY, "refs/tags/2.*")
    except (OSError, subprocess.SubprocessError):
        return None
    names = [line.rpartition("/")[2] for line in listed.splitlines()]
    return next((name for name in names if re.fullmatch(r"2[.\d]*", name)), None)


def _stand_in(reason: str) -> Source:
    return Source(STAND_IN, f"STAND-IN for pyscript ({reason})", is_real=False)


@functools.cache
def _clone(ref: str) -> Source:
    """Clone once; a failure is remembered for this process only."""

    def clone(path: Path) -> None:
        cache.progress(f"Fetching pyscript {ref}")
        _git("clone", "--quiet", "--depth", "1", "--branch", ref, REPOSITORY, str(path))
        compileall.compile_dir(path / PACKAGE, quiet=2)

    try:
        key = ref if ref[0].isdigit() else _git("ls-remote", REPOSITORY, ref)  # a branch moves
        path = cache.built(
            f"pyscript-{ref.replace('/', '-')}", [REPOSITORY, key, sys.implementation.cache_tag], clone
        )
        commit = _git("-C", str(path), "rev-parse", "--short=7", "HEAD")
    except FileNotFoundError:
        return _stand_in("git is not installed")
    except subprocess.TimeoutExpired:
        return _stand_in("the pyscript repository did not answer within a minute")
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        return _stand_in(f"the pyscript repository could not be reached: {reason}")
    return Source(path / PACKAGE, f"real pyscript {ref} (commit {commit})", is_real=True)


def _git(*arguments: str) -> str:
    """Run git, which never asks anything."""
    run = subprocess.run(
        ["git", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
    )
    return run.stdout.strip()
