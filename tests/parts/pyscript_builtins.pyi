# What pyscript gives to the files that it runs, beside Python's builtins.
from collections.abc import Callable as _Callable
from typing import Any as _Any
from typing import Protocol as _Protocol

def pyscript_compile[F: _Callable[..., object]](function: F) -> F: ...
def service[F: _Callable[..., object]](*names: str, supports_response: str = ...) -> _Callable[[F], F]: ...
def time_trigger[F: _Callable[..., object]](*moments: str) -> _Callable[[F], F]: ...

class _PersistentNotification(_Protocol):
    def create(self, *, notification_id: str, title: str, message: str) -> None: ...

class _Pyscript(_Protocol):
    app_config: dict[str, _Any]

persistent_notification: _PersistentNotification
pyscript: _Pyscript
