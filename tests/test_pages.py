"""The pages of the manual: what they link to is there, and the S2 session that they show is a real one."""

from dataclasses import fields

import pytest

import flexmeasures_s2.listener as listeners
from tests.modules.flexmeasures_s2.conftest import cem, expected_lingering_timers, serve  # noqa: F401
from tests.parts import pages, s2_schemas
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


def test_the_readme_links_to_the_page_for_makers():
    assert pages.MAKERS in [path for path, _ in pages.links(pages.ROOT / "README.md")]


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
