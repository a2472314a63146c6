"""What cannot be done about a Resource Manager, in words for the user."""


@pyscript_compile
def kinds():
    """Define the exceptions: natively, so that compiled code can raise and catch them."""

    class CemError(Exception):
        """It cannot be done; the text says what to do."""

    class NoSuchResource(CemError):
        """No such Resource Manager is connected, or it is not clear which one is meant."""

    class NotOffered(CemError):
        """The Resource Manager does not offer this control type."""

    class NotConfirmed(CemError):
        """The Resource Manager refused, or did not answer."""

    class NotPlannable(CemError):
        """The Resource Manager cannot be planned as things are."""

    class NotPlanned(CemError):
        """There is no plan now; the cause may be a FlexMeasuresError."""

    class InvalidInstruction(CemError):
        """The instruction does not fit what the Resource Manager has told of itself."""

    return (
        CemError,
        NoSuchResource,
        NotOffered,
        NotConfirmed,
        NotPlannable,
        NotPlanned,
        InvalidInstruction,
    )


(
    CemError,
    NoSuchResource,
    NotOffered,
    NotConfirmed,
    NotPlannable,
    NotPlanned,
    InvalidInstruction,
) = kinds()
