"""The Python environments of the tests: `python -m tests.parts.environments` makes them.

Home Assistant needs Python 3.13 or later, FlexMeasures 3.12 at most, so each has one of its own.
Uses the standard library only: this is what runs first on a new machine.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.parts import cache

UV = "uv==0.13.9"
ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "tests" / "requirements"
FLEXMEASURES_PYTHONS = ("3.12", "3.11", "3.10")
MISLEADING = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON", "PIP_TARGET")


class SetupError(Exception):
    """A step of the set-up failed; the message says which, and why."""


def home_assistant() -> Path:
    """Return the environment of Home Assistant, of the newest release for this Python."""
    release = "2026.2.3" if sys.version_info >= (3, 13, 2) else "2025.4.4"
    base = os.path.realpath(sys._base_executable)
    return _environment("home-assistant", release, base)


def flexmeasures() -> Path:
    """Return the environment of the FlexMeasures server."""
    return _environment("flexmeasures", "1.0.1", _flexmeasures_python())


def python(environment: Path) -> Path:
    """Return the interpreter of an environment."""
    return environment / "bin" / "python"


def clean_variables() -> dict[str, str]:
    """Return the process's variables without those that lead into another environment."""
    return {name: value for name, value in os.environ.items() if name not in MISLEADING}


def _environment(name: str, release: str, interpreter: str) -> Path:
    """Make an environment with the pinned requirements of a release."""
    requirements = REQUIREMENTS / f"{name}-{release}.txt"

    def build(path: Path) -> None:
        uv = _uv()
        cache.progress(f"Installing {name} {release} (a few minutes the first time)")
        _run(uv, "venv", "--quiet", "--allow-existing", "--python", interpreter, path)
        _run(uv, "pip", "sync", "--quiet", "--python", python(path), requirements)

    return cache.built(
        f"{name}-{release}", [requirements.read_text(), interpreter, _version(interpreter)], build
    )


def _uv() -> Path:
    """Return the project's own uv."""

    def build(path: Path) -> None:
        cache.progress("Installing uv, which makes the environments")
        venv.create(path, with_pip=True)
        _run(python(path), "-m", "pip", "install", "--quiet", UV)

    interpreter = os.path.realpath(sys._base_executable)
    return cache.built("uv", [UV, interpreter, sys.version], build) / "bin" / "uv"


def _flexmeasures_python() -> str:
    """Return an installed Python that FlexMeasures can use, else the version for uv to download."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in FLEXMEASURES_PYTHONS:
        found = shutil.which(f"python{version}")
        candidates = [found] if found else []
        candidates += sorted(map(str, pyenv.glob(f"{version}.*/bin/python")), reverse=True)
        for candidate in candidates:
            if _version(candidate).startswith(version):
                return os.path.realpath(candidate)
    return FLEXMEASURES_PYTHONS[0]


def _version(interpreter: str) -> str:
    """Return the version an interpreter tells, or nothing if it does not run."""
    try:
        return subprocess.run(
            [interpreter, "-c", "import platform; print(platform.python_version())"],
            capture_output=True,
            text=True,
            env=clean_variables(),
        ).stdout.strip()
    except OSError:
        return ""


def _run(*command: str | Path) -> None:
    """Run a step; its output is shown if it fails."""
    variables = clean_variables() | {"UV_PYTHON_INSTALL_DIR": str(cache.folder() / "python")}
    step = subprocess.run(
        command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if step.returncode:
        raise SetupError(f"{' '.join(map(str, command))} failed:\n{step.stdout}")


def _link(environment: Path) -> None:
    """Point the checkout's .venv at an environment."""
    link = ROOT / ".venv"
    if link.exists() and not link.is_symlink():
        raise SetupError(f"{link} is not a link: remove it, and try again")
    if not link.is_symlink() or link.readlink() != environment:
        link.unlink(missing_ok=True)
        link.symlink_to(environment)


def main() -> None:
    """Make the environments, and point .venv at Home Assistant's."""
    try:
        _link(home_assistant())
        flexmeasures()
    except SetupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
