"""What cannot be done about a Resource Manager, in words for the user."""


class _CemError(Exception):
    """It cannot be done; the text says what to do."""


CemError = _CemError


class _NoSuchResource(CemError):
    """No such Resource Manager is connected, or it is not clear which one is meant."""


NoSuchResource = _NoSuchResource


class _NotOffered(CemError):
    """The Resource Manager does not offer this control type."""


NotOffered = _NotOffered


class _NotConfirmed(CemError):
    """The Resource Manager refused, or did not answer."""


NotConfirmed = _NotConfirmed


class _NotPlannable(CemError):
    """The Resource Manager cannot be planned as things are."""


NotPlannable = _NotPlannable


class _NotPlanned(CemError):
    """There is no plan now; the cause may be a FlexMeasuresError."""


NotPlanned = _NotPlanned


class _InvalidInstruction(CemError):
    """The instruction does not fit the description that the Resource Manager has sent."""


InvalidInstruction = _InvalidInstruction
