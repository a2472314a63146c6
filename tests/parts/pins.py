"""The pinned requirements of the environments: `make update` refreshes them."""

import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
HOME_ASSISTANT = REQUIREMENTS / "home-assistant.in"
OVERRIDES = REQUIREMENTS / "overrides.txt"
FIRST_LINE = "# Python "
FORBIDDEN = "==1000000000"
"""The version by which Home Assistant's constraints exclude a project."""


def path(name: str, release: str) -> Path:
    """Return the file with the pinned requirements of a release."""
    return REQUIREMENTS / f"{name}-{release}.txt"


def releases() -> list[str]:
    """Return the releases of Home Assistant whose requirements are pinned, the oldest first."""
    names = [file.stem.removeprefix("home-assistant-") for file in REQUIREMENTS.glob("home-assistant-*.txt")]
    return sorted(names, key=lambda release: [int(part) for part in release.split(".")])


def requires_python(requirements: str) -> str:
    """Return the Python versions that pinned requirements are for, e.g. `>=3.13.0`."""
    return requirements.splitlines()[0].removeprefix(FIRST_LINE)


def resolve_home_assistant(release: str, uv: Path, run: Callable[..., None]) -> str:
    """Return the pinned requirements of a release of Home Assistant and of the tests on it."""
    with tempfile.TemporaryDirectory() as folder:
        pip = uv.with_name("python"), "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder
        run(*pip, "--only-binary=:all:", "--ignore-requires-python", f"homeassistant=={release}")
        [wheel] = Path(folder).glob("homeassistant-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            constraints = archive.read("homeassistant/package_constraints.txt").decode()
            [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            metadata = archive.read(name).decode()
        least, *_ = re.findall(r"^Requires-Python: *>= *([\d.]+)", metadata, re.MULTILINE)
        own = OVERRIDES.read_text().splitlines()
        wanted, constraining, overriding = (Path(folder, name) for name in ("wanted.in", "c.txt", "o.txt"))
        wanted.write_text(f"{HOME_ASSISTANT.read_text()}\nhomeassistant=={release}\n")
        constraining.write_text("\n".join(_without(constraints.splitlines(), own)))
        overriding.write_text("\n".join(own))
        options = "--constraints", constraining, "--overrides", overriding
        try:
            return _compile(uv, run, wanted, least, *options)
        except Exception:
            # The test helpers pin the release that they were made from, which may be an earlier one.
            pins = re.findall(r"^Requires-Dist: (.*)", metadata, re.MULTILINE)
            pins += _without([line for line in constraints.splitlines() if FORBIDDEN not in line], pins)
            overriding.write_text("\n".join([*own, *_without(pins, own), f"homeassistant=={release}"]))
            return _compile(uv, run, wanted, least, *options)


def _without(requirements: list[str], others: list[str]) -> list[str]:
    """Return the requirements without those for the projects of others."""
    projects = {_project(line) for line in others}
    return [line for line in requirements if _project(line) not in projects]


def _compile(uv: Path, run: Callable[..., None], source: Path, least: str, *options: str | Path) -> str:
    """Return the resolved requirements of a file, on this platform, for a version of Python."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "requirements.txt")
        quiet = "--quiet", "--no-header", "--no-annotate", "--upgrade"
        run(
            uv, "pip", "compile", *quiet, "--python-version", least, *options, source, "--output-file", target
        )
        return f"{FIRST_LINE}>={least}\n{target.read_text()}"


def _project(line: str) -> str:
    """Return the normalized name of the project that a requirement is for."""
    name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Refresh the pins of all environments."""
    from tests.parts import environments

    try:
        uv = environments.uv()
        for release in releases():
            text = resolve_home_assistant(release, uv, environments.run)
            path("home-assistant", release).write_text(text)
        release = environments.FLEXMEASURES
        text = _compile(
            uv, environments.run, REQUIREMENTS / f"flexmeasures-{release}.in", "3.10", "--universal"
        )
        path("flexmeasures", release).write_text(text)
    except environments.SetupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
