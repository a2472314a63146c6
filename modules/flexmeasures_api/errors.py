"""What can go wrong when FlexMeasures is asked, by meaning.

Each class says which state `sensor.flexmeasures_status` shows for it (`status`), under which stable
name its notification is kept (`cause`), whether it needs the user only if it lasts (`temporary`), and
whether the same question would be refused again (`final`). An error knows for how many seconds the
server asked to be left alone (`retry_after`), or None: never more than 15 minutes, whatever it asked. The
text is one sentence or two for the user: what is wrong, and what to do.
"""

MAX_RETRY_AFTER_SECONDS = 900


@pyscript_compile
def kinds():
    """Define the errors: natively, so that compiled code can raise them."""

    class FlexMeasuresError(Exception):
        """FlexMeasures did not do what was asked."""

        status = "error"
        cause = "failed"
        temporary = False
        final = False

        def __init__(self, text, retry_after=None):
            super().__init__(text)
            self.retry_after = None if retry_after is None else min(retry_after, MAX_RETRY_AFTER_SECONDS)

        @property
        def no_use_to_retry(self):
            """Tell whether somebody has to put something right first."""
            return self.final or self.cause == "unauthorized"

    class Unauthorized(FlexMeasuresError):
        """The server refuses the username or password."""

        status = "unauthorized"
        cause = "unauthorized"

    class Unreachable(FlexMeasuresError):
        """The server cannot be reached, or is no working FlexMeasures server."""

        status = "unreachable"
        cause = "unreachable"
        temporary = True

    class ServerFault(FlexMeasuresError):
        """The server answered, but failed over this question (500)."""

        cause = "server_fault"
        temporary = True

    class NoAccess(FlexMeasuresError):
        """The user may not use a sensor or asset (403)."""

        cause = "no_access"
        final = True

    class UnknownSensor(FlexMeasuresError):
        """A sensor or asset does not exist on the server, or is of the wrong kind."""

        cause = "unknown_sensor"
        final = True

    class RateLimited(FlexMeasuresError):
        """The server asks to wait (429); the text says until when."""

        cause = "rate_limited"
        temporary = True

    class InvalidProblem(FlexMeasuresError):
        """The server does not accept the flex-model, the flex-context or another field (422)."""

        cause = "invalid_problem"
        final = True

    class InvalidData(FlexMeasuresError):
        """Values do not fit their sensor, or the server does not accept them (422)."""

        cause = "invalid_data"
        final = True

    class AlreadyKnown(InvalidData):
        """Another value of the same moment is known at the same time, to the second."""

    class PricesMissing(FlexMeasuresError):
        """A price sensor has no data in the planning window."""

        cause = "prices_missing"

    class Infeasible(FlexMeasuresError):
        """No schedule meets all hard constraints."""

        cause = "infeasible"

    class JobFailed(FlexMeasuresError):
        """A job failed on the server for another reason."""

        cause = "job_failed"

    class JobLost(JobFailed):
        """The server does not know a job of ours any more."""

    class JobTimedOut(FlexMeasuresError):
        """A job did not finish in time."""

        cause = "job_timed_out"

    return (
        FlexMeasuresError,
        Unauthorized,
        Unreachable,
        ServerFault,
        NoAccess,
        UnknownSensor,
        RateLimited,
        InvalidProblem,
        InvalidData,
        AlreadyKnown,
        PricesMissing,
        Infeasible,
        JobFailed,
        JobLost,
        JobTimedOut,
    )


(
    FlexMeasuresError,
    Unauthorized,
    Unreachable,
    ServerFault,
    NoAccess,
    UnknownSensor,
    RateLimited,
    InvalidProblem,
    InvalidData,
    AlreadyKnown,
    PricesMissing,
    Infeasible,
    JobFailed,
    JobLost,
    JobTimedOut,
) = kinds()
