# What pyscript gives to the files that it runs, beside Python's builtins.
from typing import Any as _Any, TypeVar as _TypeVar, Protocol as _Protocol
from collections.abc import Callable as _Callable

_Function = _TypeVar("_Function", bound=_Callable[..., object])

def pyscript_compile(function: _Function) -> _Function: ...
def service(*names: str, supports_response: str = ...) -> _Callable[[_Function], _Function]: ...
def time_trigger(*moments: str) -> _Callable[[_Function], _Function]: ...

class _PersistentNotification(_Protocol):
    def create(self, *, notification_id: str, title: str, message: str) -> None: ...

class _Pyscript(_Protocol):
    app_config: dict[str, _Any]

persistent_notification: _PersistentNotification
pyscript: _Pyscript
