"""S2 messages: from text to s2-python's models, and to text; the official JSON schemas decide.

This is the one place that bridges s2-python and the schemas. Its models take what the schemas
refuse ("12", true and NaN for numbers, null for what is left out, a date as a number), and refuse
what the schemas take (ids that are no UUIDs, a DDBC.SystemDescription in the official form, power
on three phases). So the models are filled by validators made from their own core schemas, corrected
for that; in the models that come of it, ids are text.
"""

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, PrivateAttr
from pydantic_core import SchemaValidator, ValidationError
from s2python.common import Duration, NumberRange
from s2python.s2_parser import TYPE_TO_MESSAGE_CLASS

import flexmeasures_s2.errors as errors

ID = r"[a-zA-Z0-9\-_:]{2,64}"
"""As the schemas have it: text that contains this somewhere."""
IS_ID = re.compile(ID)
DATE_TIME = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$"
RULES_OF_ITS_OWN = (
    "s2python.common.power_range.validate_start_end_order",
    "s2python.frbc.frbc_actuator_description.validate_operation_mode_elements_have_all_supported_commodities",
    "s2python.frbc.frbc_operation_mode.validate_contiguous_fill_levels_operation_mode_elements",
    "s2python.pebc.pebc_allowed_limit_range.validate_range_boundary",
)
"""s2-python's rules that the schemas do not have.

A power range may run downwards: its start is for factor 0, and its end for factor 1. A commodity may have
several power ranges, as three phases do, or none. Between elements there may be gaps. A limit range that is
upside down is put in order.
"""
HAS_PROGRESS = "PPBCPowerSequenceContainerStatus"
"""Its progress is a duration, which s2-python takes for an id."""
DETAILS, MEASURED_QUANTITIES = "ResourceManagerDetails", "provides_power_measurement_types"
"""The schema wants one of them at least; devices that measure nothing have none."""
DDBC_DESCRIPTION, PRESENT_DEMAND = "DDBC.SystemDescription", "DDBC.PresentDemandStatus"
"""The demand rate is in the former up to protocol version 0.0.2-beta, and in the latter from 1.0.0 on."""
MOST_TOLD = 3
NULL = "null counts as left out"
"""What is taken leniently: the schemas have no null."""
VALIDATORS, UNBUILT = {}, {}


@pyscript_compile
def present_demand_status() -> type:
    """Define the message that s2-python does not have, natively: pydantic wants a class of Python."""

    class DDBCPresentDemandStatus(BaseModel):
        """The demand rate that is to be satisfied from now on."""

        model_config = ConfigDict(extra="forbid")
        message_type: Literal["DDBC.PresentDemandStatus"] = PRESENT_DEMAND
        message_id: uuid.UUID
        present_demand_rate: NumberRange
        _received_at: datetime = PrivateAttr(default_factory=lambda: datetime.now(UTC))

        @property
        def received_at(self) -> datetime:
            """Return when the message came, since it has no time of its own."""
            return self._received_at

    return DDBCPresentDemandStatus


MODELS = TYPE_TO_MESSAGE_CLASS | {PRESENT_DEMAND: present_demand_status()}
"""The model of each message_type."""


@pyscript_compile
def parse(text: str, deepest: int = 64, leniencies: dict | None = None) -> object:
    """Return the message that a text is, a model of s2-python; raise a Refused.

    What is taken though it is not as the schemas have it enters `leniencies`, with its field.
    """
    data = decoded(text, deepest)
    if "null" in text:
        data = without_nulls(data, {} if leniencies is None else leniencies)
    try:
        return validated(data)
    except errors.Refused as refused:
        refused.needs_no_answer = data.get("message_type") == "ReceptionStatus"
        raise


@pyscript_compile
def validated(data):
    """Return the message that a JSON object is; raise a Refused."""
    subject = message_id_of(data)
    kind = data.get("message_type")
    if subject is None and kind != "ReceptionStatus":
        if "message_id" not in data:
            raise errors.InvalidData("message_id: missing")
        raise errors.InvalidMessage(f"message_id: expected an id, got {str(data['message_id'])[:80]!r}")
    subject = subject or errors.NIL
    if not isinstance(kind, str) or kind not in MODELS:
        told = "missing" if kind is None else f"unknown: {str(kind)[:80]!r}"
        raise errors.InvalidMessage(f"message_type: {told}", subject)
    try:
        return validator(kind).validate_python(data)
    except ValidationError as error:
        raise refusal(error, subject) from error


@pyscript_compile
def decoded(text, deepest):
    """Return the JSON object that a text is; raise InvalidData."""
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        data = decoded_leniently(text, error)
    if not isinstance(data, dict):
        raise errors.InvalidData("expected a JSON object")
    if text.count("{") + text.count("[") > deepest and depth(data, deepest) > deepest:
        raise errors.InvalidData(f"nested deeper than {deepest}", message_id_of(data) or errors.NIL)
    return data


@pyscript_compile
def decoded_leniently(text, strict_error):
    """Return what JSON with NaN in it says, so that the validator can name the field.

    A text with half a character in it (a lone surrogate) is refused: nobody could write it back.
    """
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise errors.InvalidData(f"no JSON: {strict_error}") from strict_error
    return data


@pyscript_compile
def without_nulls(data: object, leniencies: dict, location: tuple = ()) -> object:
    """Return a part of a message without its fields that are null; the first one enters `leniencies`."""
    if isinstance(data, list):
        return [without_nulls(each, leniencies, (*location, place)) for place, each in enumerate(data)]
    if not isinstance(data, dict):
        return data
    made = {}
    for name, value in data.items():
        if value is None:
            leniencies.setdefault(NULL, path((*location, name)))
        else:
            made[name] = without_nulls(value, leniencies, (*location, name))
    return made


@pyscript_compile
def depth(data, enough):
    """Return how deep data is nested, counted until it is more than enough."""
    level, found = [data], 0
    while level and found <= enough:
        found += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return found


@pyscript_compile
def message_id_of(data):
    """Return the id that an answer can refer to, or None."""
    found = data.get("message_id")
    return found if isinstance(found, str) and IS_ID.search(found) else None


@pyscript_compile
def refusal(error, subject):
    """Return what pydantic found, by its meaning: the first mistakes, each with its field."""
    if error.error_count() > 100:
        return errors.InvalidMessage(f"{error.error_count()} mistakes against the schema", subject)
    found = error.errors(include_url=False)
    wrong = [each for each in found if each["type"] != "value_error"]
    kind = errors.InvalidMessage if wrong else errors.InvalidContent
    told = [f"{path(each['loc'])}: {said(each)}" for each in (wrong or found)[:MOST_TOLD]]
    return kind("; ".join(told), subject)


@pyscript_compile
def path(location):
    """Return where in a message a mistake is, as in `actuators[0].timers[1].id`."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in location]
    return "".join(steps).removeprefix(".") or "the message"


@pyscript_compile
def said(mistake):
    """Return the mistake in words; a model's own rule carries the whole model before its words."""
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"].args[-1])
    if isinstance(mistake["input"], (dict, list)):
        return mistake["msg"]
    return f"{mistake['msg']}, got {str(mistake['input'])[:80]!r}"


@pyscript_compile
def validator(kind):
    """Return the validator of a message_type."""
    if kind not in VALIDATORS:
        model = MODELS[kind]
        model.model_rebuild()
        made = SchemaValidator(as_the_schemas_have_it(model.__pydantic_core_schema__))
        if kind == DDBC_DESCRIPTION:
            made = BothForms(made)
        VALIDATORS[kind] = made
    return VALIDATORS[kind]


@pyscript_compile
def unbuilt(model):
    """Return a subclass of a model that has no validator of its own yet.

    Newer releases of pydantic take a model's own validator in place of what a core schema says of it.
    """
    if model not in UNBUILT:
        body = {"__module__": model.__module__, "__doc__": model.__doc__}
        UNBUILT[model] = type(model)(model.__name__, (model,), body, defer_build=True)
    return UNBUILT[model]


@pyscript_compile
def prepare():
    """Make all validators; it takes a moment, and may be done in a thread."""
    for kind in MODELS:
        validator(kind)


@pyscript_compile
def as_the_schemas_have_it(node):
    """Return a part of a model's core schema, as strict and as liberal as the official schemas."""
    if isinstance(node, list):
        return [as_the_schemas_have_it(each) for each in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "uuid":
        return {"type": "str", "strict": True, "pattern": ID}
    if kind == "model" and node["cls"].__name__ == "ID":
        reference = {name: node[name] for name in ("ref",) if name in node}
        return {"type": "str", "strict": True, "pattern": ID} | reference
    if kind == "nullable":
        return as_the_schemas_have_it(node["schema"])
    if kind == "default" and node.get("default") is not None:
        return as_the_schemas_have_it(node["schema"])
    if kind == "function-after" and rule_of(node) in RULES_OF_ITS_OWN:
        return as_the_schemas_have_it(node["schema"])
    made = {key: as_the_schemas_have_it(value) for key, value in node.items() if key != "metadata"}
    if kind == "model":
        made["cls"] = unbuilt(node["cls"])
    if kind in ("bool", "str", "float"):
        made["strict"] = True
    if kind == "float":
        made["allow_inf_nan"] = False
    if kind == "list":
        made["fail_fast"] = True
    if kind == "int":
        number = {"type": "float", "strict": True, "allow_inf_nan": False}
        return {"type": "chain", "steps": [number, made]}
    if kind == "datetime":
        text = {"type": "str", "strict": True, "pattern": DATE_TIME}
        return {"type": "chain", "steps": [text, made]}
    if kind == "model-fields" and node.get("model_name") == HAS_PROGRESS:
        optional = {"type": "default", "default": None, "schema": duration()}
        made["fields"]["progress"] = {"type": "model-field", "schema": optional}
    if kind == "model-fields" and node.get("model_name") == "DDBCSystemDescription":
        demand = made["fields"]["present_demand_rate"]
        demand["schema"] = {"type": "default", "default": None, "schema": demand["schema"]}
    if kind == "model-fields" and node.get("model_name") == DETAILS:
        made["fields"][MEASURED_QUANTITIES]["schema"].pop("min_length", None)
    for name in ("populate_by_name", "validate_by_name"):
        if name in made:
            made[name] = False
    return made


@pyscript_compile
def rule_of(node: dict) -> str:
    """Return the name of a model's own rule, with its module."""
    function = node["function"]["function"]
    return f"{function.__module__}.{function.__name__}"


@pyscript_compile
def duration():
    """Return the corrected core schema of a duration (ms)."""
    Duration.model_rebuild()
    return as_the_schemas_have_it(Duration.__pydantic_core_schema__)


@pyscript_compile
def both_forms():
    """Define the validator natively, so that compiled code can make it."""

    class BothForms:
        """Takes the official DDBC.SystemDescription, and the one that s2-python has made of it."""

        def __init__(self, strict):
            self.strict = strict

        def validate_python(self, data):
            """Validate it in s2-python's form, with `id` beside `Id`, and supply ranges in a list."""
            return self.strict.validate_python(as_s2_python_has_it(data))

    return BothForms


BothForms = both_forms()


@pyscript_compile
def as_s2_python_has_it(description):
    """Return a DDBC.SystemDescription whose modes have `id` beside `Id`, and their supply range in a list.

    What is wrong in it stays wrong in the same place.
    """
    actuators = description.get("actuators")
    if not isinstance(actuators, list):
        return description
    return description | {"actuators": [actuator_as_s2_python_has_it(each) for each in actuators]}


@pyscript_compile
def actuator_as_s2_python_has_it(actuator):
    """Return one of its actuators."""
    modes = actuator.get("operation_modes") if isinstance(actuator, dict) else None
    if not isinstance(modes, list):
        return actuator
    return actuator | {"operation_modes": [mode_as_s2_python_has_it(mode) for mode in modes]}


@pyscript_compile
def mode_as_s2_python_has_it(mode):
    """Return one of its operation modes."""
    if not isinstance(mode, dict):
        return mode
    made = dict(mode)
    if "id" in mode or "Id" in mode:
        made["id"] = made["Id"] = mode.get("id", mode.get("Id"))
    if "supply_range" in mode and not isinstance(mode["supply_range"], list):
        made["supply_range"] = [mode["supply_range"]]
    return made


@pyscript_compile
def new(message_type, **fields):
    """Return a message to send, with an id of its own; a field that is None is left out.

    The id of an instruction is its message's too: some devices report what became of it under the latter.
    """
    message = {"message_type": message_type}
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
def confirmation(subject, status, label):
    """Return a ReceptionStatus; it is sent so often that it is not validated again."""
    message = {"message_type": "ReceptionStatus", "subject_message_id": subject, "status": status}
    return message if label is None else message | {"diagnostic_label": label}


@pyscript_compile
def text(message):
    """Return a message as it is sent."""
    return orjson.dumps(message).decode()
