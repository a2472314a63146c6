"""What can go wrong when FlexMeasures is called: one class per meaning.

The text of an error is one sentence or two for the user: what is wrong, and what to do.
"""

MAX_RETRY_AFTER_SECONDS = 900
"""A server's Retry-After is obeyed up to this long: it may be mistaken, and plans must go on."""


class _FlexMeasuresError(Exception):
    """FlexMeasures did not do what was asked: `FlexMeasuresError(text, retry_after_seconds)`.

    `status` is the state of `sensor.flexmeasures_status`, `cause` the stable name of the notification. A
    `temporary` error needs the user only if it lasts; a `final` one would be the same for the same request.
    """

    status = "error"
    cause = "failed"
    temporary = False
    final = False

    @pyscript_compile
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    @pyscript_compile
    def retry_after(self) -> float | None:
        """Return the seconds that the server asks to wait, at most 15 minutes, or None."""
        seconds = self.args[1] if len(self.args) > 1 else None
        return None if seconds is None else min(seconds, MAX_RETRY_AFTER_SECONDS)

    @property
    @pyscript_compile
    def needs_user_action(self) -> bool:
        """Tell whether to retry is useless until somebody has corrected something."""
        return self.final or self.cause == "unauthorized"


FlexMeasuresError = _FlexMeasuresError


class _Unauthorized(FlexMeasuresError):
    """The server refuses the username or password (401)."""

    status = "unauthorized"
    cause = "unauthorized"


class _Unreachable(FlexMeasuresError):
    """The server cannot be reached, or is not a working FlexMeasures server."""

    status = "unreachable"
    cause = "unreachable"
    temporary = True


class _ServerFault(FlexMeasuresError):
    """The server failed over this request (500)."""

    cause = "server_fault"
    temporary = True


class _NoAccess(FlexMeasuresError):
    """The user may not use a sensor or asset (403)."""

    cause = "no_access"
    final = True


class _UnknownSensor(FlexMeasuresError):
    """A sensor or asset does not exist on the server, or is of the wrong kind."""

    cause = "unknown_sensor"
    final = True


class _RateLimited(FlexMeasuresError):
    """The server asks to wait (429); the text says for how long."""

    cause = "rate_limited"
    temporary = True


class _InvalidProblem(FlexMeasuresError):
    """The server does not accept the flex-model, the flex-context or another field (422)."""

    cause = "invalid_problem"
    final = True


class _InvalidData(FlexMeasuresError):
    """Values do not fit their sensor, or the server does not accept them (422)."""

    cause = "invalid_data"
    final = True


Unauthorized = _Unauthorized
Unreachable = _Unreachable
ServerFault = _ServerFault
NoAccess = _NoAccess
UnknownSensor = _UnknownSensor
RateLimited = _RateLimited
InvalidProblem = _InvalidProblem
InvalidData = _InvalidData


class _ConflictingValue(InvalidData):
    """The server holds another value of the same interval with the same `prior`, to the second."""


class _PricesMissing(FlexMeasuresError):
    """A price sensor has no data in the planning window."""

    cause = "prices_missing"


class _Infeasible(FlexMeasuresError):
    """No schedule meets all hard constraints."""

    cause = "infeasible"


class _JobFailed(FlexMeasuresError):
    """A job failed on the server for a reason without a class of its own."""

    cause = "job_failed"


JobFailed = _JobFailed


class _JobLost(JobFailed):
    """The server no longer knows a job (404)."""


class _JobTimedOut(FlexMeasuresError):
    """A job did not finish in time."""

    cause = "job_timed_out"


ConflictingValue = _ConflictingValue
PricesMissing = _PricesMissing
Infeasible = _Infeasible
JobLost = _JobLost
JobTimedOut = _JobTimedOut
