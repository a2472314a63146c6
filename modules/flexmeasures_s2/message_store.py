"""What a session remembers of its Resource Manager: the latest message of each kind, in force or upcoming."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeIs

import flexmeasures_s2.control_types as control_types
import flexmeasures_s2.errors as errors
from flexmeasures_s2.messages import Message
from flexmeasures_s2.rules import Key

# A Resource Manager may send new ids and times without end; these keep its share of the memory bounded.
MAX_OBJECTS = 20
"""Messages of one type with an id of their own: constraints, power profiles."""
MAX_STATUSES = 200
"""Messages of one type about a part of the description: an actuator, a timer."""
MAX_UPCOMING = 50
"""Messages whose valid_from is in the future."""
MAX_CHARACTERS = 2**22
"""Total length of the messages with an id of their own, and of the upcoming ones."""
CLOCK_TOLERANCE_SECONDS = 1.0
"""A message is in force this long before its valid_from, since the Resource Manager has its own clock."""
OWN_ID = ("id",)
"""The entry of `control_types.KEYS` for messages with an id of their own."""


class _TimedMessage(Message, Protocol):
    """A message that is in force from a moment on."""

    @property
    @pyscript_compile
    def valid_from(self) -> datetime:
        """Return the valid_from."""


TimedMessage = _TimedMessage


@pyscript_compile
def is_timed(message: Message) -> TypeIs[TimedMessage]:
    """Return whether a message has a valid_from."""
    return "valid_from" in vars(message)


@pyscript_compile
def key_of(message: Message) -> Key:
    """Return the key that a message is remembered by."""
    message_type = message.message_type
    ids = control_types.KEYS.get(message_type)
    return (message_type, *[getattr(message, name) for name in ids]) if ids else (message_type,)


@pyscript_compile
def seconds_until_valid(message: TimedMessage) -> float:
    """Return in how many seconds a message comes into force; 0 or less if it has."""
    return message.valid_from.timestamp() - time.time() - CLOCK_TOLERANCE_SECONDS


@dataclass(eq=False, repr=False)
class _MessageStore:
    """The messages of a Resource Manager that are in force, and those that will replace them.

    Messages refer to each other by ids: what refers to a message that is replaced, revoked or too old is
    forgotten with it.
    """

    in_force: dict[Key, Any] = field(default_factory=dict)
    """The latest message of each key, in the order in which they came into force."""
    upcoming: list[tuple[Key, TimedMessage]] = field(default_factory=list)
    """Messages that are not in force yet, by their valid_from."""
    sizes: dict[Key, int] = field(default_factory=dict)
    """Characters of the messages in force that have an id of their own."""
    upcoming_sizes: dict[str, int] = field(default_factory=dict)
    """Characters of the upcoming messages, by message_id."""

    @pyscript_compile
    def add(self, message: Message) -> bool:
        """Remember a message, from its valid_from on if it has one; return whether it is upcoming.

        It also replaces messages of the same key that are upcoming for its valid_from or later. The first of
        its key is in force at once, since messages that refer to it may follow; LeakageBehaviour has none.
        """
        if not is_timed(message):
            self.put_in_force(message)
            return False
        key, valid_from = key_of(message), message.valid_from
        self.upcoming = [item for item in self.upcoming if item[0] != key or item[1].valid_from < valid_from]
        current = self.in_force.get(key)
        is_upcoming = seconds_until_valid(message) > 0
        if current is None:
            is_upcoming &= message.message_type in control_types.WITHOUT_STATUS
        else:
            is_upcoming &= current.valid_from < valid_from
        if not is_upcoming:
            self.put_in_force(message)
            return False
        items = sorted([*self.upcoming, (key, message)], key=lambda item: item[1].valid_from)
        self.upcoming = items[:MAX_UPCOMING]
        return True

    @pyscript_compile
    def put_in_force(self, message: Message) -> None:
        """Remember a message as the latest of its key."""
        message_type, key = message.message_type, key_of(message)
        is_replacing = self.in_force.pop(key, None) is not None
        self.in_force[key] = message
        ids = control_types.KEYS.get(message_type)
        if ids and not is_replacing:
            same_type = [item for item in self.in_force if item[0] == message_type]
            if len(same_type) > (MAX_OBJECTS if ids == OWN_ID else MAX_STATUSES):
                del self.in_force[same_type[0]]
                is_replacing = True
        if is_replacing and message_type in control_types.REFERENCED:
            self.forget_dangling()

    @pyscript_compile
    def seconds_to_next(self) -> float | None:
        """Return in how many seconds the next upcoming message comes into force, or None without any."""
        return seconds_until_valid(self.upcoming[0][1]) if self.upcoming else None

    @pyscript_compile
    def activate_next(self) -> Message | None:
        """Put the next upcoming message in force and return it, or None if none is due."""
        seconds = self.seconds_to_next()
        if seconds is None or seconds > 0:
            return None
        _key, message = self.upcoming.pop(0)
        self.put_in_force(message)
        return message

    @pyscript_compile
    def revoke(self, message_type: str, object_id: str) -> bool:
        """Forget a message by its id or message_id; return whether there was one."""
        for key, message in self.in_force.items():
            if is_object(key, message, message_type, object_id):
                del self.in_force[key]
                self.forget_dangling()
                return True
        for index, (key, message) in enumerate(self.upcoming):
            if is_object(key, message, message_type, object_id):
                del self.upcoming[index]
                return True
        return False

    @pyscript_compile
    def forget_control_type(self) -> None:
        """Forget the messages that belong to a control type; mappings taken before keep them."""
        self.in_force = {
            key: message for key, message in self.in_force.items() if key[0] not in control_types.CHECKS
        }
        self.upcoming.clear()

    @pyscript_compile
    def clear(self) -> None:
        """Forget all messages."""
        self.in_force.clear()
        self.upcoming.clear()

    @pyscript_compile
    def limit_size(self, message: Message, characters: int) -> None:
        """Forget the oldest messages with an id of their own, as long as they are too long in total.

        `message` was just added, and has `characters`. Of upcoming messages, the last ones are forgotten.
        """
        if self.upcoming and any(message is upcoming for _key, upcoming in self.upcoming):
            self.limit_upcoming_size(message, characters)
            return
        if control_types.KEYS.get(message.message_type) != OWN_ID:
            return
        self.sizes[key_of(message)] = characters
        self.sizes = {key: size for key, size in self.sizes.items() if key in self.in_force}
        while sum(self.sizes.values()) > MAX_CHARACTERS and len(self.sizes) > 1:
            oldest = next(iter(self.sizes))
            del self.sizes[oldest]
            self.in_force.pop(oldest, None)
            self.forget_dangling()

    @pyscript_compile
    def limit_upcoming_size(self, message: Message, characters: int) -> None:
        """Forget the last upcoming messages, as long as they are too long in total."""
        sizes = self.upcoming_sizes | {str(message.message_id): characters}
        while self.upcoming:
            self.upcoming_sizes = {
                message_id: sizes.get(message_id, 0)
                for message_id in (str(upcoming.message_id) for _key, upcoming in self.upcoming)
            }
            if sum(self.upcoming_sizes.values()) <= MAX_CHARACTERS:
                return
            self.upcoming.pop()

    @pyscript_compile
    def forget_dangling(self) -> None:
        """Forget messages that refer to something that is not remembered any more."""
        for key, message in list(self.in_force.items()):
            check = control_types.CHECKS.get(key[0])
            try:
                if check:
                    check(self.in_force, message)
            except errors.InvalidContent:
                del self.in_force[key]


MessageStore = _MessageStore


@pyscript_compile
def is_object(key: Key, message: Message, message_type: str, object_id: str) -> bool:
    """Return whether a remembered message is of a type, and has an id or message_id."""
    return key[0] == message_type and object_id in (getattr(message, "id", None), message.message_id)
