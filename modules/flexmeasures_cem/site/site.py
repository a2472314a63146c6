"""Who is controlled at a site, how its plan is made, and when the next one is due.

Moments are seconds since 1970.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import flexmeasures_api.schedule as schedules
import flexmeasures_cem.cem as cems
import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.errors as errors
import flexmeasures_cem.market as markets
import flexmeasures_s2.session as sessions
from flexmeasures_api.errors import FlexMeasuresError
from flexmeasures_api.prices import PriceInterval
from flexmeasures_api.rate_limit import RateLimit

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
SETTLING_SECONDS = 1.0
"""How long other messages are waited for, before a change is planned."""
FIRST_SETTLING_SECONDS = 0.2
"""How long other messages are waited for, before the first plan of a device is made."""
ROLLING_SECONDS = 900.0
"""How long a plan is used before it is made anew, at most."""
BETWEEN_GIVEN_SECONDS = 120.0
"""How long FlexMeasures is not asked again only because of devices that it does not plan."""
ANSWER_SECONDS = 60.0
"""How long schedules are waited for, before devices are planned anew without."""
FIRST_PAUSE_SECONDS = 30.0
"""How long is waited after a first failure."""
LEAD_SECONDS = 60.0
"""How long before its time an instruction is sent, where nothing else is configured."""
REFUSED_SECONDS = 3600.0
"""How long who is refused by FlexMeasures is left out."""


@pyscript_compile
def log_fault(what: str, error: BaseException | None) -> None:
    """Log that work failed unexpectedly."""
    if error is not None:
        LOGGER.error("The %s failed unexpectedly: please report this", what, exc_info=error)


@pyscript_compile
def run(what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    """Return the task of some work."""
    return asyncio.get_running_loop().create_task(work(), name=f"flexmeasures {what}")


@pyscript_compile
def no_own_lead(_resource: Any) -> float | None:
    """Return None: the site's instruction_lead holds for all."""
    return None


@pyscript_compile
def no_cycle_cost(_resource: Any) -> float:
    """Return 0: no storage has a cost of wear."""
    return 0.0


@pyscript_compile
def ignore(*_given: Any) -> None:
    """Do nothing: nobody is to be told."""


@dataclass
class _PlanningSensors:
    """What a Resource Manager is planned with: its power sensor's number and resolution (s).

    `soc_sensor` gets the planned state of charge; `energy` is what one unit of fill level is
    configured to be worth (J).
    """

    power_sensor: int
    resolution: float
    soc_sensor: int | None
    energy: float | None


PlanningSensors = _PlanningSensors


@dataclass(frozen=True)
class _Window:
    """The time that FlexMeasures plans: from `start` to `end` in steps (s).

    `left` is which part of the first step is left, `share` how much of what the site may consume each
    device has (W), and `with_modes` tells whether operation modes may be asked for.
    """

    start: float
    step: float
    end: float
    left: float
    share: float
    with_modes: bool


Window = _Window


@dataclass(eq=False, repr=False)
class _Controlled:
    """A Resource Manager under a control type that can be planned, for as long as that is active.

    `version` counts what changed its problem, `why` says what did last. `plan` is in force, and `device`
    what it was made for, at `planned_version`; `is_outdated` has it made anew for the same problem.
    `schedule` has the powers (start, end, W) that FlexMeasures has for it, of `asked_version`, or None;
    a plan without one, or without prices, `is_fallback`. `is_asked` tells whether FlexMeasures plans
    it, as far as that is known, and `awaits_schedule` that a caller waits for that. `worth` is what a
    unit of its fill level is taken to be worth. `sent` maps the ids of instructions that were sent to
    their Changes, `current` is the last that is due. `heard` tells when each actuator told its status.
    `refused` is why FlexMeasures cannot plan it, for `refused_version` and until `refused_until`;
    `unfit` why nobody can, at `unfit_version`. `since` is when its control began, `manual` maps the ids
    of a user's instructions to when they begin and end. `asked` is the device and state that a plan is
    being made for, `dropped` (`schedules_dropped`) how many plans (schedules) in a row came
    too late. `broken_at` is when an instruction
    was rejected, `departures` has, by message_type, actuator and timer, what was said last that departs
    from the plan, how often, and until when that is left at it. `was_warned` tells whether a missing
    price was told. Until `leaving_until` another control type is being selected. `replanned` wakes the
    task that sends the plan's instructions when they are due; `obeys_at_once` tells that the device
    executes one when it gets it, not at its execution_time. `modes` has the mode that each actuator told
    last. `kept` is the plan that outlives the connection; a device that `is_returning` goes on with that,
    which it `is_resuming` once it has told of itself. What it tells counts from `settles_at` on.
    `without_plan` is what it would do without one, computed for `without_version` (see costs).
    `round_at` tells plans that were made together, since the connection couples their devices.
    """

    resource: cems.Resource
    session: sessions.Session
    type: base.ControlType
    version: int = 0
    why: str | None = None
    plan: Any = None
    device: Any = None
    is_fallback: bool = False
    worth: Any = None
    planned_version: int = -1
    is_outdated: bool = False
    schedule: list[tuple[float, float, float]] | None = None
    asked_version: int = -1
    awaits_schedule: bool = False
    sent: dict[str, Any] = field(default_factory=dict)
    current: str | None = None
    heard: dict[Any, float] = field(default_factory=dict)
    refused: str | None = None
    refused_version: int = -1
    refused_until: float = 0.0
    unfit: str | None = None
    unfit_version: int = -1
    since: float = 0.0
    manual: dict[str, tuple[float, float]] = field(default_factory=dict)
    asked: tuple[Any, Any] | None = None
    is_asked: bool | None = None
    dropped: int = 0
    schedules_dropped: int = 0
    broken_at: float | None = None
    departures: dict[Any, tuple[Any, int, float]] = field(default_factory=dict)
    leaving_until: float = 0.0
    was_warned: bool = False
    strange_power: float | None = None
    obeys_at_once: bool = False
    modes: dict[str | None, str] = field(default_factory=dict)
    kept: Any = None
    is_returning: bool = False
    is_resuming: bool = False
    settles_at: float = 0.0
    replanned: asyncio.Event = field(default_factory=asyncio.Event)
    without_plan: Any = None
    without_version: int = -1
    round_at: float = 0.0
    waiting: list[asyncio.Future[Any]] = field(default_factory=list)
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)

    @pyscript_compile
    def fail_waiters(self, error: Exception) -> None:
        """Tell those who wait for a plan that there will be none."""
        for waiting in self.waiting:
            if not waiting.done():
                waiting.set_exception(error)
        self.waiting.clear()


Controlled = _Controlled


@dataclass(repr=False)
class _Site:
    """Who is controlled, by resource_id, and how the site's plan is made.

    `solve(problems, window, loads, limits)` (async) returns a Schedule by power sensor, and may raise a
    FlexMeasuresError. `loads` maps the power sensors of other devices to their powers (start, end, W), or
    to None where the server has them; `limits` are the capacities of the
    connection (start, end, W) that vary, by their names.
    `prices(start, end)` (async) returns flexmeasures_api.prices.PriceIntervals, in order and
    without a gap; `tariffs` are those of other commodities. `means(resource)` returns its PlanningSensors,
    or None while they are not known, `power(resource)` the power that it measures (W), or None. `lead` is how
    long before its time an instruction is sent (s), math.inf for as soon as it is planned, and
    `own_lead(resource)` the same for one Resource Manager, or None. `cycle_cost(resource)` is what a kWh
    through its storage costs in wear (currency). `own(moment)` is what the app's own device is to have
    (W). `shown(resource)` is called when a plan or instruction has
    changed, `told(resource, text)` with what keeps it from being planned, or None; `unfit(resource,
    session, control_type)` when what it told cannot be planned under that, and `failed(error)` and
    `succeeded()` with what became of the site's plan. `horizon` is how long a plan is (s), `connection`
    the site's to the grid, `settling` how long is waited for further changes (s), `rolling` how long a
    plan is used at most (s), `due` when the next one is to be made, and `renew_at` when all are made
    anew, as they were at `renewed_at`. `queue` has those whose turn to be planned is still to come, in a
    round that began at `round_at`, `solver` the threads in which they are planned.
    `asking_due` is when FlexMeasures is to be asked, `not_before` when it may be at the earliest;
    `is_urgent` has it asked at once. `is_planning` and `is_asking` tell what is being done.
    `made` has when FlexMeasures was asked lately, `rate_limit` how often it may be, as it told.
    `others` are the Resource Managers that are connected and not controlled; `unusable` has until when
    the sensors of some are left out, since they cannot be posted to. `kept` has the KeptPlans of those
    whose connection is over; `keep(resource)` is called when a plan is to be saved, and `writing` has the
    tasks that write one. `fault(what, error)` is called where work failed unexpectedly, and with None
    once it does not any more; `run(what, work)` returns the task of work that goes on for ever, and is to
    begin again should it end all the same. `costs` are the SiteCosts, `has_new_plans` has them computed
    anew, and `costs_changed()` is called then; `why` says why the last plan was made.
    """

    solve: Callable[..., Awaitable[dict[int, schedules.Schedule]]]
    prices: Callable[[float, float], Awaitable[list[PriceInterval]]]
    means: Callable[[cems.Resource], PlanningSensors | None]
    power: Callable[[cems.Resource], float | None]
    own: Callable[[float], float]
    shown: Callable[[cems.Resource], None]
    told: Callable[[cems.Resource, str | None], None]
    unfit: Callable[[cems.Resource, sessions.Session, str], None]
    failed: Callable[[FlexMeasuresError], None]
    succeeded: Callable[[], None]
    horizon: float
    connection: markets.Connection = field(default_factory=markets.Connection)
    lead: float = LEAD_SECONDS
    own_lead: Callable[[cems.Resource], float | None] = no_own_lead
    cycle_cost: Callable[[cems.Resource], float] = no_cycle_cost
    now: Callable[[], float] = time.time
    settling: float = SETTLING_SECONDS
    rolling: float = ROLLING_SECONDS
    tariffs: dict[str, float] = field(default_factory=dict)
    keep: Callable[[cems.Resource], None] = ignore
    fault: Callable[[str, BaseException | None], None] = log_fault
    run: Callable[[str, Callable[[], Coroutine[Any, Any, None]]], asyncio.Task[None]] = run
    kept: dict[str, Any] = field(default_factory=dict)
    writing: set[asyncio.Task[None]] = field(default_factory=set)
    others: dict[str, cems.Resource] = field(default_factory=dict)
    unusable: dict[int, float] = field(default_factory=dict)
    controlled: dict[str, Controlled] = field(default_factory=dict)
    due: float | None = None
    queue: list[Controlled] = field(default_factory=list)
    round_at: float = 0.0
    solver: ThreadPoolExecutor | None = None
    renew_at: float = math.inf
    renewed_at: float = 0.0
    asking_due: float | None = None
    is_urgent: bool = False
    is_planning: bool = False
    is_asking: bool = False
    urged: asyncio.Event = field(default_factory=asyncio.Event)
    asking_urged: asyncio.Event = field(default_factory=asyncio.Event)
    made: deque[float] = field(default_factory=deque)
    rate_limit: RateLimit = field(default_factory=RateLimit)
    known_prices: list[PriceInterval] | None = None
    prices_due: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    splits: int = 0
    not_before: float = 0.0
    task: asyncio.Task[None] | None = None
    asking: asyncio.Task[None] | None = None
    comparing: asyncio.Task[None] | None = None
    costs: Any = None
    why: str | None = None
    has_new_plans: asyncio.Event = field(default_factory=asyncio.Event)
    costs_changed: Callable[[], None] = ignore

    @pyscript_compile
    def controlled_of(self, resource: cems.Resource) -> Controlled | None:
        """Return what is controlled of a resource in its present session, or None."""
        found = self.controlled.get(resource.resource_id)
        return found if found and found.session is resource.session else None

    @pyscript_compile
    def is_gone(self, controlled: Controlled) -> bool:
        """Tell whether a Resource Manager is not connected, or not controlled like this, any more."""
        is_ended = controlled.session.stage == sessions.ENDED
        return is_ended or self.controlled_of(controlled.resource) is not controlled

    @pyscript_compile
    def request_replan(self, controlled: Controlled, why: str, pause: float | None = None) -> None:
        """Plan a device anew in a moment, since its state has changed, and ask FlexMeasures about it.

        FlexMeasures is told of a device that it does not plan once that has its plan.
        """
        controlled.version += 1
        controlled.why = why
        pause = self.settling if pause is None else pause
        wait = pause if controlled.plan else min(pause, FIRST_SETTLING_SECONDS)
        self.plan_no_later_than(self.now() + wait)
        if controlled.is_asked is not False:
            self.ask_no_later_than(self.now() + pause)

    @pyscript_compile
    def plan_no_later_than(self, moment: float) -> None:
        """Make the next plan no later than at a moment.

        The planner is woken only where that is sooner than before, or due by now since the clock was set.
        """
        if self.due is None or moment < self.due:
            self.due = moment
            self.urged.set()
        elif self.due <= self.now():
            self.urged.set()

    @pyscript_compile
    def ask_no_later_than(self, moment: float) -> None:
        """Ask FlexMeasures no later than at a moment, if it may be asked then."""
        if self.asking_due is None or moment < self.asking_due:
            self.asking_due = moment
            self.asking_urged.set()
        elif self.asking_due <= self.now():
            self.asking_urged.set()

    @pyscript_compile
    def replan_all(self, pause: float | None = None) -> None:
        """Plan all devices anew in a moment, since what they are planned with is another."""
        moment = self.now() + (self.settling if pause is None else pause)
        self.renew_at = min(self.renew_at, moment)
        self.plan_no_later_than(moment)

    @pyscript_compile
    def may_ask_of_others_at(self) -> float:
        """Return from when on FlexMeasures may be asked only because of devices that it does not plan."""
        return self.made[-1] + BETWEEN_GIVEN_SECONDS if self.made else 0.0

    @pyscript_compile
    def replans_all_at(self, now: float) -> float:
        """Return when all devices are planned anew: in the next interval, once its schedules have come.

        FlexMeasures is not waited for long, nor where it failed before.
        """
        is_waiting = self.pause <= FIRST_PAUSE_SECONDS and any(
            controlled.schedule for controlled in self.controlled.values()
        )
        return next_boundary(now, self.rolling) + (ANSWER_SECONDS if is_waiting else 0.0)

    @pyscript_compile
    def replan_all_once(self) -> None:
        """Plan all devices anew now, unless that was done in this interval."""
        now = self.now()
        if self.renewed_at < now // self.rolling * self.rolling:
            self.replan_all(0.0)

    @pyscript_compile
    def refuse(self, controlled: Controlled, version: int, why: str, error: Any = None) -> None:
        """Ask FlexMeasures no more about a Resource Manager, until its state is another, or for an hour."""
        if controlled.version != version:
            return
        controlled.refused, controlled.refused_version, controlled.asked_version = why, version, version
        controlled.refused_until = self.now() + REFUSED_SECONDS
        controlled.schedule, controlled.is_outdated, controlled.awaits_schedule = None, True, False
        self.plan_no_later_than(self.now())
        self.ask_no_later_than(controlled.refused_until)
        self.told(controlled.resource, f"FlexMeasures cannot plan it: {why}")
        failure = errors.NotPlannable(f"{controlled.resource.name} cannot be planned: {why}")
        failure.__cause__ = error
        controlled.fail_waiters(failure)


Site = _Site


@pyscript_compile
def next_boundary(now: float, step: float) -> float:
    """Return when the next interval begins, and a moment more."""
    return now // step * step + step + 0.5
