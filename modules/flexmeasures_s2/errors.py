"""What is wrong with a message, as its ReceptionStatus says, and what can go wrong around a session."""

from dataclasses import dataclass
from typing import ClassVar

NIL = "00000000-0000-0000-0000-000000000000"
"""The subject of a ReceptionStatus to a message without a message_id, as in s2-python."""
MAX_LABEL_CHARACTERS = 500
"""A diagnostic_label may quote the message, which may be large."""


@dataclass(eq=False, repr=False)
class _Refused(Exception):
    """A message is refused: `label` becomes the diagnostic_label of its ReceptionStatus.

    `subject` is the message_id to answer to. `needs_no_answer`: it is a ReceptionStatus, which gets none.
    """

    label: str
    subject: str = NIL
    needs_no_answer: bool = False
    status: ClassVar[str] = "INVALID_CONTENT"
    """The ReceptionStatusValues of the answer."""
    is_fatal: ClassVar[bool] = False
    """Whether the session cannot go on after it."""

    @pyscript_compile
    def __post_init__(self) -> None:
        self.label = self.label[:MAX_LABEL_CHARACTERS].encode(errors="replace").decode()

    @pyscript_compile
    def __str__(self) -> str:
        return self.label


Refused = _Refused


class _InvalidData(Refused):
    """The text is not a JSON object, or has no message_id."""

    status = "INVALID_DATA"


InvalidData = _InvalidData


class _InvalidMessage(Refused):
    """The message violates the schema of its message_type."""

    status = "INVALID_MESSAGE"


InvalidMessage = _InvalidMessage


class _InvalidContent(Refused):
    """The message is well-formed, but wrong in the state that the session is in."""


InvalidContent = _InvalidContent


class _NoCommonVersion(InvalidContent):
    """The Resource Manager supports none of the protocol versions that this CEM supports."""

    is_fatal = True


NoCommonVersion = _NoCommonVersion


class _TemporaryError(Refused):
    """The message could not be handled, because of a fault in this CEM."""

    status = "TEMPORARY_ERROR"


TemporaryError = _TemporaryError


class _CannotListen(Exception):
    """The port is taken, or the certificate cannot be used."""


CannotListen = _CannotListen


class _NoConfirmation(Exception):
    """The Resource Manager did not confirm a message in time, or the session ended before it did."""


NoConfirmation = _NoConfirmation
