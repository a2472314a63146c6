"""A pytest plugin that is loaded before all others: what they import needs Home Assistant as it is then.

Home Assistant 2026.11 puts another package in the place of httpx, which must happen before httpx is imported,
and the newest pytest-homeassistant-custom-component is made for 2026.10.
"""

from contextlib import suppress

from homeassistant.components import logger

with suppress(ImportError):
    from homeassistant.components.logger.helpers import _clear_logger_overwrites

    logger._clear_logger_overwrites = _clear_logger_overwrites
