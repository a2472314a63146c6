"""The stand-in for pyscript does what pyscript does: each test here runs on both."""

import contextlib
from pathlib import Path

import pytest
import voluptuous as vol
from homeassistant.components import persistent_notification
from homeassistant.core import Context
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers.service import async_get_all_descriptions
from homeassistant.setup import async_setup_component
from pytest_homeassistant_custom_component.common import async_capture_events

from tests.parts import in_process
from tests.parts.home_assistant import install
from tests.parts.pyscript_source import source

COMPILED = "@pyscript_compile\ndef name():\n    return __name__\n"
PACKAGES = {
    "pyscript/apps/flexmeasures/local.py": COMPILED,
    "modules/pkg/__init__.py": '"""A package."""\n',
    "modules/pkg/one.py": COMPILED,
    "modules/pkg/sub/two.py": COMPILED,
    "modules/facade/__init__.py": "from facade.one import name\n",
    "modules/facade/one.py": COMPILED,
    "modules/relative/__init__.py": "from .one import name\n",
    "modules/relative/one.py": COMPILED,
    "modules/plain/__init__.py": "",
    "modules/plain/one.py": COMPILED,
    "modules/plain/two.py": "from .one import name\n",
}


@pytest.fixture(params=["stand-in", "real"])
def run(request, hass, tmp_path):
    """Give a context manager that runs an app and modules on the stand-in or on pyscript."""
    chosen = source("stand-in" if request.param == "stand-in" else None)
    if request.param == "real" and not chosen.is_real:
        pytest.skip(f"not compared with real pyscript: {chosen.description}")

    @contextlib.asynccontextmanager
    async def start(
        app: str, files: dict | None = None, config: dict | None = None, *, allow_all_imports: bool = True
    ):
        repository, folder = tmp_path / "repository", tmp_path / "config"
        (repository / "modules").mkdir(parents=True)
        for name, text in {**(files or {}), "pyscript/apps/flexmeasures/__init__.py": app}.items():
            path = repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        install(folder, chosen, repository=repository)
        assert await async_setup_component(hass, "persistent_notification", {})
        async with in_process.pyscript(
            hass, folder, config or {"host": "example"}, allow_all_imports=allow_all_imports
        ):
            yield hass

    return start


def installed(hass, name: str = "apps/flexmeasures/__init__.py") -> Path:
    """Return the path of an installed script, by default the app."""
    return Path(hass.config.path("pyscript", name))


def edit(hass, old: str, new: str, *name: str) -> None:
    """Replace text in an installed script."""
    path = installed(hass, *name)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


async def respond(hass, **data):
    """Call the sample service for its response."""
    return await hass.services.async_call("flexmeasures", "sample", data, blocking=True, return_response=True)


def attributes(hass) -> dict:
    """Return the attributes of the sample state."""
    return dict(hass.states.get("sensor.sample").attributes)


ECHO = '''
@service("flexmeasures.sample", supports_response="optional")
async def sample(**data):
    """yaml
name: Sample
description: It echoes.
fields:
  value:
    name: Value
    selector:
      number:
        min: 1
"""
    data.pop("context")
    return data
'''


async def test_service_gets_the_data_and_responds(run):
    async with run(ECHO) as hass:
        assert await respond(hass, value=3) == {"value": 3, "trigger_type": "service"}


async def test_docstring_describes_the_service(run):
    async with run(ECHO) as hass:
        description = (await async_get_all_descriptions(hass))["flexmeasures"]["sample"]
    assert description == {
        "name": "Sample",
        "description": "It echoes.",
        "fields": {"value": {"name": "Value", "selector": {"number": {"min": "1"}}}},
        "response": {"optional": True},
    }


async def test_plain_docstring_becomes_the_description(run):
    app = '@service\ndef sample(value=None):\n    """Sample."""\n'
    async with run(app) as hass:
        description = (await async_get_all_descriptions(hass))["pyscript"]["sample"]
    assert description["description"] == "Sample."
    assert description["fields"] == {"value": {"description": "argument value"}}


async def test_service_without_keywords_gets_only_what_it_names(run):
    app = """
@service("flexmeasures.sample", supports_response="optional")
async def sample(value, trigger_type=None):
    return {"value": value, "trigger_type": trigger_type}
"""
    async with run(app) as hass:
        assert await respond(hass, value=3) == {"value": 3, "trigger_type": "service"}


async def test_exception_in_a_service_is_logged_and_does_not_reach_the_caller(run, caplog):
    app = """
@service("flexmeasures.sample", supports_response="optional")
async def sample(**data):
    raise ValueError("a bad thing")
"""
    async with run(app) as hass:
        await hass.services.async_call("flexmeasures", "sample", {}, blocking=True)
        with pytest.raises(HomeAssistantError):
            await respond(hass)
    assert "a bad thing" in caplog.text


NATIVE = {
    "modules/native/__init__.py": '"""A native service."""\n',
    "modules/native/service.py": """
import voluptuous as vol
from homeassistant.core import SupportsResponse, async_get_hass
from homeassistant.exceptions import ServiceValidationError

SCHEMA = vol.Schema({vol.Required("value"): int})

@pyscript_compile
async def handle(call):
    if call.data["value"] > 9:
        raise ServiceValidationError("value is above 9")
    return {"doubled": call.data["value"] * 2, "small": any(x > 1 for x in (1, 2))}

@pyscript_compile
def expose(domain, name):
    async_get_hass().services.async_register(
        domain, name, handle, schema=SCHEMA, supports_response=SupportsResponse.OPTIONAL
    )
""",
}
EXPOSE = f"""
import native.service as native
{ECHO}
@time_trigger("startup")
async def startup():
    native.expose("flexmeasures", "sample")
"""


async def test_native_handler_takes_the_place_of_the_decorated_service(run):
    async with run(EXPOSE, NATIVE) as hass:
        assert await respond(hass, value=3) == {"doubled": 6, "small": True}
        with pytest.raises(ServiceValidationError, match="value is above 9"):
            await respond(hass, value=10)
        with pytest.raises(vol.Invalid):
            await respond(hass, value="three")
        descriptions = await async_get_all_descriptions(hass)
    assert descriptions["flexmeasures"]["sample"]["name"] == "Sample"


async def test_reload_makes_the_native_handler_anew(run):
    async with run(EXPOSE, NATIVE) as hass:
        edit(hass, '["value"] * 2', '["value"] * 3', "modules/native/service.py")
        await in_process.reload(hass)
        assert await respond(hass, value=3) == {"doubled": 9, "small": True}


async def test_service_is_gone_with_its_file(run):
    async with run(EXPOSE, NATIVE) as hass:
        installed(hass).unlink()
        await in_process.reload(hass)
        assert not hass.services.has_service("flexmeasures", "sample")


TRIGGERS = """
@time_trigger("startup")
async def startup(trigger_type=None, trigger_time=None):
    event.fire("seen", moment=trigger_time, trigger_type=trigger_type, version=1)

@time_trigger("shutdown")
async def shutdown(trigger_time=None):
    event.fire("seen", moment=trigger_time, version=1)
"""


async def test_triggers_run_at_startup_reload_and_stop(run, hass):
    seen = async_capture_events(hass, "seen")

    def moments():
        found = [(event.data["moment"], event.data["version"]) for event in seen]
        seen.clear()
        return found

    async with run(TRIGGERS.replace("event.fire", "await event.fire")):
        assert seen[0].data["trigger_type"] == "time"
        assert moments() == [("startup", 1)]
        await in_process.reload(hass)
        assert moments() == []
        await in_process.reload(hass, global_ctx="*")
        assert moments() == [("shutdown", 1), ("startup", 1)]
        edit(hass, "version=1", "version=2")
        await in_process.reload(hass)
        assert moments() == [("shutdown", 1), ("startup", 2)]
    assert moments() == [("shutdown", 2)]


async def test_broken_app_leaves_the_rest_alone_and_comes_back(run, caplog):
    async with run(ECHO) as hass:
        edit(hass, "data.pop", "} data.pop")
        await in_process.reload(hass)
        assert not hass.services.has_service("flexmeasures", "sample")
        assert "SyntaxError" in caplog.text
        edit(hass, "} data.pop", "data.pop")
        await in_process.reload(hass)
        assert await respond(hass, value=3)


async def test_app_gets_its_configuration_anew_at_reload(run):
    app = """
@time_trigger("startup")
async def startup():
    state.set("sensor.sample", pyscript.app_config["host"], new_attributes=pyscript.app_config)
"""
    config = {"host": "example", "nested": {"list": [1, "two"]}}
    async with run(app, config=config) as hass:
        assert hass.states.get("sensor.sample").state == "example"
        assert attributes(hass) == config
        edit(hass, "host: example", "host: other", "../configuration.yaml")
        await in_process.reload(hass)
        assert hass.states.get("sensor.sample").state == "other"


@pytest.mark.parametrize(
    ("call", "state", "expected"),
    [
        ('set(E, "new")', "new", {"a": 1}),
        ('set(E, "new", new_attributes={"b": 2})', "new", {"b": 2}),
        ('set(E, "new", new_attributes={})', "new", {}),
        ('set(E, "new", b=2)', "new", {"a": 1, "b": 2}),
        ('set(E, "new", new_attributes={"b": 2}, c=3)', "new", {"b": 2, "c": 3}),
        ('set(E, value=None, new_attributes={"b": 2})', "old", {"b": 2}),
        ("set(E, 1.5)", "1.5", {"a": 1}),
        ('set(E, state.get(E), got=state.get(E + ".a"))', "old", {"a": 1, "got": 1}),
        ('set(E, state.exist(E), no=state.exist(E + "x"))', "True", {"a": 1, "no": False}),
        ('set(E, state.exist(E + ".a"), no=state.exist(E + ".z"))', "True", {"a": 1, "no": False}),
        ("set(E, str(state.getattr(E)))", "{'a': 1}", {"a": 1}),
        ('set(E, str(state.getattr(E + "x")))', "None", {"a": 1}),
    ],
)
async def test_state_functions(run, call, state, expected):
    app = f"""
E = "sensor.sample"

@service("flexmeasures.sample")
async def sample():
    state.set(E, "old", a=1)
    state.{call}
"""
    async with run(app) as hass:
        await hass.services.async_call("flexmeasures", "sample", {}, blocking=True)
        assert hass.states.get("sensor.sample").state == state
        assert attributes(hass) == expected


async def test_state_is_deleted(run):
    app = """
@service("flexmeasures.sample")
async def sample():
    state.delete("sensor.sample")
"""
    async with run(app) as hass:
        hass.states.async_set("sensor.sample", "on")
        await hass.services.async_call("flexmeasures", "sample", {}, blocking=True)
        assert hass.states.get("sensor.sample") is None


async def test_compiled_code_uses_handles_taken_at_file_level(run):
    app = """
set_state = state.set
create = task.create
sleep = task.sleep
execute = task.executor
fire = event.fire
call_service = service.call
written = []

@pyscript_compile
def block(value, *, more):
    return value + more

@pyscript_compile
async def work(value):
    await sleep(0)
    set_state("sensor.sample", await execute(block, value, more=1))
    await fire("seen", value=value)
    return value

@pyscript_compile
async def start(value):
    return await (await create(work, value))

@service("flexmeasures.inner", supports_response="only")
async def inner(**data):
    return {"result": await start(data["value"])}

@service("flexmeasures.sample", supports_response="optional")
async def sample(**data):
    return await call_service("flexmeasures", "inner", return_response=True, value=data["value"])
"""
    async with run(app) as hass:
        seen = async_capture_events(hass, "seen")
        assert await respond(hass, value=3) == {"result": 3}
        assert hass.states.get("sensor.sample").state == "4"
        assert [event.data for event in seen] == [{"value": 3}]


async def test_compiled_code_does_not_see_pyscripts_names(run, caplog):
    app = """
@pyscript_compile
def peek():
    return state.get("sensor.sample")

@service("flexmeasures.sample")
async def sample():
    peek()
"""
    async with run(app) as hass:
        hass.states.async_set("sensor.sample", "on")
        await hass.services.async_call("flexmeasures", "sample", {}, blocking=True)
    assert "name 'state' is not defined" in caplog.text


async def test_log_goes_to_the_apps_logger(run, caplog):
    async with run('@time_trigger("startup")\nasync def f():\n    log.warning("take %s", "care")\n'):
        pass
    assert ("take care", "WARNING") in [
        (record.getMessage(), record.levelname)
        for record in caplog.records
        if record.name.startswith("custom_components.pyscript.apps.flexmeasures")
    ]


async def test_call_carries_its_context(run):
    app = """
@service("flexmeasures.sample")
async def sample(context=None):
    state.set("sensor.sample", context.id)
"""
    async with run(app) as hass:
        context = Context()
        await hass.services.async_call("flexmeasures", "sample", {}, blocking=True, context=context)
        assert hass.states.get("sensor.sample").state == context.id


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import flexmeasures.local as it", "flexmeasures.local"),
        ("from flexmeasures.local import name", "flexmeasures.local"),
        ("from . import local as it", "flexmeasures.local"),
        ("from .local import name", "flexmeasures.local"),
        ("import pkg.one as it", "pkg.one"),
        ("import pkg\nimport pkg.one as it", "pkg.one"),
        ("import pkg.sub.two as it", "pkg.sub.two"),
        ("from pkg.one import name", "pkg.one"),
        ("import facade as it", "facade.one"),
        ("from facade import name", "facade.one"),
        ("import relative as it", "relative.one"),
        ("from flexmeasures import local as it", None),
        ("from pkg import one as it", None),
        ("import plain.two as it", None),
        ("import absent as it", None),
    ],
)
async def test_import_forms(run, statement, expected):
    call = "name()" if statement.endswith("import name") else "it.name()"
    app = f"""
{statement}

@time_trigger("startup")
async def startup():
    state.set("sensor.sample", {call})
"""
    async with run(app, PACKAGES) as hass:
        found = hass.states.get("sensor.sample")
        assert (found and found.state) == expected


@pytest.mark.parametrize("allow_all_imports", [True, False])
@pytest.mark.parametrize(
    ("module", "is_always_allowed"),
    [("json", True), ("homeassistant.const", True), ("pkg.one", True), ("ipaddress", False)],
)
async def test_most_imports_are_to_be_allowed(run, module, is_always_allowed, allow_all_imports):
    app = f"""
import {module} as it

@time_trigger("startup")
async def startup():
    state.set("sensor.sample", "loaded")
"""
    async with run(app, PACKAGES, allow_all_imports=allow_all_imports) as hass:
        found = hass.states.get("sensor.sample")
        assert (found is not None) == (is_always_allowed or allow_all_imports)


@pytest.mark.parametrize("module", ["pkg.one", "ipaddress"])
async def test_an_import_that_fails_can_be_told(run, caplog, module):
    app = f"""
try:
    import {module} as it
except ImportError as error:
    persistent_notification.create(notification_id="sample", message=str(error))
    raise
"""
    refusal = "import of ipaddress not allowed"
    async with run(app, PACKAGES, allow_all_imports=False) as hass:
        notification = persistent_notification._async_get_or_create_notifications(hass).get("sample")
    assert (notification and notification["message"]) == (refusal if module == "ipaddress" else None)
    assert (refusal in caplog.text) == (module == "ipaddress")


async def test_module_namespace_holds_what_was_loaded(run):
    async with run("import pkg.one as one\n", PACKAGES):
        assert in_process.module_namespace("pkg.one").name() == "pkg.one"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ('@state_trigger("sensor.x")\ndef f():\n    pass', "state_trigger"),
        ('@time_trigger("cron(* * * * *)")\ndef f():\n    pass', "time_trigger('cron(* * * * *)')"),
        ('state.persist("pyscript.x")', "state.persist"),
        ('task.unique("x")', "task.unique"),
    ],
)
async def test_stand_in_names_what_it_lacks(hass, tmp_path, caplog, statement, name):
    app = tmp_path / "repository" / "pyscript" / "apps" / "flexmeasures" / "__init__.py"
    app.parent.mkdir(parents=True)
    app.write_text(statement)
    (tmp_path / "repository" / "modules").mkdir()
    install(tmp_path, source("stand-in"), repository=tmp_path / "repository")
    async with in_process.pyscript(hass, tmp_path, {}):
        pass
    assert f"the pyscript stand-in has no {name}" in caplog.text
    assert "This is a STAND-IN for pyscript" in caplog.text
