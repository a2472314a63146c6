"""A pytest plugin that is loaded before all others: what they import needs Home Assistant as it is then.

Home Assistant 2026.11 puts another package in the place of httpx, which must happen before httpx is imported,
and the newest pytest-homeassistant-custom-component is made for 2026.10.
"""

import homeassistant  # noqa: F401
from homeassistant.components import logger

if not hasattr(logger, "_clear_logger_overwrites"):
    from homeassistant.components.logger import helpers

    logger._clear_logger_overwrites = helpers._clear_logger_overwrites
