"""The Python environments of the tests: `python -m tests.parts.environments` creates them.

Home Assistant and FlexMeasures need different Pythons, so each has its own environment. Uses the standard
library only: this runs first on a new machine.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.parts import cache, pins

UV = "uv==0.13.9"
ROOT = Path(__file__).parents[2]
FLEXMEASURES = "1.0.1"
FLEXMEASURES_PYTHONS = ("3.12", "3.11", "3.10")
MISLEADING = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON", "PIP_TARGET")
CHOICE = "HOME_ASSISTANT"
"""The environment variable that names the release of Home Assistant to use."""
BASE_PYTHON: str = getattr(sys, "_base_executable", sys.executable)
"""The Python that this environment was created from."""


class SetupError(Exception):
    """A step of the set-up failed; the message says which, and why."""


@dataclass(frozen=True)
class Interpreter:
    """A working Python: its path, with links resolved, and its version."""

    path: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        """Return the path and the version."""
        return f"{self.path} {'.'.join(map(str, self.version))}"


def home_assistant(release: str | None = None) -> Path:
    """Return the environment of a release of Home Assistant.

    The default is the release in HOME_ASSISTANT, else the oldest pinned one with a suitable Python. Raise
    SetupError if there is no Python for it.
    """
    release = release or os.environ.get(CHOICE) or _default_release()
    requirements = _pinned(release)
    if (interpreter := _home_assistant_python(requirements)) is None:
        needed = pins.requires_python(requirements)
        raise SetupError(
            f"Home Assistant {release} needs Python {needed}, but there is none on the PATH, in ~/.local/bin"
            " or in pyenv: install one, or choose another release with HOME_ASSISTANT=..."
        )
    return _environment("home-assistant", release, requirements, interpreter)


def newest_home_assistant() -> str | None:
    """Return the newest pinned release of Home Assistant, if there is a Python for it."""
    release = pins.releases()[-1]
    return release if _home_assistant_python(_pinned(release)) else None


def flexmeasures() -> Path:
    """Return the environment of the FlexMeasures server."""
    requirements = pins.path("flexmeasures", FLEXMEASURES).read_text()
    interpreter = _find_python(*FLEXMEASURES_PYTHONS) or FLEXMEASURES_PYTHONS[0]
    return _environment("flexmeasures", FLEXMEASURES, requirements, interpreter)


def python(environment: Path) -> Path:
    """Return the interpreter of an environment."""
    return environment / "bin" / "python"


def clean_variables() -> dict[str, str]:
    """Return the environment variables without those that lead into another Python environment."""
    return {name: value for name, value in os.environ.items() if name not in MISLEADING}


def uv() -> Path:
    """Return the project's own uv."""

    def build(path: Path) -> None:
        cache.progress("Installing uv, which creates the environments")
        # A copy of an interpreter that was reached through a link does not find its library.
        venv.create(path, with_pip=True, symlinks=True)
        run(python(path), "-m", "pip", "install", "--quiet", UV)

    interpreter = os.path.realpath(BASE_PYTHON)
    environment = cache.built("uv", [UV, interpreter, sys.version], build, is_whole=_runs)
    return environment / "bin" / "uv"


def run(*command: str | Path) -> None:
    """Run a command. Raise SetupError with its output if it fails."""
    variables = clean_variables() | {"UV_PYTHON_INSTALL_DIR": str(cache.folder() / "python")}
    process = subprocess.run(
        command, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if process.returncode:
        raise SetupError(f"{' '.join(map(str, command))} failed:\n{process.stdout}")


def _environment(name: str, release: str, requirements: str, interpreter: Interpreter | str) -> Path:
    """Create an environment with the pinned requirements of a release."""

    def build(path: Path) -> None:
        program = uv()
        cache.progress(f"Installing {name} {release} (a few minutes the first time)")
        base = interpreter if isinstance(interpreter, str) else interpreter.path
        run(program, "venv", "--quiet", "--allow-existing", "--python", base, path)
        file = path / "requirements.txt"
        file.write_text(requirements)
        run(program, "pip", "sync", "--quiet", "--python", python(path), file)

    return cache.built(f"{name}-{release}", [requirements, str(interpreter)], build, is_whole=_runs)


def _runs(path: Path) -> bool:
    """Return whether an environment's Python still starts: its base Python may have been removed."""
    return _examine(str(python(path))) is not None


def _pinned(release: str) -> str:
    """Return the pinned requirements of a Home Assistant; resolve them if no file has them."""
    file = pins.path("home-assistant", release)
    if file.exists():
        return file.read_text()

    def build(path: Path) -> None:
        cache.progress(f"Resolving the requirements of Home Assistant {release}")
        (path / "requirements.txt").write_text(pins.resolve_home_assistant(release, uv(), run))

    sources = [release, pins.HOME_ASSISTANT.read_text(), pins.OVERRIDES.read_text()]
    return (cache.built(f"requirements-{release}", sources, build) / "requirements.txt").read_text()


def _default_release() -> str:
    """Return the oldest pinned release of Home Assistant with a suitable Python, else the oldest."""
    releases = pins.releases()
    suitable = (release for release in releases if _home_assistant_python(_pinned(release)))
    return next(suitable, releases[0])


def _home_assistant_python(requirements: str) -> Interpreter | None:
    """Return a Python that meets the requirements of a release."""
    return _find_python(pins.requires_python(requirements).removeprefix(">="))


def _find_python(*versions: str) -> Interpreter | None:
    """Return an interpreter of the first version that is installed.

    A later patch release is suitable; a later minor version is not, since the pinned wheels are not for it.
    """
    for wanted in [tuple(map(int, version.split("."))) for version in versions]:
        for interpreter in _interpreters(f"{wanted[0]}.{wanted[1]}"):
            if interpreter.version >= wanted and interpreter.version[:2] == wanted[:2]:
                return interpreter
    return None


@functools.cache
def _interpreters(minor: str) -> list[Interpreter]:
    """Return this Python, and those of a minor version on the PATH, in ~/.local/bin and in pyenv."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), str(Path.home() / ".local" / "bin")]
    named = [shutil.which(f"python{minor}", path=folder) for folder in folders]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [BASE_PYTHON, *named, *sorted(map(str, pyenv.glob(f"{minor}.*/bin/python")))]
    examined = [_examine(candidate) for candidate in dict.fromkeys(candidates) if candidate]
    return [interpreter for interpreter in examined if interpreter]


def _examine(candidate: str) -> Interpreter | None:
    """Return the interpreter at a path, or None if it does not start."""
    code = "import os, sys; print(os.path.realpath(sys._base_executable), *sys.version_info[:3])"
    try:
        output = subprocess.run(
            [candidate, "-c", code], capture_output=True, text=True, env=clean_variables()
        ).stdout
    except OSError:
        return None
    if not (match := re.fullmatch(r"(.+) (\d+) (\d+) (\d+)\n", output)):
        return None
    return Interpreter(match[1], tuple(int(number) for number in match.groups()[1:]))


def _link(environment: Path, name: str) -> None:
    """Point a link of the checkout at an environment."""
    link = ROOT / name
    if link.exists() and not link.is_symlink():
        raise SetupError(f"{link} is not a symbolic link: remove it, and try again")
    if not link.is_symlink() or link.readlink() != environment:
        link.unlink(missing_ok=True)
        link.symlink_to(environment)


def main() -> None:
    """Create the environments, and link Home Assistant's: .venv, or .venv-<release> for a chosen one."""
    chosen = os.environ.get(CHOICE)
    try:
        _link(home_assistant(), f".venv-{chosen}" if chosen else ".venv")
        flexmeasures()
        if not chosen and (newest := newest_home_assistant()):
            home_assistant(newest)
    except SetupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
