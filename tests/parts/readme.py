"""The YAML in the README."""

import re
from pathlib import Path
from typing import Any

import yaml

README = Path(__file__).parents[2] / "README.md"


class SecretsAsText(yaml.SafeLoader):
    """A loader that reads `!secret name` as text."""


def _secret(loader: SecretsAsText, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


SecretsAsText.add_constructor("!secret", _secret)


def blocks(heading: str | None = None) -> list[dict[str, Any]]:
    """Return the YAML of the README, or of the section with a heading."""
    text = README.read_text(encoding="utf-8")
    if heading is not None:
        [(level, section)] = re.findall(rf"^(#+) {heading}$(.*)", text, re.MULTILINE | re.DOTALL)
        text = re.split(rf"^#{{1,{len(level)}}} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    fenced = re.findall(r"^( *)```yaml\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [
        yaml.load(re.sub(f"^{indent}", "", block, flags=re.MULTILINE), SecretsAsText)
        for indent, block in fenced
    ]


def app_configurations(heading: str | None = None) -> list[dict[str, Any]]:
    """Return the configurations of the app in the README, or in the section with a heading."""
    sections = [block["pyscript"] for block in blocks(heading) if "pyscript" in block]
    assert all(section["allow_all_imports"] is True for section in sections)
    return [section["apps"]["flexmeasures"] for section in sections]


def automations(heading: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return the automations in the README, or in the section with a heading, by their labelled keys."""
    own = [block for block in blocks(heading) if any(key.startswith("automation") for key in block)]
    labelled = {key: items for block in own for key, items in block.items()}
    assert len(labelled) == len(own)
    return labelled
