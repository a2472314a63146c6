"""Folders that are built once per machine, in the user's cache folder."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def folder() -> Path:
    """Return this project's folder in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flexmeasures-for-pyscript"


def built(
    name: str,
    made_from: list[str],
    build: Callable[[Path], None],
    is_whole: Callable[[Path], bool] = lambda _path: True,
) -> Path:
    """Return the folder that `build` fills, once for every content of `made_from`.

    A folder that was left unfinished, or that `is_whole` rejects, is built again. It is built in place, since
    environments cannot be moved.
    """
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:12]
    path = folder() / f"{name}-{key}"
    complete = path / ".complete"
    if complete.exists() and is_whole(path):
        return path
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / f"{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"Waiting for another process that builds {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (complete.exists() and is_whole(path)):
            # Remove the mark first, so that a folder that is removed only in part never counts as complete.
            complete.unlink(missing_ok=True)
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(mode=0o700)
            build(path)
            complete.touch()
    return path


def progress(line: str) -> None:
    """Print what is being done."""
    print(line, flush=True)
