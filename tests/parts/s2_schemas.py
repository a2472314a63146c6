"""The official JSON schemas of the S2 messages: from a folder, else from their public repository."""

import functools
import json
import math
import os
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator, FormatChecker, TypeChecker
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from tests.parts import cache
from tests.parts.git import GitError, git

REPOSITORY = "https://github.com/flexiblepower/s2-ws-json"
COMMIT = "60a3d3cd9c7beacbf37c175c430c157de58c69ea"
BESIDE = Path(__file__).parents[3] / "shared" / "s2-schema"


type Schema = dict[str, Any]


def available() -> bool:
    """Return whether there are schemas to check against."""
    return _source()[0] is not None


def describe() -> str:
    """Return where the schemas are from, or why nothing is checked."""
    folder, where = _source()
    if folder:
        return f"official S2 schemas (from {where})"
    return f"THE WIRE FORMAT WAS NOT CHECKED: the official schemas are not available ({where})"


def problems(message: object) -> list[str]:
    """Return the violations of the schemas in a message; none if there are no schemas."""
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
    """Return the folder with the schemas and its origin, or None and the reason why there is none."""
    if given := os.environ.get("S2_SCHEMA"):
        if Path(given, "messages").is_dir():
            return Path(given), given
        return None, f"S2_SCHEMA is {given}, which has no folder messages"
    if BESIDE.is_dir():
        return BESIDE, str(BESIDE)
    try:
        path = cache.built(f"s2-ws-json-{COMMIT[:7]}", [REPOSITORY, COMMIT], _clone)
    except GitError as error:
        return None, f"{REPOSITORY} could not be cloned: {error}"
    return path / "s2-json-schema", f"{REPOSITORY}, commit {COMMIT[:7]}"


def _clone(path: Path) -> None:
    cache.progress("Fetching the official S2 schemas")
    git("clone", "--quiet", "--no-checkout", REPOSITORY, str(path))
    git("-C", str(path), "checkout", "--quiet", COMMIT)


def _load(path: Path) -> Schema:
    """Read a schema, and add the type object, which those with properties leave out.

    Without its own `$schema`, a schema does not replace the strict validator that refers to it.
    """
    schema: Schema = json.loads(path.read_text())
    del schema["$schema"]
    return {"type": "object"} | schema if "properties" in schema else schema


@functools.cache
def _message_types() -> dict[str, Schema]:
    """Return the schema of every message type."""
    return {
        path.name.removesuffix(".schema.json"): cast(Schema, _inlined(_load(path)))
        for path in _files("messages")
    }


@functools.cache
def _parts() -> dict[str, Schema]:
    """Return the schemas that messages refer to, by file name."""
    return {path.name: _load(path) for path in _files("schemas")}


def _files(part: str) -> list[Path]:
    folder, reason = _source()
    assert folder is not None, reason
    return list((folder / part).glob("*.schema.json"))


def _inlined(node: object) -> object:
    """Replace the references in a schema by what they refer to, for speed."""
    if isinstance(node, list):
        return [_inlined(item) for item in node]
    if not isinstance(node, dict):
        return node
    own = {key: _inlined(value) for key, value in node.items() if key not in ("$ref", "$id")}
    if "$ref" not in node:
        return own
    part = _inlined(_parts()[node["$ref"].rpartition("/")[2]])
    return {"allOf": [part, own]} if own else part


@functools.cache
def _validator(message_type: str) -> Validator:
    return _Strict(_message_types()[message_type], format_checker=FormatChecker(["date-time"]))


def _is_number(_checker: TypeChecker, value: object) -> bool:
    """Return whether JSON has this number: Python reads and writes NaN and Infinity too."""
    if not Draft202012Validator.TYPE_CHECKER.is_type(value, "number"):
        return False
    return not isinstance(value, float) or math.isfinite(value)


_Strict: type[Validator] = extend(
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number)
)
