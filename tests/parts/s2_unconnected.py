"""Simulated devices that are not connected, to test their physics."""

from collections.abc import Callable
from typing import Any, Protocol

from tests.parts.s2_device import ControlledDevice, Curve
from tests.parts.s2_messages import NOW, Message

NOWHERE = "ws://nowhere"


class Instructable(Protocol):
    """A device that makes and takes instructions."""

    def instruction(self, *args: Any, **kwargs: Any) -> Message:
        """Return an instruction for the device."""

    def instruct(self, instruction: Message) -> str | None:
        """Accept an instruction, or return why not."""


def unconnected[D: ControlledDevice](kind: Callable[..., D], **options: Any) -> D:
    """Return a device that is not connected, at NOW."""
    return kind(NOWHERE, start=NOW, **options)


def instructed(device: Instructable, *arguments: Any, **changes: Any) -> Message:
    """Give a device an instruction that it must accept, and return the instruction."""
    instruction = device.instruction(*arguments, **changes)
    assert device.instruct(instruction) is None
    return instruction


def rejection(device: Instructable, instruction: Message) -> str:
    """Give a device an instruction that it must reject, and return why it does."""
    problem = device.instruct(instruction)
    assert problem is not None
    return problem


def reasons(device: ControlledDevice) -> list[str]:
    """Return why the device rejected instructions."""
    return [reason for _, reason in device.rejected]


def constant(value: float) -> Curve:
    """Return a curve that is always the same."""
    return lambda _: value
