"""The messages in force of a session, by their types and the ids that they refer to."""

from typing import Any

import flexmeasures_s2.rules as rules


@pyscript_compile
def latest(memory: rules.Memory, message_type: str, *ids: str) -> Any:
    """Return the message in force of a type (about an actuator, timer …, by its ids), or None."""
    return memory.get((message_type, *ids))
