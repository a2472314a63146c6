"""The pages of the manual: their headings, links, and the S2 messages that they show."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
MAKERS = ROOT / "docs" / "devices-over-s2-for-makers.md"
SITE = ROOT / "mkdocs.yml"
NAVIGATION = [
    ROOT / "docs" / name for name in re.findall(r"[\w-]+\.md$", SITE.read_text("utf-8"), re.MULTILINE)
]
MANUAL = [README, *NAVIGATION]
"""The pages for users, in the order in which they are read."""
OTHERS = ("CHANGELOG", "CONTRIBUTING", "MAINTAINERS", "SECURITY")
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", *OTHERS)),
    *sorted((ROOT / "docs").glob("*.md")),
]

FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", re.DOTALL)
SHOWN = re.compile(r"^\*\*(RM|CEM)\*\*[^\n]*\n\n```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Shown(NamedTuple):
    """A message of a dialogue, and its sender: `RM` or `CEM`."""

    sender: str
    message: dict[str, Any]


def dialogue(page: Path) -> list[Shown]:
    """Return the messages that a page shows; every JSON block is one."""
    text = page.read_text(encoding="utf-8")
    shown = [Shown(sender, json.loads(block)) for sender, block in SHOWN.findall(text)]
    assert len(shown) == text.count("```json"), "a JSON block without a sender"
    return shown


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the file and the heading (empty for the whole file) of every link within the repository."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    targets = [target for target in LINK.findall(text) if "://" not in target]
    split = [target.partition("#") for target in targets]
    return [((page.parent / path).resolve() if path else page, heading) for path, _, heading in split]


def headings(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    names = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in names}
