"""S2 messages: parsed from text into s2-python's models, and written as text.

The official JSON schemas decide what is valid, and s2-python's models differ from them. They accept what
the schemas refuse ("12", true and NaN as numbers, null for an optional field, a number as a date), and refuse
what the schemas allow (ids that are no UUIDs, a DDBC.SystemDescription in the official form, power on three
phases). So the models are filled by validators that are built from their own core schemas, with these
differences corrected. In the resulting models, ids are text.
"""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import new_class
from typing import Any, Literal, Protocol, Self

import orjson
from pydantic import BaseModel, ConfigDict, PrivateAttr
from pydantic_core import ErrorDetails, SchemaValidator, ValidationError
from s2python.common import Duration, NumberRange
from s2python.s2_parser import TYPE_TO_MESSAGE_CLASS

import flexmeasures_s2.errors as errors

Json = dict[str, Any]
ID_PATTERN = r"[a-zA-Z0-9\-_:]{2,64}"
"""As in the schemas: unanchored, so a text that contains an id is one."""
ID = re.compile(ID_PATTERN)
DATE_TIME_PATTERN = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$"
RULES_OF_S2_PYTHON = (
    "s2python.common.power_range.validate_start_end_order",
    "s2python.frbc.frbc_actuator_description.validate_operation_mode_elements_have_all_supported_commodities",
    "s2python.frbc.frbc_operation_mode.validate_contiguous_fill_levels_operation_mode_elements",
    "s2python.pebc.pebc_allowed_limit_range.validate_range_boundary",
)
"""Validators of s2-python that are left out, since the schemas have no such rule.

A power range may run downwards: its start is for factor 0, its end for factor 1. A commodity may have several
power ranges, one per phase, or none. There may be gaps between elements. A limit range that is upside down is
put in order.
"""
CONTAINER_STATUS = "PPBCPowerSequenceContainerStatus"
"""Its progress is a duration, which s2-python declares as an id."""
DETAILS, MEASURED_QUANTITIES = "ResourceManagerDetails", "provides_power_measurement_types"
"""The schema requires at least one quantity; devices without a meter have none."""
DDBC_DESCRIPTION, PRESENT_DEMAND = "DDBC.SystemDescription", "DDBC.PresentDemandStatus"
"""The demand rate is in the former up to protocol version 0.0.2-beta, and in the latter from 1.0.0 on."""
NULL = "null is taken as if the field was left out"
"""A leniency: the schemas have no null."""
MAX_DEPTH = 64
"""Nesting of a message's JSON; the deepest of S2 has fewer than 10 levels."""
MAX_REPORTED_MISTAKES = 3
MAX_DESCRIBED_MISTAKES = 100
"""Mistakes in one message up to which any is described: to list thousands takes seconds."""
MAX_QUOTED_CHARACTERS = 80
"""Characters that an error quotes of a field's value."""


class _Message(Protocol):
    """What the models of all messages have in common, but for a ReceptionStatus, which has no message_id."""

    @property
    @pyscript_compile
    def message_type(self) -> str:
        """Return the message_type."""

    @property
    @pyscript_compile
    def message_id(self) -> object:
        """Return the message_id: text, though s2-python declares a UUID."""

    @pyscript_compile
    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """Return a copy with other values of some fields, which are not validated."""


Message = _Message


class _Validator(Protocol):
    """Fills a model with a JSON object, or raises pydantic's ValidationError."""

    @pyscript_compile
    def validate_python(self, data: Json, /) -> Message:
        """Return the model."""


Validator = _Validator
VALIDATORS: dict[str, Validator] = {}
UNBUILT_MODELS: dict[type[BaseModel], type[BaseModel]] = {}


@pyscript_compile
def present_demand_status() -> type[BaseModel]:
    """Define the message that s2-python lacks, natively: pydantic inspects the class statement."""

    class DDBCPresentDemandStatus(BaseModel):
        """The demand rate that is to be satisfied from now on."""

        model_config = ConfigDict(extra="forbid")
        message_type: Literal["DDBC.PresentDemandStatus"] = "DDBC.PresentDemandStatus"
        message_id: uuid.UUID
        present_demand_rate: NumberRange
        _received_at: datetime = PrivateAttr(default_factory=lambda: datetime.now(UTC))

        @property
        def received_at(self) -> datetime:
            """Return when the message was received, since it has no timestamp of its own."""
            return self._received_at

    return DDBCPresentDemandStatus


MODELS: dict[str, type[BaseModel]] = {**TYPE_TO_MESSAGE_CLASS, PRESENT_DEMAND: present_demand_status()}
"""The model of each message_type."""


@pyscript_compile
def parse(text: str, max_depth: int = MAX_DEPTH, leniencies: dict[str, str] | None = None) -> Message:
    """Return the model of a message; raise InvalidData, InvalidMessage or InvalidContent.

    Deviations from the schemas that are accepted are added to `leniencies`, each with its field.
    """
    data = decode(text, max_depth)
    if "null" in text:
        data = without_nulls(data, {} if leniencies is None else leniencies)
    try:
        return validate(data)
    except errors.Refused as refused:
        refused.needs_no_answer = data.get("message_type") == "ReceptionStatus"
        raise


@pyscript_compile
def validate(data: Json) -> Message:
    """Return the model of a JSON object; raise InvalidData, InvalidMessage or InvalidContent."""
    message_id = message_id_of(data)
    message_type = data.get("message_type")
    if message_id is None and message_type != "ReceptionStatus":
        if "message_id" not in data:
            raise errors.InvalidData("message_id: missing")
        raise errors.InvalidMessage(f"message_id: expected an id, got {quoted(data['message_id'])}")
    subject = message_id or errors.NIL
    if not isinstance(message_type, str) or message_type not in MODELS:
        reason = "missing" if message_type is None else f"unknown: {quoted(message_type)}"
        raise errors.InvalidMessage(f"message_type: {reason}", subject)
    try:
        return validator(message_type).validate_python(data)
    except ValidationError as error:
        raise refusal(error, subject) from error


@pyscript_compile
def decode(text: str, max_depth: int) -> Json:
    """Return the JSON object of a text; raise InvalidData."""
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        data = decode_leniently(text, error)
    if not isinstance(data, dict):
        raise errors.InvalidData("expected a JSON object")
    if text.count("{") + text.count("[") > max_depth and depth(data, max_depth) > max_depth:
        raise errors.InvalidData(f"nested deeper than {max_depth}", message_id_of(data) or errors.NIL)
    return data


@pyscript_compile
def decode_leniently(text: str, strict_error: ValueError) -> Any:
    """Return the value of JSON that contains NaN, so that the validator can name the field.

    Raise InvalidData also for a lone surrogate, which could not be written back.
    """
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise errors.InvalidData(f"no JSON: {strict_error}") from strict_error
    return data


@pyscript_compile
def without_nulls(data: Any, leniencies: dict[str, str], location: tuple[str | int, ...] = ()) -> Any:
    """Return a part of a message without fields that are null; the first one is added to `leniencies`."""
    if isinstance(data, list):
        return [without_nulls(item, leniencies, (*location, index)) for index, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    fields = {}
    for name, value in data.items():
        if value is None:
            leniencies.setdefault(NULL, path((*location, name)))
        else:
            fields[name] = without_nulls(value, leniencies, (*location, name))
    return fields


@pyscript_compile
def depth(data: Any, limit: int) -> int:
    """Return how deeply data is nested, counted until that exceeds `limit`."""
    level, levels = [data], 0
    while level and levels <= limit:
        levels += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return levels


@pyscript_compile
def message_id_of(data: Json) -> str | None:
    """Return the id that an answer can refer to, or None."""
    message_id = data.get("message_id")
    return message_id if isinstance(message_id, str) and ID.search(message_id) else None


@pyscript_compile
def refusal(error: ValidationError, subject: str) -> errors.Refused:
    """Return the exception for a ValidationError; it names the field of each of the first mistakes.

    A mistake against the schema is an InvalidMessage; a rule of the model that is broken, InvalidContent.
    """
    if error.error_count() > MAX_DESCRIBED_MISTAKES:
        return errors.InvalidMessage(f"{error.error_count()} mistakes against the schema", subject)
    mistakes = error.errors(include_url=False)
    of_schema = [mistake for mistake in mistakes if mistake["type"] != "value_error"]
    kind = errors.InvalidMessage if of_schema else errors.InvalidContent
    described = [
        f"{path(mistake['loc'])}: {description(mistake)}"
        for mistake in (of_schema or mistakes)[:MAX_REPORTED_MISTAKES]
    ]
    return kind("; ".join(described), subject)


@pyscript_compile
def path(location: Sequence[str | int]) -> str:
    """Return where in a message a field is, as in `actuators[0].timers[1].id`."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in location]
    return "".join(steps).removeprefix(".") or "the message"


@pyscript_compile
def description(mistake: ErrorDetails) -> str:
    """Return a mistake in words."""
    if mistake["type"] == "value_error":  # s2-python's own rules raise ValueError(model, words)
        return str(mistake["ctx"]["error"].args[-1])
    if isinstance(mistake["input"], (dict, list)):
        return mistake["msg"]
    return f"{mistake['msg']}, got {quoted(mistake['input'])}"


@pyscript_compile
def quoted(value: object) -> str:
    """Return the beginning of a field's value, in quotes."""
    return repr(str(value)[:MAX_QUOTED_CHARACTERS])


@pyscript_compile
def validator(message_type: str) -> Validator:
    """Return the validator of a message_type, built on first use."""
    if message_type not in VALIDATORS:
        model = MODELS[message_type]
        model.model_rebuild()
        built: Validator = SchemaValidator(corrected(model.__pydantic_core_schema__))
        VALIDATORS[message_type] = DdbcValidator(built) if message_type == DDBC_DESCRIPTION else built
    return VALIDATORS[message_type]


@pyscript_compile
def prepare() -> None:
    """Build all validators; it takes a moment, and may be done in a thread."""
    for message_type in MODELS:
        validator(message_type)


@pyscript_compile
def unbuilt(model: type[BaseModel]) -> type[BaseModel]:
    """Return a subclass of a model that has no validator of its own yet.

    Newer releases of pydantic use a model's own validator in place of what a core schema says of the model.
    """
    if model not in UNBUILT_MODELS:
        body = {"__module__": model.__module__, "__doc__": model.__doc__}
        keywords = {"defer_build": True}
        UNBUILT_MODELS[model] = new_class(
            model.__name__, (model,), keywords, lambda namespace: namespace.update(body)
        )
    return UNBUILT_MODELS[model]


@pyscript_compile
def corrected(node: Any) -> Any:
    """Return a part of a model's core schema, made as strict and as liberal as the official schemas."""
    if isinstance(node, list):
        return [corrected(item) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "uuid":
        return {"type": "str", "strict": True, "pattern": ID_PATTERN}
    if kind == "model" and node["cls"].__name__ == "ID":
        reference = {"ref": node["ref"]} if "ref" in node else {}
        return {"type": "str", "strict": True, "pattern": ID_PATTERN} | reference
    if kind == "nullable":
        return corrected(node["schema"])
    if kind == "default" and node.get("default") is not None:
        return corrected(node["schema"])
    if kind == "function-after" and rule_of(node) in RULES_OF_S2_PYTHON:
        return corrected(node["schema"])
    copy = {key: corrected(value) for key, value in node.items() if key != "metadata"}
    if kind == "model":
        copy["cls"] = unbuilt(node["cls"])
    if kind in ("bool", "str", "float"):
        copy["strict"] = True
    if kind == "float":
        copy["allow_inf_nan"] = False
    if kind == "list":
        copy["fail_fast"] = True
    if kind == "int":
        number = {"type": "float", "strict": True, "allow_inf_nan": False}
        return {"type": "chain", "steps": [number, copy]}
    if kind == "datetime":
        text = {"type": "str", "strict": True, "pattern": DATE_TIME_PATTERN}
        return {"type": "chain", "steps": [text, copy]}
    if kind == "model-fields":
        correct_fields(node.get("model_name"), copy["fields"])
    for name in ("populate_by_name", "validate_by_name"):
        if name in copy:
            copy[name] = False
    return copy


@pyscript_compile
def correct_fields(model_name: str | None, fields: dict[str, Any]) -> None:
    """Correct single fields of a model's core schema, in place."""
    if model_name == CONTAINER_STATUS:
        optional = {"type": "default", "default": None, "schema": duration()}
        fields["progress"] = {"type": "model-field", "schema": optional}
    elif model_name == "DDBCSystemDescription":
        demand = fields["present_demand_rate"]
        demand["schema"] = {"type": "default", "default": None, "schema": demand["schema"]}
    elif model_name == DETAILS:
        fields[MEASURED_QUANTITIES]["schema"].pop("min_length", None)


@pyscript_compile
def rule_of(node: Json) -> str:
    """Return the name of a model's own rule, with its module."""
    function = node["function"]["function"]
    return f"{function.__module__}.{function.__name__}"


@pyscript_compile
def duration() -> Any:
    """Return the corrected core schema of a Duration (ms)."""
    Duration.model_rebuild()
    return corrected(Duration.__pydantic_core_schema__)


@dataclass(frozen=True)
class _DdbcValidator:
    """Accepts the official form of DDBC.SystemDescription, and the one that s2-python has instead."""

    strict: Validator
    """Accepts the form of s2-python."""

    @pyscript_compile
    def validate_python(self, data: Json, /) -> Message:
        """Return the model, which has s2-python's form."""
        return self.strict.validate_python(in_form_of_s2_python(data))


DdbcValidator = _DdbcValidator


@pyscript_compile
def in_form_of_s2_python(description: Json) -> Json:
    """Return a DDBC.SystemDescription whose modes have `id` beside `Id`, and their supply range in a list.

    What is wrong in it stays wrong in the same place.
    """
    actuators = description.get("actuators")
    if not isinstance(actuators, list):
        return description
    return description | {"actuators": [actuator_in_form_of_s2_python(actuator) for actuator in actuators]}


@pyscript_compile
def actuator_in_form_of_s2_python(actuator: Any) -> Any:
    """Return an actuator of a DDBC.SystemDescription in s2-python's form."""
    modes = actuator.get("operation_modes") if isinstance(actuator, dict) else None
    if not isinstance(modes, list):
        return actuator
    return actuator | {"operation_modes": [mode_in_form_of_s2_python(mode) for mode in modes]}


@pyscript_compile
def mode_in_form_of_s2_python(mode: Any) -> Any:
    """Return an operation mode of a DDBC.SystemDescription in s2-python's form."""
    if not isinstance(mode, dict):
        return mode
    copy = dict(mode)
    if "id" in mode or "Id" in mode:
        copy["id"] = copy["Id"] = mode.get("id", mode.get("Id"))
    if "supply_range" in mode and not isinstance(mode["supply_range"], list):
        copy["supply_range"] = [mode["supply_range"]]
    return copy


@pyscript_compile
def new(message_type: str, **fields: Any) -> Json:
    """Return a message to send, with a new message_id; fields that are None are left out.

    An instruction has its id as message_id too, since some devices report its status under the latter.
    """
    message: Json = {"message_type": message_type}
    if message_type != "ReceptionStatus":
        is_instruction = message_type.endswith("Instruction")
        message["message_id"] = (is_instruction and fields.get("id")) or str(uuid.uuid4())
    message |= {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
        if value is not None
    }
    validator(message_type).validate_python(message)
    return message


@pyscript_compile
def reception_status(subject: str, status: str, label: str | None) -> Json:
    """Return a ReceptionStatus; not validated, since one is sent for every message received."""
    message = {"message_type": "ReceptionStatus", "subject_message_id": subject, "status": status}
    return message if label is None else message | {"diagnostic_label": label}


@pyscript_compile
def text(message: Json) -> str:
    """Return a message as it is sent."""
    return orjson.dumps(message).decode()
