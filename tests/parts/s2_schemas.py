"""The official JSON schemas of the S2 messages: from a folder, else from their public repository."""

import functools
import json
import math
import os
import subprocess
from pathlib import Path

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from tests.parts import cache

REPOSITORY = "https://github.com/flexiblepower/s2-ws-json"
COMMIT = "60a3d3cd9c7beacbf37c175c430c157de58c69ea"
BESIDE = Path(__file__).parents[3] / "shared" / "s2-schema"


def available() -> bool:
    """Say whether there are schemas to check against."""
    return _source()[0] is not None


def describe() -> str:
    """Say where the schemas are from, or why nothing is checked."""
    folder, where = _source()
    if folder:
        return f"official S2 schemas (from {where})"
    return f"THE WIRE FORMAT WENT UNCHECKED: the official schemas could not be had ({where})"


def problems(message: object) -> list[str]:
    """Return what the schemas object to in a message: nothing if it is valid, or if there are no schemas."""
    if not available():
        return []
    if not isinstance(message, dict):
        return [f"$: a message is an object, not {message!r}"]
    message_type = message.get("message_type")
    if not isinstance(message_type, str) or message_type not in _message_types():
        return [f"$.message_type: {message_type!r} is no message type"]
    return [f"{error.json_path}: {error.message}" for error in _validator(message_type).iter_errors(message)]


@functools.cache
def _source() -> tuple[Path | None, str]:
    """Return the folder with the schemas and where it is from, or None and why there is none."""
    if given := os.environ.get("S2_SCHEMA"):
        if Path(given, "messages").is_dir():
            return Path(given), given
        return None, f"S2_SCHEMA is {given}, which has no folder messages"
    if BESIDE.is_dir():
        return BESIDE, str(BESIDE)
    try:
        path = cache.built(f"s2-ws-json-{COMMIT[:7]}", [REPOSITORY, COMMIT], _clone)
    except FileNotFoundError:
        return None, "git is not installed"
    except subprocess.TimeoutExpired:
        return None, f"{REPOSITORY} did not answer within a minute"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        return None, f"{REPOSITORY} could not be reached: {reason}"
    return path / "s2-json-schema", f"{REPOSITORY}, commit {COMMIT[:7]}"


def _clone(path: Path) -> None:
    cache.progress("Fetching the official S2 schemas")
    _git("clone", "--quiet", "--no-checkout", REPOSITORY, str(path))
    _git("-C", str(path), "checkout", "--quiet", COMMIT)


def _git(*arguments: str) -> None:
    """Run git, which never asks anything."""
    subprocess.run(
        ["git", *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
    )


def _load(path: Path) -> dict:
    """Read a schema. It does not say that what has properties is an object, but means it.

    Without its own `$schema`, the validator that refers to it stays as strict as it is.
    """
    schema = json.loads(path.read_text())
    del schema["$schema"]
    return {"type": "object"} | schema if "properties" in schema else schema


@functools.cache
def _message_types() -> dict[str, dict]:
    """Return the schema of each message type."""
    return {
        path.name.removesuffix(".schema.json"): _inlined(_load(path))
        for path in (_source()[0] / "messages").glob("*.schema.json")
    }


@functools.cache
def _parts() -> dict[str, dict]:
    """Return the schemas of what messages are made of, by the names of their files."""
    return {path.name: _load(path) for path in (_source()[0] / "schemas").glob("*.schema.json")}


def _inlined(node: object) -> object:
    """Return a schema with what it refers to in its place: that is looked up once, not for each message."""
    if isinstance(node, list):
        return [_inlined(each) for each in node]
    if not isinstance(node, dict):
        return node
    own = {key: _inlined(each) for key, each in node.items() if key not in ("$ref", "$id")}
    if "$ref" not in node:
        return own
    part = _inlined(_parts()[node["$ref"].rpartition("/")[2]])
    return {"allOf": [part, own]} if own else part


@functools.cache
def _validator(message_type: str) -> Validator:
    return _Strict(_message_types()[message_type], format_checker=FormatChecker(["date-time"]))


def _is_number(checker, value: object) -> bool:
    """Say whether JSON has this number: Python reads and writes NaN and Infinity too."""
    is_number = Draft202012Validator.TYPE_CHECKER.is_type(value, "number")
    return is_number and (isinstance(value, int) or math.isfinite(value))


_Strict = extend(
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number)
)
