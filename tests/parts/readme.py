"""The YAML in the README and in the other pages for users."""

import re
from typing import Any

import yaml

from tests.parts.pages import MANUAL


class SecretsAsText(yaml.SafeLoader):
    """A loader that reads `!secret name` as text."""


def _secret(loader: SecretsAsText, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


SecretsAsText.add_constructor("!secret", _secret)


def text_of_manual() -> str:
    """Return the text of all pages for users."""
    return "\n".join(page.read_text(encoding="utf-8") for page in MANUAL)


def blocks(heading: str | None = None) -> list[dict[str, Any]]:
    """Return the YAML of the manual, or of the section with a heading."""
    text = text_of_manual()
    if heading is not None:
        [(level, section)] = re.findall(rf"^(#+) {heading}$(.*)", text, re.MULTILINE | re.DOTALL)
        text = re.split(rf"^#{{1,{len(level)}}} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    fenced = re.findall(r"^( *)```yaml\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [
        yaml.load(re.sub(f"^{indent}", "", block, flags=re.MULTILINE), SecretsAsText)
        for indent, block in fenced
    ]


def app_configurations(heading: str | None = None) -> list[dict[str, Any]]:
    """Return the configurations of the app in the manual, or in the section with a heading."""
    sections = [block["pyscript"] for block in blocks(heading) if "pyscript" in block]
    assert all(section["allow_all_imports"] is True for section in sections)
    return [section["apps"]["flexmeasures"] for section in sections]


def automations(heading: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return the automations in the manual, or in the section with a heading, by their labelled keys."""
    own = [block for block in blocks(heading) if any(key.startswith("automation") for key in block)]
    labelled = {key: items for block in own for key, items in block.items()}
    assert len(labelled) == len(own)
    return labelled
