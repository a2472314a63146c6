"""The control types: which messages belong to each, how they are checked, and how they are remembered.

`CHECKS` maps each message_type that a Resource Manager may send under a control type to its check, or None.
"""

import flexmeasures_s2.ddbc as ddbc
import flexmeasures_s2.frbc as frbc
import flexmeasures_s2.ombc as ombc
import flexmeasures_s2.pebc as pebc
import flexmeasures_s2.ppbc as ppbc
import flexmeasures_s2.rules as rules

NO_SELECTION, NOT_CONTROLABLE = "NO_SELECTION", "NOT_CONTROLABLE"
ABBREVIATIONS = {
    "FRBC": "FILL_RATE_BASED_CONTROL",
    "OMBC": "OPERATION_MODE_BASED_CONTROL",
    "DDBC": "DEMAND_DRIVEN_BASED_CONTROL",
    "PPBC": "POWER_PROFILE_BASED_CONTROL",
    "PEBC": "POWER_ENVELOPE_BASED_CONTROL",
}
"""By the prefix of their message_types, in order of preference: the most to optimise comes first."""
PLANNABLE = list(ABBREVIATIONS.values())
NAMES = [*PLANNABLE, NOT_CONTROLABLE, NO_SELECTION]
ALL_NAMES = [*NAMES, *ABBREVIATIONS]
CHECKS: dict[str, rules.Check | None] = frbc.CHECKS | ombc.CHECKS | ddbc.CHECKS | ppbc.CHECKS | pebc.CHECKS
CONTROL_TYPE_OF = {message_type: ABBREVIATIONS[message_type.split(".")[0]] for message_type in CHECKS}
REFERENCED = (frbc.DESCRIPTION, ombc.DESCRIPTION, ddbc.DESCRIPTION, ppbc.PROFILE)
"""Messages that others refer to: a new one may leave references that lead nowhere."""
WITHOUT_STATUS = (frbc.LEAKAGE,)
"""Messages with a valid_from that none refers to, so that they can wait for it."""
KEYS: dict[str, tuple[str, ...]] = frbc.KEYS | ombc.KEYS | ddbc.KEYS | ppbc.KEYS | pebc.KEYS
"""The ids that messages are remembered by, for message_types of which several are in force at a time."""


@pyscript_compile
def parse(text: object) -> str:
    """Return the control type that a user gives by name or abbreviation; raise ValueError."""
    name = str(text).strip().upper()
    name = ABBREVIATIONS.get(name, name)
    if name not in NAMES:
        raise ValueError(f"expected one of {', '.join(ALL_NAMES)}, but got {text!r}")
    return name
