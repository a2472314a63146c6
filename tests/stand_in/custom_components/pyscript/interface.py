"""The names that pyscript puts into a script, and an error for those it has and this has not."""

import asyncio
import builtins
import functools
import inspect
import logging
from types import FunctionType, SimpleNamespace

from homeassistant.core import SupportsResponse

_MISSING = (
    "event_trigger",
    "mqtt_trigger",
    "pyscript_executor",
    "state_active",
    "state_trigger",
    "task_unique",
    "time_active",
    "webhook_trigger",
)


class _Names(SimpleNamespace):
    """A dotted group of names such as `state.`."""

    def __getattr__(self, name: str):
        if name == "app_config":
            raise NameError("name 'pyscript.app_config' is not defined")
        raise _missing(f"{self._group}.{name}")


def _missing(name: str) -> Exception:
    return AttributeError(f"the pyscript stand-in has no {name}")


def _missing_decorator(name: str):
    def decorator(*_args, **_kwargs):
        raise _missing(name)

    return decorator


def interface(scripts, context: str, app_config: dict | None) -> dict:
    """Return the builtins for the file of this context, e.g. `apps.flexmeasures`."""
    hass = scripts.hass
    logger = logging.getLogger(f"custom_components.pyscript.{context}")

    def on_loop(function):
        """Refuse the call while a file is loaded, which happens in a thread here."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            hass.verify_event_loop_thread(function.__name__)
            return function(*args, **kwargs)

        return wrapper

    def service(*names, supports_response="none"):
        if names and not isinstance(names[0], str):
            return service()(names[0])

        def decorator(function):
            for name in names or (f"pyscript.{function.__name__}",):
                response = SupportsResponse(supports_response)
                scripts.declare(*name.split(".", 1), function, response)
            return function

        return decorator

    def time_trigger(*moments):
        if moments and not isinstance(moments[0], str):
            return time_trigger()(moments[0])
        for moment in moments:
            if moment not in scripts.triggers:
                raise _missing(f"time_trigger({moment!r})")

        def decorator(function):
            for moment in moments or ("startup",):
                scripts.triggers[moment].append(function)
            return function

        return decorator

    def state(name: str):
        if (found := hass.states.get(name)) is None:
            raise NameError(f"name '{name}' is not defined")
        return found

    @on_loop
    def state_set(name, value=None, new_attributes=None, **kwargs):
        """Keep the value, or the attributes, where none are given."""
        old = hass.states.get(name)
        if value is None and old:
            value = old.state
        if new_attributes is None:
            new_attributes = old.attributes if old else {}
        context = kwargs.pop("context", None)
        hass.states.async_set(name, value, {**new_attributes, **kwargs}, context=context)

    @on_loop
    def state_delete(name, context=None):
        if not hass.states.async_remove(name, context=context):
            raise NameError(f"name '{name}' not defined")

    def state_get(name):
        domain, entity, *attribute = name.split(".")
        found = state(f"{domain}.{entity}")
        if not attribute:
            return found.state
        if attribute[0] not in found.attributes:
            raise AttributeError(f"state '{found.entity_id}' has no attribute '{attribute[0]}'")
        return found.attributes[attribute[0]]

    def state_exist(name):
        try:
            state_get(name)
        except (NameError, AttributeError):
            return False
        return True

    def state_getattr(name):
        return dict(state(name).attributes) if hass.states.get(name) else None

    @on_loop
    async def event_fire(event_type, context=None, **data):
        hass.bus.async_fire(event_type, data, context=context)

    @on_loop
    async def service_call(domain, name, context=None, **data):
        options = {k: data.pop(k) for k in ("blocking", "return_response") if k in data}
        if options.get("return_response"):
            options.setdefault("blocking", True)
        return await hass.services.async_call(domain, name, data, context=context, **options)

    def notify(**data):
        """Call the service from any thread; pyscript waits for it."""
        hass.create_task(hass.services.async_call("persistent_notification", "create", data))

    @on_loop
    async def task_create(function, *args, **kwargs):
        async def run():
            try:
                result = function(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result
            except Exception:
                logger.exception("Exception in the task %s", function.__name__)

        return hass.loop.create_task(run())

    async def task_sleep(seconds):
        await asyncio.sleep(float(seconds))

    async def task_executor(function, *args, **kwargs):
        if inspect.iscoroutinefunction(function) or not callable(function):
            raise TypeError(f"function {function} is not callable by task.executor")
        return await hass.async_add_executor_job(functools.partial(function, **kwargs), *args)

    names = {name: _missing_decorator(name) for name in _MISSING} | {
        "service": service,
        "time_trigger": time_trigger,
        "pyscript_compile": _compiled,
        "state": _Names(
            _group="state",
            set=state_set,
            get=state_get,
            delete=state_delete,
            exist=state_exist,
            getattr=state_getattr,
        ),
        "event": _Names(_group="event", fire=event_fire),
        "task": _Names(_group="task", create=task_create, sleep=task_sleep, executor=task_executor),
        "log": _Names(
            _group="log",
            debug=logger.debug,
            info=logger.info,
            warning=logger.warning,
            error=logger.error,
        ),
        "pyscript": _Names(_group="pyscript"),
        "persistent_notification": _Names(_group="persistent_notification", create=notify),
    }
    service.call = service_call
    service.has_service = hass.services.has_service
    if app_config:
        names["pyscript"].app_config = dict(app_config)
    return vars(builtins) | names


def _compiled(function: FunctionType) -> FunctionType:
    """Return the function without pyscript's names, which compiled code does not see."""
    if not isinstance(function, FunctionType):
        raise TypeError("@pyscript_compile takes a function")
    names = function.__globals__
    scripted, names["__builtins__"] = names["__builtins__"], builtins
    try:
        plain = FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, function.__closure__
        )
    finally:
        names["__builtins__"] = scripted
    plain.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(plain, function, updated=("__dict__",))
