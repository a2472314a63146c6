"""Which control type a resource manager is under, and who decides that."""

import asyncio
from uuid import uuid4

import pytest

import flexmeasures_cem.cem as cems
import flexmeasures_cem.errors as errors
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.parts.s2_messages import example

FRBC, OMBC, PEBC = "FILL_RATE_BASED_CONTROL", "OPERATION_MODE_BASED_CONTROL", "POWER_ENVELOPE_BASED_CONTROL"
NO_SELECTION, NOT_CONTROLABLE = "NO_SELECTION", "NOT_CONTROLABLE"


async def settled(resource, wanted):
    """Wait until a control type is active."""
    await until(lambda: resource.session and resource.session.control_type == wanted)


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        ([NOT_CONTROLABLE, PEBC, FRBC], FRBC),
        ([PEBC, OMBC], OMBC),
        ([NOT_CONTROLABLE, PEBC], PEBC),
        ([NO_SELECTION, NOT_CONTROLABLE], NOT_CONTROLABLE),
    ],
)
async def test_what_can_be_optimised_most_is_selected(cem, offered, selected):
    async with connected(cem, control_types=offered) as rm:
        assert rm.selected == selected


async def test_a_preferred_control_type_is_selected_where_it_is_offered(serve):
    cem = await serve(preferred=PEBC)
    async with connected(cem, control_types=[FRBC, PEBC]) as rm:
        assert rm.selected == PEBC
    async with connected(cem, control_types=[FRBC, OMBC]) as rm:
        assert rm.selected == FRBC


async def test_a_preference_for_no_selection_stops_every_device(serve):
    cem = await serve(preferred=NO_SELECTION)
    async with connected(cem, control_types=[FRBC]) as rm:
        assert rm.selected == NO_SELECTION


async def test_another_control_type_is_selected_and_told(cem):
    async with connected(cem, name="EV", control_types=[FRBC, PEBC]) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        await cems.change_control_type(cem.cem, resource, PEBC)
        assert (await rm.next("SelectControlType"))["control_type"] == PEBC
        assert cem.changes == [("EV", True, None), ("EV", True, FRBC), ("EV", True, PEBC)]
        assert (await rm.ask(example("PEBC.PowerConstraints")))["status"] == "OK"


async def test_what_is_active_is_not_selected_again(cem):
    async with connected(cem, control_types=[FRBC]) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        await cems.change_control_type(cem.cem, resource, FRBC)
        assert (await rm.ask(example("PowerMeasurement")))["status"] == "OK"
        assert len([each for each in rm.received if each["message_type"] == "SelectControlType"]) == 1


async def test_no_selection_is_always_possible(cem):
    async with connected(cem, control_types=[FRBC]) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        await cems.change_control_type(cem.cem, resource, NO_SELECTION)
        assert cems.control_type(resource) == NO_SELECTION
        assert (await rm.ask(example("FRBC.StorageStatus")))["status"] == "INVALID_CONTENT"
        assert (await rm.ask(example("PowerMeasurement")))["status"] == "OK"


async def test_what_is_not_offered_is_refused_with_what_is(cem):
    async with connected(cem, name="EV", control_types=[FRBC, NOT_CONTROLABLE]):
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        with pytest.raises(
            errors.NotOffered, match=f"EV does not offer {OMBC}, but {FRBC}, {NOT_CONTROLABLE}"
        ):
            await cems.change_control_type(cem.cem, resource, OMBC)
        assert (cems.control_type(resource), resource.choice) == (FRBC, None)


async def test_a_choice_is_used_at_the_next_connection(cem):
    device = {"resource_id": str(uuid4()), "control_types": [FRBC, PEBC]}
    async with connected(cem, **device) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        await cems.change_control_type(cem.cem, resource, PEBC)
    async with connected(cem, **device) as rm:
        assert rm.selected == PEBC
    async with connected(cem, **device | {"control_types": [FRBC]}) as rm:
        assert rm.selected == FRBC
    async with connected(cem, **device) as rm:
        assert rm.selected == PEBC


async def test_a_choice_prevails_over_the_preference(serve):
    cem = await serve(preferred=PEBC)
    device = {"resource_id": str(uuid4()), "control_types": [FRBC, PEBC]}
    async with connected(cem, **device) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, PEBC)
        await cems.change_control_type(cem.cem, resource, FRBC)
    async with connected(cem, **device) as rm:
        assert rm.selected == FRBC


async def test_a_refusal_is_told_and_changes_nothing(cem):
    async with connected(cem, name="EV", control_types=[FRBC, PEBC]) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        rm.answers["SelectControlType"] = "INVALID_CONTENT"
        with pytest.raises(
            errors.NotConfirmed, match=f"EV answered INVALID_CONTENT to the selection of {PEBC}"
        ):
            await cems.change_control_type(cem.cem, resource, PEBC)
        assert (cems.control_type(resource), resource.choice) == (FRBC, None)
        assert (await rm.ask(example("FRBC.StorageStatus")))["status"] == "OK"


async def test_no_answer_to_a_selection_is_told_and_ends_the_session(serve):
    cem = await serve(limits={"confirmation": 0.3})
    async with connected(cem, name="EV", control_types=[FRBC, PEBC]) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        rm.answers["SelectControlType"] = None
        with pytest.raises(errors.NotConfirmed, match=r"EV .*not confirmed within 0.3 s"):
            await cems.change_control_type(cem.cem, resource, PEBC)
        assert await rm.closed() == 1002
    assert resource.choice is None


async def test_a_device_that_leaves_during_its_selection_is_told(cem):
    async with connected(cem, name="EV", control_types=[FRBC, PEBC]) as rm:
        resource = cems.connected(cem.cem)
        await settled(resource, FRBC)
        rm.answers["SelectControlType"] = None
        change = asyncio.create_task(cems.change_control_type(cem.cem, resource, PEBC))
        await rm.next("SelectControlType")
        await rm.send(example("SessionRequest"))
        with pytest.raises(errors.NotConfirmed, match="EV"):
            await change


async def test_without_a_device_it_says_what_to_do(cem):
    for resource_id in (None, "battery:1"):
        with pytest.raises(errors.NoSuchResource, match="see that it can reach"):
            cems.connected(cem.cem, resource_id)


async def test_who_has_left_is_not_connected(cem):
    async with connected(cem):
        assert cems.connected(cem.cem)
    await until(lambda: not cem.listener.sessions)
    with pytest.raises(errors.NoSuchResource):
        cems.connected(cem.cem)


async def test_an_unknown_device_is_named_with_those_that_are_there(cem):
    async with connected(cem, name="EV", resource_id="ev:1"):
        with pytest.raises(errors.NoSuchResource, match=r"there is none: 'ev:2'; connected are ev:1 \(EV\)"):
            cems.connected(cem.cem, "ev:2")


async def test_of_several_one_must_be_named(cem):
    async with connected(cem, name="EV", resource_id="ev:1"), connected(cem, name="PV", resource_id="pv:1"):
        with pytest.raises(errors.NoSuchResource, match=r"several .* ev:1 \(EV\), pv:1 \(PV\)"):
            cems.connected(cem.cem)
        assert cems.connected(cem.cem, "pv:1").name == "PV"
        assert cems.connected(cem.cem, "EV").resource_id == "ev:1"


async def test_a_name_that_several_have_is_not_enough(cem):
    async with connected(cem, name="EV", resource_id="ev:1"), connected(cem, name="EV", resource_id="ev:2"):
        with pytest.raises(errors.NoSuchResource, match="more than one has that name: 'EV'"):
            cems.connected(cem.cem, "EV")
        assert cems.connected(cem.cem, "ev:2").resource_id == "ev:2"


async def test_a_device_without_a_name_goes_by_its_id(cem):
    async with connected(cem, resource_id="ev:1") as rm:
        details = {name: value for name, value in rm.details.items() if name != "name"}
        assert (await rm.ask(details | {"message_id": "again"}))["status"] == "OK"
        assert cems.connected(cem.cem, "ev:1").name == "ev:1"


async def test_what_cannot_be_planned_gives_way_to_the_next_best(cem):
    async with connected(cem, control_types=[FRBC, OMBC, NOT_CONTROLABLE]) as rm:
        [resource] = cem.cem.resources.values()
        await settled(resource, FRBC)
        change = asyncio.create_task(cems.select_fallback(cem.cem, resource, resource.session, FRBC))
        assert (await rm.next("SelectControlType"))["control_type"] == OMBC
        await change
        await settled(resource, OMBC)
        await cems.select_fallback(cem.cem, resource, resource.session, OMBC)
        assert resource.session.control_type == OMBC
    async with connected(cem, control_types=[FRBC, OMBC], resource_id=rm.details["resource_id"]) as again:
        assert again.selected == FRBC


async def test_what_the_user_chose_does_not_give_way(serve):
    cem = await serve(preferred=PEBC)
    async with connected(cem, control_types=[FRBC, PEBC, NOT_CONTROLABLE]):
        [resource] = cem.cem.resources.values()
        await settled(resource, PEBC)
        await cems.select_fallback(cem.cem, resource, resource.session, PEBC)
        assert resource.session.control_type == PEBC


async def test_a_call_by_a_name_is_for_the_one_that_has_shown_a_token_of_its_own(serve):
    cem = await serve(token="secret", tokens={"battery": "its own"})
    cem.cem.with_token = frozenset({"battery"})
    async with connected(cem, token="secret", name="Battery") as namesake:
        assert cems.connected(cem.cem, "Battery").resource_id == namesake.details["resource_id"]
        async with connected(cem, token="its own", name="Battery", resource_id="battery"):
            assert cems.connected(cem.cem, "Battery").resource_id == "battery"
            async with connected(cem, token="secret", name="Battery"):
                assert cems.connected(cem.cem, "Battery").resource_id == "battery"
        with pytest.raises(errors.NoSuchResource, match="it is not connected"):
            cems.connected(cem.cem, "battery")


def test_of_many_that_are_connected_an_error_names_few():
    found = {str(n): cems.Resource(str(n), "y" * 80, session="its session") for n in range(250)}
    for wanted in (None, "x" * 255):
        with pytest.raises(errors.NoSuchResource) as caught:
            cems.connected(cems.Cem(None, None, resources=found), wanted)
        assert "and 245 more" in str(caught.value)
        assert len(str(caught.value)) < 700
