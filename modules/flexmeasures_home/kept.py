"""What is kept in files of Home Assistant's storage, read without trust."""

import logging

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures")


@pyscript_compile
def read(convert, kept, otherwise=None):
    """Return what was kept, converted; what cannot be read is logged, and left out."""
    try:
        return convert(kept)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        LOGGER.error("What was kept in .storage cannot be read (%r), and is left out: %.500r", error, kept)
        return otherwise
