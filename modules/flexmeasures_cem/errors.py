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

    return CemError, NoSuchResource, NotOffered, NotConfirmed


CemError, NoSuchResource, NotOffered, NotConfirmed = kinds()
