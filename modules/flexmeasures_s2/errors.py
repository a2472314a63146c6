"""What is wrong with a message, as a ReceptionStatus tells it."""

NIL = "00000000-0000-0000-0000-000000000000"
"""The subject of what has no message_id, as s2-python has it."""
LONGEST_LABEL = 500


@pyscript_compile
def kinds():
    """Define the exceptions: natively, so that compiled code can raise and catch them."""

    class Refused(Exception):
        """A message that is not accepted: the ReceptionStatus that it gets, and why.

        What is `fatal` leaves nothing to go on with. A ReceptionStatus needs no answer, though it is wrong.
        """

        status = "INVALID_CONTENT"
        fatal = False
        needs_no_answer = False

        def __init__(self, label, subject=NIL):
            super().__init__(label[:LONGEST_LABEL].encode(errors="replace").decode())
            self.subject = subject

    class InvalidData(Refused):
        """It is no JSON object, or has no message_id."""

        status = "INVALID_DATA"

    class InvalidMessage(Refused):
        """It violates the schema of its message_type."""

        status = "INVALID_MESSAGE"

    class InvalidContent(Refused):
        """It is well-formed, but wrong here and now."""

    class NoCommonVersion(InvalidContent):
        """There is no protocol version that both sides speak."""

        fatal = True

    class CannotListen(Exception):
        """The port is taken, or the certificate cannot be used."""

    class NoConfirmation(Exception):
        """The other side did not confirm a message in time, or the session ended before."""

    return (
        Refused,
        InvalidData,
        InvalidMessage,
        InvalidContent,
        NoCommonVersion,
        CannotListen,
        NoConfirmation,
    )


(
    Refused,
    InvalidData,
    InvalidMessage,
    InvalidContent,
    NoCommonVersion,
    CannotListen,
    NoConfirmation,
) = kinds()
