"""Devices under power profile based control for tests: their messages read, and their plans checked."""

import importlib
import json
import math
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from uuid import uuid4

from hypothesis import strategies as st

from tests.modules.flexmeasures_cem.planning import plan_alone
from tests.parts.s2_messages import example

START = datetime(2026, 3, 2, 10, tzinfo=UTC)
NOW = START.timestamp()
BEGIN = 2.0
MINUTE, QUARTER, HOUR = 60.0, 900.0, 3600.0
DEFINITION, STATUS = "PPBC.PowerProfileDefinition", "PPBC.PowerProfileStatus"


def modules() -> SimpleNamespace:
    """Return the modules under test."""
    names = {
        "ppbc": "flexmeasures_cem.control_types.ppbc.control_type",
        "market": "flexmeasures_cem.market",
        "plans": "flexmeasures_cem.control_types.plans",
        "messages": "flexmeasures_s2.messages",
    }
    found = {name: importlib.import_module(path) for name, path in names.items()}
    return SimpleNamespace(**found | {"ppbc": found["ppbc"].PPBC})


def element(minutes, power, quantity="ELECTRIC.POWER.L1", **others) -> dict:
    """Return an element of so many minutes at a power (W), and at `others`: quantities with _ for the dot."""
    values = {quantity: power} | {name.replace("__", "."): value for name, value in others.items()}
    return {
        "duration": round(minutes * 60_000),
        "power_values": [
            {"value_expected": value, "commodity_quantity": name} for name, value in values.items()
        ],
    }


def sequence(*elements, pause=None, interruptible=False, abnormal=False) -> dict:
    """Return a sequence; `pause` is its max_pause_before in minutes."""
    return {
        "id": str(uuid4()),
        "elements": [each if isinstance(each, dict) else element(*each) for each in elements],
        "is_interruptible": interruptible,
        "abnormal_condition_only": abnormal,
    } | ({} if pause is None else {"max_pause_before": round(pause * 60_000)})


def container(*sequences) -> dict:
    """Return a container of alternative sequences."""
    return {"id": str(uuid4()), "power_sequences": list(sequences)}


def profile(*containers, start=0.0, end=8 * 60) -> dict:
    """Return a PPBC.PowerProfileDefinition; its time is in minutes from the start."""
    return example(
        DEFINITION,
        id=str(uuid4()),
        start_time=(START + timedelta(minutes=start)).isoformat(),
        end_time=(START + timedelta(minutes=end)).isoformat(),
        power_sequences_containers=list(containers),
    )


def status(definition, *told) -> dict:
    """Return a PPBC.PowerProfileStatus of (status, sequence's place, minutes of progress) by container."""
    found = []
    for each, (name, chosen, progress) in zip(definition["power_sequences_containers"], told, strict=True):
        entry = {
            "power_profile_id": definition["id"],
            "sequence_container_id": each["id"],
            "status": name,
        }
        if chosen is not None:
            entry["selected_sequence_id"] = each["power_sequences"][chosen]["id"]
        if progress is not None:
            entry["progress"] = round(progress * 60_000)
        found.append(entry)
    return example(STATUS, sequence_container_status=found)


def memory(m, *definitions, told=None) -> dict:
    """Return what a session remembers of definitions, and of a status."""
    found = {(DEFINITION, each["id"]): m.messages.parse(json.dumps(each)) for each in definitions}
    if told:
        found[STATUS,] = m.messages.parse(json.dumps(told))
    return found


def market(m, prices, length=QUARTER, now=NOW, loads=None, limit=math.inf, feed_in=None, begin=BEGIN) -> list:
    """Return a market from `begin` s after `now` on: the first interval is cut."""
    first = now // length * length
    return [
        m.market.Interval(
            max(first + place * length, now + begin),
            first + (place + 1) * length,
            price,
            price if feed_in is None else feed_in,
            loads[place] if loads else 0.0,
            limit,
            limit,
        )
        for place, price in enumerate(prices)
    ]


def planned(m, definitions, cells, told=None, heard=None, plan=None, now=NOW, tariffs=None):
    """Return (the device, its state, the Plan) for definitions."""
    remembered = memory(m, *definitions, told=told)
    device = m.ppbc.read_device(remembered)
    assert m.ppbc.why_not_plannable(device) is None
    state = m.ppbc.read_state(device, remembered, heard or {}, plan, now)
    return device, state, plan_alone(m.ppbc, device, state, None, cells, tariffs or {})


def courses(plan) -> dict:
    """Return what a plan's instructions come to, by (profile, container): sequence, and [(start, pause)...].

    The last pause is None: it ends by itself.
    """
    found = {}
    for change in plan.changes:
        key = change.profile, change.container
        if change.kind == "ScheduleInstruction":
            assert key not in found
            found[key] = change.sequence, [[change.moment, None]]
        elif change.kind == "StartInterruptionInstruction":
            assert found[key][1][-1][1] is None
            found[key][1][-1][1] = change.moment
        else:
            assert found[key][1][-1][1] is not None
            found[key][1].append([change.moment, None])
    return found


def power_of(values) -> float:
    """Return an element's electric power."""
    return sum(
        each["value_expected"]
        for each in values["power_values"]
        if each["commodity_quantity"].startswith("ELECTRIC")
    )


def run(chosen, spans) -> list[tuple]:
    """Return the pieces (start, end, power) of a sequence that is at work in spans, simulated by itself.

    The last span ends where the sequence does.
    """
    left = [[each["duration"] / 1000, power_of(each)] for each in chosen["elements"]]
    found = []
    for start, end in spans:
        moment = start
        while left and (end is None or moment < end - 1e-6):
            seconds = left[0][0] if end is None else min(left[0][0], end - moment)
            if seconds:
                found.append((moment, moment + seconds, left[0][1]))
            moment += seconds
            left[0][0] -= seconds
            if left[0][0] <= 1e-6:
                left.pop(0)
    assert not left
    return found


def paid(cells, pieces) -> tuple[float, float]:
    """Return (Wh over the limit, cost) of pieces (start, end, power), by arithmetic of its own."""
    over = cost = 0.0
    for start, end, power in pieces:
        for cell in cells:
            hours = (min(end, cell.end) - max(start, cell.start)) / 3600
            if hours > 0:
                before, after = cell.load, cell.load + power
                worth = [
                    each * (cell.consumption_price if each > 0 else cell.production_price) / 1000
                    for each in (before, after)
                ]
                cost += (worth[1] - worth[0]) * hours
                over += max(abs(after) - max(cell.consumption_capacity, abs(before)), 0.0) * hours
    return over, cost


def check(definition, cells, plan, begin=None) -> tuple[float, float]:
    """Check that a plan keeps to what a definition demands, but for its end; return (Wh over, cost)."""
    begin = cells[0].start if begin is None else begin
    found, pieces, last = courses(plan), [], None
    for each in definition["power_sequences_containers"]:
        chosen, spans = found[definition["id"], each["id"]]
        sequences = {one["id"]: one for one in each["power_sequences"]}
        assert not sequences[chosen]["abnormal_condition_only"]
        assert len(spans) == 1 or sequences[chosen]["is_interruptible"]
        assert spans[0][0] >= begin - 1e-3
        for (_start, pause), (resumed, _next) in pairwise(spans):
            assert resumed - pause >= 300 - 1e-3
        if last is not None:
            waited = spans[0][0] - last
            assert -1e-3 <= waited <= sequences[chosen].get("max_pause_before", math.inf) / 1000 + 1e-3
        done = run(sequences[chosen], spans)
        last = done[-1][1] if done else spans[-1][0]
        pieces += done
    return paid(cells, pieces)


@cache
def splits(total, number) -> list[tuple]:
    """Return all ways to give so many minutes to a number of spans, none without any."""
    if number == 1:
        return [(total,)]
    return [(first, *rest) for first in range(5, total, 5) for rest in splits(total - first, number - 1)]


def cheapest(definition, cells, first, pauses=0, step=MINUTE, fee=0.0, slot=5 * MINUTE):
    """Return the least (Wh over, cost with fees) in time, by trying starts, or None.

    A start is the earliest one, `first`, or when the container before ends, or at the clock's moments that
    are a `step` apart. Pauses, as many as `pauses`, begin and end at moments that are a `slot` apart; a run
    that has them starts on a grid of five minutes.
    """
    end = datetime.fromisoformat(definition["end_time"]).timestamp()
    containers = definition["power_sequences_containers"]
    best = {(first, True): (0.0, 0.0)}
    for each in containers:
        reached = {}
        for (moment, is_first), (over, cost) in best.items():
            for one in each["power_sequences"]:
                if one["abnormal_condition_only"]:
                    continue
                seconds = sum(part["duration"] for part in one["elements"]) / 1000
                most = math.inf if is_first else one.get("max_pause_before", math.inf) / 1000
                until = min(moment + most, end - seconds) + 1e-6
                for start in starts(moment, until, step):
                    for spans in ways(one, start, seconds, end, pauses, slot):
                        pieces = run(one, spans)
                        more = paid(cells, pieces)
                        last = pieces[-1][1], False
                        worth = over + more[0], cost + more[1] + fee * (len(spans) - 1)
                        if rounded(worth) < rounded(reached.get(last, (math.inf, math.inf))):
                            reached[last] = worth
        best = reached
    return min(best.values(), key=rounded, default=None)


def starts(first, until, step):
    """Yield a moment, and those of the clock that are a step apart, until another."""
    if first <= until:
        yield first
    start = (first // step + 1) * step
    while start <= until:
        yield start
        start += step


def rounded(worth):
    """Return (Wh over, cost) without noise."""
    return round(worth[0], 3), round(worth[1], 9)


def ways(one, start, seconds, end, pauses, slot):
    """Return the spans with which a sequence may run from a start."""
    yield [(start, None)]
    if not one["is_interruptible"] or start % 300:
        return
    total = round(seconds / 60)
    for number in range(2, pauses + 2):
        for split in splits(total, number):
            for gaps in _gaps(number - 1, int((end - start - seconds) // 300)):
                spans, moment = [], start
                for part, gap in zip(split, [*gaps, 0], strict=True):
                    spans.append((moment, moment + part * 60))
                    moment += part * 60 + gap * 300
                inner = [each for span in spans for each in span][1:-1]
                if all(each % slot == 0 for each in inner):
                    yield [*spans[:-1], (spans[-1][0], None)]


def _gaps(number, most):
    """Return all lengths of so many pauses that take no more than a time in all."""
    if number == 0:
        yield ()
        return
    for first in range(1, most + 1):
        for rest in _gaps(number - 1, most - first):
            yield (first, *rest)


@st.composite
def random_definitions(draw, interruptible=False):
    """Draw a definition with whole minutes: containers, alternatives, pauses; its end can be kept."""
    containers = []
    shortest = 0
    for _ in range(draw(st.integers(1, 1 if interruptible else 3))):
        sequences = []
        for number in range(draw(st.integers(1, 1 if interruptible else 2))):
            unit = 5 if interruptible else 1
            elements = [
                (draw(st.integers(1, 4)) * (unit if interruptible else draw(st.integers(1, 4))), draw(POWERS))
                for _ in range(draw(st.integers(1, 3)))
            ]
            pause = draw(st.sampled_from([None, 0, 1, 7, 20]))
            abnormal = number > 0 and draw(st.integers(0, 4)) == 0
            sequences.append(sequence(*elements, pause=pause, interruptible=interruptible, abnormal=abnormal))
        containers.append(container(*sequences))
        shortest += min(
            sum(part["duration"] for part in each["elements"]) // 60_000
            for each in sequences
            if not each["abnormal_condition_only"]
        )
    slack = draw(st.integers(0, 60 if interruptible else 90))
    start = draw(st.sampled_from([-60, 0, 5, 13] if not interruptible else [0, 5]))
    return profile(*containers, start=start, end=max(start, 1) + shortest + slack)


POWERS = st.sampled_from([0, 100, 300, 800, 1500, 2200, -500])
