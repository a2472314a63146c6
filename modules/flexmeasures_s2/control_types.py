"""The control types: which messages each has, what those refer to, and what is remembered of them.

A table maps each message_type that a Resource Manager may send to a check: a function of what is
remembered and of the message, which raises InvalidContent where the message refers to what is not
known, or contradicts itself. What it takes leniently it may return: what that is, with the field.
"""

import flexmeasures_s2.ddbc as ddbc
import flexmeasures_s2.frbc as frbc
import flexmeasures_s2.ombc as ombc
import flexmeasures_s2.pebc as pebc
import flexmeasures_s2.ppbc as ppbc

NO_SELECTION, NOT_CONTROLABLE = "NO_SELECTION", "NOT_CONTROLABLE"
ABBREVIATIONS = {
    "FRBC": "FILL_RATE_BASED_CONTROL",
    "OMBC": "OPERATION_MODE_BASED_CONTROL",
    "DDBC": "DEMAND_DRIVEN_BASED_CONTROL",
    "PPBC": "POWER_PROFILE_BASED_CONTROL",
    "PEBC": "POWER_ENVELOPE_BASED_CONTROL",
}
"""What stands before the point in a message_type, by preference: the most that can be optimised first."""
PLANNABLE = list(ABBREVIATIONS.values())
NAMES = [*PLANNABLE, NOT_CONTROLABLE, NO_SELECTION]
ALL_NAMES = [*NAMES, *ABBREVIATIONS]
CHECKS = frbc.CHECKS | ombc.CHECKS | ddbc.CHECKS | ppbc.CHECKS | pebc.CHECKS
OF = {message_type: ABBREVIATIONS[message_type.split(".")[0]] for message_type in CHECKS}
"""The control type that each message_type belongs to."""
REFERRED_TO = (frbc.DESCRIPTION, ombc.DESCRIPTION, ddbc.DESCRIPTION, ppbc.PROFILE)
"""What other messages refer to: with a new one, those may refer to nothing."""
WITHOUT_STATUS = (frbc.LEAKAGE,)
"""What has a valid_from, and nothing that refers to it: there is no need to know it before."""
KEYS = frbc.KEYS | ombc.KEYS | ddbc.KEYS | ppbc.KEYS | pebc.KEYS
"""By which of its ids each is remembered, of those that there can be several of."""


@pyscript_compile
def named(text):
    """Return the control type that a user means by its name or abbreviation; raise ValueError."""
    name = str(text).strip().upper()
    name = ABBREVIATIONS.get(name, name)
    if name not in NAMES:
        raise ValueError(f"expected one of {', '.join(ALL_NAMES)}, but got {text!r}")
    return name
