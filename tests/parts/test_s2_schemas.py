"""The official S2 schemas, the examples of every message, and what the schemas refuse."""

from pathlib import Path

import pytest
from s2python.s2_parser import TYPE_TO_MESSAGE_CLASS, S2Parser

from tests.parts import s2_schemas
from tests.parts.s2_messages import TYPES, example

needs_schemas = pytest.mark.skipif(not s2_schemas.available(), reason=s2_schemas.describe())


def test_there_is_an_example_of_every_message_type() -> None:
    """The library knows the same types."""
    assert sorted(TYPE_TO_MESSAGE_CLASS) == TYPES


@needs_schemas
@pytest.mark.parametrize("message_type", TYPES)
def test_an_example_is_valid(message_type: str) -> None:
    """Each example serves other tests as a valid message."""
    assert s2_schemas.problems(example(message_type)) == []


@pytest.mark.parametrize("message_type", [name for name in TYPES if name != "DDBC.SystemDescription"])
def test_s2_python_accepts_an_example(message_type: str) -> None:
    """It refuses only the official form of DDBC.SystemDescription."""
    assert S2Parser.parse_as_any_message(example(message_type)).message_type == message_type


def test_an_example_has_a_message_id_of_its_own() -> None:
    """A message may be sent once."""
    assert example("Handshake")["message_id"] != example("Handshake")["message_id"]


@needs_schemas
@pytest.mark.parametrize(
    ("message", "where"),
    [
        (example("FRBC.StorageStatus", present_fill_level=None), "$.present_fill_level"),
        (example("SessionRequest", diagnostic_label=None), "$.diagnostic_label"),
        (example("FRBC.StorageStatus", colour="red"), "'colour'"),
        (example("FRBC.StorageStatus", present_fill_level=True), "$.present_fill_level"),
        (example("FRBC.StorageStatus", present_fill_level="12"), "$.present_fill_level"),
        (example("FRBC.StorageStatus", present_fill_level=float("nan")), "$.present_fill_level"),
        (example("FRBC.StorageStatus", present_fill_level=float("-inf")), "$.present_fill_level"),
        (example("OMBC.TimerStatus", finished_at="2026-03-02T10:00:00"), "$.finished_at"),
        (example("OMBC.TimerStatus", finished_at="tomorrow"), "$.finished_at"),
        (example("OMBC.TimerStatus", timer_id="§"), "$.timer_id"),
        (example("PowerMeasurement", values=[5]), "$.values[0]"),
        (example("PowerMeasurement", values=[]), "$.values"),
        ({"message_type": "Handshake", "message_id": "id"}, "'role'"),
        ({"message_type": "Handshake2", "message_id": "id"}, "$.message_type"),
        ({"message_type": ["Handshake"], "message_id": "id"}, "$.message_type"),
        ([example("Handshake")], "$"),
    ],
)
def test_an_invalid_message_is_refused(message: object, where: str) -> None:
    """The problem names the place."""
    assert any(where in problem for problem in s2_schemas.problems(message))


@needs_schemas
def test_a_huge_integer_is_a_number() -> None:
    """It has no float, but JSON has it."""
    assert s2_schemas.problems(example("FRBC.StorageStatus", present_fill_level=10**400)) == []


def test_without_schemas_nothing_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason is shown."""
    monkeypatch.setenv("S2_SCHEMA", str(tmp_path))
    monkeypatch.setattr(s2_schemas, "_source", s2_schemas._source.__wrapped__)
    assert not s2_schemas.available()
    assert s2_schemas.problems({"message_type": "Handshake2"}) == []
    assert s2_schemas.describe() == (
        "THE WIRE FORMAT WAS NOT CHECKED: the official schemas are not available "
        f"(S2_SCHEMA is {tmp_path}, which has no folder messages)"
    )
