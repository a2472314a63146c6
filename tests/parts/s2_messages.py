"""An example of every S2 message. They fit together, and are about one moment: NOW."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

FOLDER = Path(__file__).parents[1] / "fixtures" / "s2"
NOW = datetime(2026, 3, 2, 10, tzinfo=UTC)
TYPES = sorted(path.stem for path in FOLDER.glob("*.json"))

type Message = dict[str, Any]
"""An S2 message, or an object within one, as JSON has it."""


def example(message_type: str, **changes: Any) -> Message:
    """Return the example of a message type with a new `message_id`, and with some fields changed."""
    message: Message = json.loads((FOLDER / f"{message_type}.json").read_text())
    if "message_id" in message:
        message["message_id"] = str(uuid4())
    return message | changes


def turned(message: object, *names: str) -> object:
    """Return a message, or a part of one, with start and end of the ranges of some names exchanged."""
    if isinstance(message, list):
        return [turned(item, *names) for item in message]
    if not isinstance(message, dict):
        return message
    copy: Message = {name: turned(part, *names) for name, part in message.items()}
    for name in names:
        ranges = copy.get(name, [])
        for part in ranges if isinstance(ranges, list) else [ranges]:
            part["start_of_range"], part["end_of_range"] = part["end_of_range"], part["start_of_range"]
    return copy
