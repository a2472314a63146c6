"""The dashboard's cards, rendered by Home Assistant."""

from pathlib import Path

import yaml
from homeassistant.helpers.template import Template

FILE = Path(__file__).parents[2] / "dashboards" / "flexmeasures.yaml"
NASTY = "<img src=x> [a](http://b) ![c](d) | *e* _f_ `g` ~~h~~ \\ & i"
SHOWN = (
    "&lt;img src=x> &#91;a](http://b) !&#91;c](d) &#124; &#42;e&#42; &#95;f&#95; &#96;g&#96; "
    "&#126;&#126;h&#126;&#126; &#92; &amp; i"
)


def card(title: str) -> str:
    """Return the template of a Markdown card."""
    views = yaml.safe_load(FILE.read_text())["views"]
    return next(each["content"] for view in views for each in view["cards"] if each.get("title") == title)


async def test_what_a_device_calls_itself_is_shown_as_text(hass):
    instruction = {"label": NASTY, "power": 1000, "execution_time": "2026-11-27T08:00:00+00:00"}
    attributes = {
        "friendly_name": f"FlexMeasures S2 {NASTY}",
        "fill_level": 50,
        "instruction": instruction,
        "plan": [],
    }
    hass.states.async_set("sensor.flexmeasures_s2_nasty", "connected", attributes)
    row = Template(card("S2 devices"), hass).async_render().splitlines()[-1]
    cells = [each.strip() for each in row.strip("|").split(" | ")]
    assert cells[0] == SHOWN
    assert cells[3].startswith(f"{SHOWN}, 1000 W, from ")
    assert len(cells) == 5
