"""What can go wrong when FlexMeasures is asked, by meaning.

Each class says which state `sensor.flexmeasures_status` shows for it (`status`), under which stable
name its notification is kept (`cause`), and whether it needs the user only if it lasts (`temporary`).
The text is one sentence or two for the user: what is wrong, and what to do.
"""


@pyscript_compile
def kinds():
    """Define the errors: natively, so that compiled code can raise them."""

    class OptimiserError(Exception):
        """FlexMeasures did not do what was asked."""

        status = "error"
        cause = "failed"
        temporary = False

    class Unauthorized(OptimiserError):
        """The server refuses the username or password."""

        status = "unauthorized"
        cause = "unauthorized"

    class Unreachable(OptimiserError):
        """The server cannot be reached, or is no working FlexMeasures server."""

        status = "unreachable"
        cause = "unreachable"
        temporary = True

    class NoAccess(OptimiserError):
        """The user may not use a sensor or asset (403)."""

        cause = "no_access"

    class UnknownSensor(OptimiserError):
        """A sensor or asset does not exist on the server, or is of the wrong kind."""

        cause = "unknown_sensor"

    class RateLimited(OptimiserError):
        """The server asks to wait (429); the text says until when."""

        cause = "rate_limited"

    class InvalidProblem(OptimiserError):
        """The server does not accept the flex-model, the flex-context or another field (422)."""

        cause = "invalid_problem"

    class PricesMissing(OptimiserError):
        """A price sensor has no data in the planning window."""

        cause = "prices_missing"

    class Infeasible(OptimiserError):
        """No schedule meets all hard constraints."""

        cause = "infeasible"

    class JobFailed(OptimiserError):
        """The scheduling job failed on the server for another reason."""

        cause = "job_failed"

    class JobTimedOut(OptimiserError):
        """The scheduling job did not finish in time."""

        cause = "job_timed_out"

    return (
        OptimiserError,
        Unauthorized,
        Unreachable,
        NoAccess,
        UnknownSensor,
        RateLimited,
        InvalidProblem,
        PricesMissing,
        Infeasible,
        JobFailed,
        JobTimedOut,
    )


(
    OptimiserError,
    Unauthorized,
    Unreachable,
    NoAccess,
    UnknownSensor,
    RateLimited,
    InvalidProblem,
    PricesMissing,
    Infeasible,
    JobFailed,
    JobTimedOut,
) = kinds()
