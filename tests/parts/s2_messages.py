"""An example of every S2 message. They fit together, and tell of one moment: NOW."""

import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

FOLDER = Path(__file__).parents[1] / "fixtures" / "s2"
NOW = datetime(2026, 3, 2, 10, tzinfo=UTC)
TYPES = sorted(path.stem for path in FOLDER.glob("*.json"))


def example(message_type: str, **changes) -> dict:
    """Return the example of a message type with a `message_id` of its own, and with other fields as given."""
    message = json.loads((FOLDER / f"{message_type}.json").read_text())
    if "message_id" in message:
        message["message_id"] = str(uuid4())
    return message | changes


def turned(message: object, *names: str) -> object:
    """Return a message, or a part of one, whose ranges of these names begin where they ended."""
    if isinstance(message, list):
        return [turned(each, *names) for each in message]
    if not isinstance(message, dict):
        return message
    made = {name: turned(each, *names) for name, each in message.items()}
    for name in names:
        ranges = made.get(name, [])
        for each in ranges if isinstance(ranges, list) else [ranges]:
            each["start_of_range"], each["end_of_range"] = each["end_of_range"], each["start_of_range"]
    return made
