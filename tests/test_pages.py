"""The pages of the manual: links lead somewhere, tables are current, the S2 session is a real one."""

from dataclasses import fields

import pytest
import yaml

import flexmeasures_s2.listener as listeners
from flexmeasures_home.version import VERSION
from tests.modules.flexmeasures_s2.conftest import cem, expected_lingering_timers, serve  # noqa: F401
from tests.parts import pages, readme, reference, s2_schemas
from tests.parts.resource_manager import ResourceManager


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    links = pages.links(page)
    missing = [path for path, _ in links if not path.exists()]
    unknown = [
        f"{path.name}#{heading}"
        for path, heading in links
        if heading and path.suffix == ".md" and heading not in pages.headings(path)
    ]
    assert (missing, unknown) == ([], [])


def test_the_navigation_and_the_table_of_contents_have_every_page():
    documents = set((pages.ROOT / "docs").glob("*.md"))
    contents = pages.ROOT / "docs" / "index.md"
    assert set(pages.NAVIGATION) == documents
    assert {path for path, _ in pages.links(contents)} >= documents - {contents}


def test_the_readme_links_to_every_page():
    linked = {path for path, _ in pages.links(pages.README)}
    assert linked >= set(pages.NAVIGATION)


def test_the_readme_is_a_screen_and_a_half():
    assert len(pages.README.read_text(encoding="utf-8").splitlines()) <= 100


def test_the_tables_of_keys_are_those_of_the_schema(configuration):
    text = reference.CONFIGURATION.read_text(encoding="utf-8")
    assert text == reference.page_with_keys(text, configuration), "run python -m tests.parts.reference"


def test_the_tables_of_fields_are_those_of_the_services():
    text = reference.SERVICES.read_text(encoding="utf-8")
    source = (reference.APP / "__init__.py").read_text(encoding="utf-8")
    assert text == reference.page_with_fields(text, source), "run python -m tests.parts.reference"
    assert {f"<!-- fields: {name} -->" for name in reference.docstrings(source)} <= set(text.splitlines())


def test_a_key_without_a_description_is_named(configuration):
    text = reference.CONFIGURATION.read_text(encoding="utf-8")
    without = "\n".join(line for line in text.splitlines() if not line.startswith("| `soc_at_end`"))
    with pytest.raises(ValueError, match="table SCHEMA: add a row for soc_at_end"):
        reference.page_with_keys(without, configuration)


def test_a_row_without_a_key_is_named(configuration):
    text = reference.CONFIGURATION.read_text(encoding="utf-8")
    row = "| `soc_at_start` | | | |\n"
    with pytest.raises(ValueError, match="table SCHEMA: delete the row of soc_at_start"):
        reference.page_with_keys(text.replace("| `soc_at_end`", f"{row}| `soc_at_end`", 1), configuration)


def test_the_complete_example_is_a_right_configuration(configuration):
    example = yaml.load(
        (pages.ROOT / "examples" / "configuration.yaml").read_text("utf-8"), readme.SecretsAsText
    )
    _configuration, mistakes = configuration.read(example["pyscript"]["apps"]["flexmeasures"])
    assert mistakes == []
    assert all(key.startswith("automation ") for key in example if "automation" in key)


def test_the_workflow_runs_on_the_releases_with_pinned_requirements():
    workflow = yaml.safe_load((pages.ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    pinned = (pages.ROOT / "tests" / "requirements").glob("home-assistant-*.txt")
    releases = [each["home_assistant"] for each in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]]
    assert sorted(releases) == sorted(path.stem.removeprefix("home-assistant-") for path in pinned)


def test_each_message_that_is_shown_is_valid():
    messages = [message for _, message in pages.dialogue(pages.MAKERS)]
    assert messages
    assert [problem for message in messages for problem in s2_schemas.problems(message)] == []


def test_each_message_that_is_shown_is_confirmed_once_by_the_other_side():
    shown = pages.dialogue(pages.MAKERS)
    sent = [(sender, message["message_id"]) for sender, message in shown if "message_id" in message]
    confirmed = [
        (sender, message["subject_message_id"])
        for sender, message in shown
        if message["message_type"] == "ReceptionStatus"
    ]
    other = {"RM": "CEM", "CEM": "RM"}
    assert sorted((other[sender], message_id) for sender, message_id in sent) == sorted(confirmed)
    assert len(set(sent)) == len(sent)


async def test_the_session_that_is_shown_is_had_with_the_real_cem(cem):  # noqa: F811
    """Up to the first instruction, for which there is no planner here, and the measurement."""
    shown = pages.dialogue(pages.MAKERS)
    kinds = [message["message_type"] for _, message in shown]
    until = kinds.index("FRBC.Instruction")
    said = [message for sender, message in shown[:until] if sender == "RM" and "message_id" in message]
    [measured] = [message for _, message in shown if message["message_type"] == "PowerMeasurement"]
    async with ResourceManager(cem.url) as rm:
        await rm.next("Handshake")
        for message in said:
            assert (await rm.ask(message))["status"] == "OK", message
            following = {"Handshake": "HandshakeResponse", "ResourceManagerDetails": "SelectControlType"}
            if message["message_type"] in following:
                await rm.next(following[message["message_type"]])
        assert [message["message_type"] for message in rm.received] == [
            message["message_type"] for sender, message in shown[:until] if sender == "CEM"
        ]
        assert (await rm.ask(measured))["status"] == "OK"


def test_the_limits_of_the_page_for_makers_are_those_of_the_listener():
    text = pages.MAKERS.read_text(encoding="utf-8")
    rows = {
        name: next((line for line in text.splitlines() if f"(`{name}`)" in line), "")
        for name in (field.name for field in fields(listeners.Limits))
    }
    of_a_row = {"message": "1 MiB"}
    limits = listeners.Limits()
    wanted = {name: of_a_row.get(name, f"| {getattr(limits, name):g}") for name in rows}
    assert [name for name in rows if wanted[name] not in rows[name]] == []
    assert limits.message == 2**20


def test_the_changelog_tells_of_the_version_of_the_scripts():
    changelog = (pages.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in changelog.splitlines() if line.startswith("## ")]
    assert headings[0].split()[1] == VERSION
