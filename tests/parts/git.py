"""Git, for the public repositories that the tests use."""

import os
import subprocess

TIMEOUT_SECONDS = 60


class GitError(Exception):
    """A git command failed; the message says why."""


def git(*arguments: str) -> str:
    """Run git, which never prompts, and return its output. Raise GitError."""
    try:
        process = subprocess.run(
            ["git", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise GitError(f"no answer within {TIMEOUT_SECONDS} seconds") from None
    except subprocess.CalledProcessError as error:
        raise GitError((error.stderr.strip().splitlines() or ["no reason given"])[-1]) from None
    return process.stdout.strip()
