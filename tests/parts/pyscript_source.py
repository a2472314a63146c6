"""Where pyscript comes from: its public repository, else our stand-in."""

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.parts import cache

RELEASE = "1.7.0"
REPOSITORY = "https://github.com/custom-components/pyscript"
STAND_IN = Path(__file__).parents[1] / "stand_in" / "custom_components" / "pyscript"


@dataclass(frozen=True)
class Source:
    """A `custom_components/pyscript` folder, and what to call it in any output."""

    path: Path
    description: str
    is_real: bool


def source(ref: str | None = None) -> Source:
    """Return pyscript of a tag or branch, by default PYSCRIPT_REF's, else the last release."""
    ref = ref or os.environ.get("PYSCRIPT_REF") or RELEASE
    return _stand_in("as chosen") if ref == "stand-in" else _clone(ref)


def _stand_in(reason: str) -> Source:
    return Source(STAND_IN, f"STAND-IN for pyscript ({reason})", is_real=False)


@functools.cache
def _clone(ref: str) -> Source:
    """Clone once; a failure is remembered for this process only."""

    def clone(path: Path) -> None:
        cache.progress(f"Fetching pyscript {ref}")
        _git("clone", "--quiet", "--depth", "1", "--branch", ref, REPOSITORY, str(path))

    try:
        key = ref if ref[0].isdigit() else _git("ls-remote", REPOSITORY, ref)  # a branch moves
        path = cache.built(f"pyscript-{ref.replace('/', '-')}", [REPOSITORY, key], clone)
        commit = _git("-C", str(path), "rev-parse", "--short=7", "HEAD")
    except FileNotFoundError:
        return _stand_in("git is not installed")
    except subprocess.TimeoutExpired:
        return _stand_in("the pyscript repository did not answer within a minute")
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        return _stand_in(f"the pyscript repository could not be reached: {reason}")
    package = path / "custom_components" / "pyscript"
    return Source(package, f"real pyscript {ref} (commit {commit})", is_real=True)


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
