"""A pytest plugin that is loaded before all others, since these import httpx and Home Assistant's names.

Home Assistant 2026.11 replaces httpx by another package, which must happen before httpx is imported, and the
newest pytest-homeassistant-custom-component is made for 2026.10.
"""

import importlib
from typing import Any

from homeassistant.components import logger

component: Any = logger
helpers: Any = importlib.import_module(f"{logger.__name__}.helpers")
if hasattr(helpers, "_clear_logger_overwrites"):
    component._clear_logger_overwrites = helpers._clear_logger_overwrites
