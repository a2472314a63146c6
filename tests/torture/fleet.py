"""Devices that speak S2, in a separate process: they execute instructions, and reconnect."""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from uuid import uuid4

from tests.bench import Framed, Sender, framed
from tests.parts.s2_messages import Message, example

DISCONNECTED = (OSError, ValueError, KeyError)
NOT_CONTROLABLE = "NOT_CONTROLABLE"
MAX_PAUSE_SECONDS = 0.5
FILL_LEVEL = 50.0


@dataclass
class Record:
    """The round trips of devices (ms), the times (s since 1970) of dis- and reconnections, and the errors.

    `instructed` is the number of devices with an instruction, `instructions` the number of instructions.
    """

    round_trips: list[float] = field(default_factory=list)
    cut_off: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    instructions: int = 0
    instructed: int = 0

    def add(self, other: "Record") -> None:
        """Add the record of another device."""
        self.round_trips += other.round_trips
        self.cut_off += other.cut_off
        self.back += other.back
        self.errors += other.errors
        self.instructions += other.instructions
        self.instructed += other.instructions > 0


class Battery:
    """A battery with the example's description."""

    def __init__(self) -> None:
        description = example("FRBC.SystemDescription")
        modes = chain.from_iterable(actuator["operation_modes"] for actuator in description["actuators"])
        self.elements: dict[str, Message] = {mode["id"]: mode["elements"][0] for mode in modes}
        self.power = self.rate = 0.0
        self.level = FILL_LEVEL
        self.updated_at = time.monotonic()

    def obey(self, instruction: Message) -> None:
        """Execute an instruction."""
        element, factor = self.elements[instruction["operation_mode"]], instruction["operation_mode_factor"]
        self.power = within(element["power_ranges"][0], factor)
        self.rate = within(element["fill_rate"], factor)

    def next_message(self, number: int) -> Framed:
        """Return its power and its fill level, in turns."""
        now = time.monotonic()
        self.level = min(max(self.level + self.rate * (now - self.updated_at), 0.0), 100.0)
        self.updated_at = now
        if number % 2:
            return as_frame(example("FRBC.StorageStatus", present_fill_level=self.level))
        return as_frame(measurement(self.power))


def within(limits: Message, factor: float) -> float:
    """Return the value of a NumberRange at a factor."""
    start, end = float(limits["start_of_range"]), float(limits["end_of_range"])
    return start + factor * (end - start)


def measurement(power: float) -> Message:
    """Return a PowerMeasurement of now."""
    values = [{"commodity_quantity": "ELECTRIC.POWER.L1", "value": power}]
    return example("PowerMeasurement", measurement_timestamp=datetime.now(UTC).isoformat(), values=values)


def as_frame(message: Message) -> Framed:
    """Return a message's id, and its frame."""
    return message["message_id"].encode(), framed(json.dumps(message).encode())


def fleet(port: int, token: str, number: int, pause: float, seconds: float, connecting: float = 0) -> Record:
    """Have several devices send a message every `pause` seconds, for some seconds.

    They connect one after the other, all within `connecting` seconds.
    """
    total, end = Record(), time.time() + connecting + seconds

    def device(index: int) -> Record:
        time.sleep(connecting * index / number)
        return live(port, token, f"Fleet {index}", pause, lambda: time.time() >= end)

    with ThreadPoolExecutor(number) as threads:
        for record in threads.map(device, range(number)):
            total.add(record)
    return total


def live(port: int, token: str, name: str, pause: float, is_over: Callable[[], bool]) -> Record:
    """Run a device; reconnect soon after every disconnection."""
    record, battery, is_back = Record(), Battery(), False
    while not is_over():
        try:
            with Sender(port, token) as sender:
                sender.establish(name)
                if is_back:
                    record.back.append(time.time())
                talk(sender, battery, pause, is_over, record)
        except DISCONNECTED as error:
            is_back = True
            record.cut_off.append(time.time())
            record.errors.append(f"{type(error).__name__}: {error}"[:200])
            time.sleep(random.uniform(0, MAX_PAUSE_SECONDS))
    return record


def talk(sender: Sender, battery: Battery, pause: float, is_over: Callable[[], bool], record: Record) -> None:
    """Send messages one after the other, and execute the instructions in between."""
    time.sleep(random.uniform(0, pause))
    number = 0
    while not is_over():
        message = battery.next_message(number)
        began = time.perf_counter()
        sender.send([message])
        confirm_until_confirmed(sender, message, battery, record)
        record.round_trips.append(1000 * (time.perf_counter() - began))
        number += 1
        time.sleep(max(0.0, pause - (time.perf_counter() - began)))


def confirm_until_confirmed(sender: Sender, message: Framed, battery: Battery, record: Record) -> None:
    """Wait for the confirmation of a message; confirm and execute the instructions before it."""
    while True:
        if not sender.texts:
            sender.receive()
        answer = json.loads(sender.texts.popleft())
        if "message_id" in answer:
            sender.say(example("ReceptionStatus", subject_message_id=answer["message_id"]))
            if answer["message_type"] == "FRBC.Instruction":
                record.instructions += 1
                battery.obey(answer)
        elif answer["subject_message_id"].encode() == message[0]:
            if answer["status"] != "OK":
                raise ValueError(f"{message} was not accepted: {answer}")
            return


def flood(port: int, token: str, seconds: float) -> float:
    """Send as fast as messages are confirmed; return the messages per second."""
    frames = []
    for _ in range(int(20_000 * seconds)):
        message_id = str(uuid4())
        status: Message = {"message_type": "PowerMeasurement", "message_id": message_id}
        values = [{"commodity_quantity": "ELECTRIC.POWER.L1", "value": 1.0}]
        status |= {"measurement_timestamp": datetime.now(UTC).isoformat(), "values": values}
        frames.append((message_id.encode(), framed(json.dumps(status).encode())))
    with Sender(port, token) as sender:
        sender.establish("Flood", NOT_CONTROLABLE)
        return sender.flood(iter(frames), seconds)[0]
