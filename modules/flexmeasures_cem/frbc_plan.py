"""From a wanted power per interval to what a device under fill rate based control is told, and when.

Interval by interval the operation mode and factor are chosen whose power comes nearest to the wanted one
at the fill level expected then. Modes are reached by listed transitions, past the timers that block them;
the fill level is simulated along, and kept within the storage's range. Where operation modes have steps,
what one interval lacks the next ones make up for. Where a target would be missed, more is charged before.

Moments are seconds since 1970, power is W of electricity, consumption positive.
"""

import math
import time
from bisect import bisect_right
from dataclasses import dataclass, field, replace

import flexmeasures_cem.errors as errors
import flexmeasures_cem.frbc_device as devices
import flexmeasures_cem.transitions as transitions

HAIR = 1e-4
"""Which part of the storage's range counts as nothing."""
MINUTE = 60.0
MOST_PARTS = 6
"""Into how many parts an interval is cut at most, where the storage is full or empty within it."""
MOST_CORRECTIONS = 12
"""How often a plan is corrected at most, to meet targets."""
SAME_POWER = 0.01
"""Powers that differ by less than this part of the greatest count as the same."""
SAME_FACTOR = 0.005
LONGEST_SECONDS = 5.0
"""How long may be reckoned for one plan."""
LONGEST_STUCK = 86_400.0
"""How far ahead is looked where a mode cannot be left (s)."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Condition:
        """What a device is at a moment: its fill level, and each actuator's Active by its id."""

        moment: float
        level: float
        actuators: dict

    @dataclass(frozen=True)
    class Target:
        """The fill level that is wanted in a time, and the worst that is expected.

        `lack` is how far it is missed: at the worst, and in the mean of the time.
        """

        start: float
        end: float
        lowest: float
        highest: float
        reached: float
        moment: float
        lack: float

    @dataclass
    class Plan:
        """Changes in order, what is expected of the device (pieces as a Run has them), and missed targets.

        `starts` is when each piece starts. After `end` the device stays at rest.
        """

        start: float
        end: float
        changes: list[transitions.Change]
        pieces: list[tuple[float, float, float, float, float]]
        starts: list[float]
        missed: list[Target]

    @dataclass
    class Choice:
        """A way to spend an interval, or its first part until `until`, for one actuator.

        `mean` is its power, `badness` how far the fill level leaves its range, `restless` how fast the mode
        could move the fill level, `stuck` until when it cannot be left.
        """

        line: list
        steps: list
        until: float
        mean: float
        badness: float
        cost: float
        active: transitions.Active
        restless: float = 0.0
        mode: object = None
        stuck: float = 0.0

    @dataclass
    class Course:
        """A plan in the making: where it has come to, what was found on the way."""

        condition: Condition
        changes: list = field(default_factory=list)
        pieces: list = field(default_factory=list)
        owed: float = 0.0

    return Condition, Target, Plan, Choice, Course


Condition, Target, Plan, Choice, Course = records()


@pyscript_compile
def follow(device, condition, wanted, prices=None, rooms=None):
    """Return the Plan that comes nearest to `wanted`: (start, end, power (W)) of each interval, in order.

    The first interval starts when the first instruction can be executed, not before the condition's
    moment. `prices` has one (currency per energy) for each interval: what is charged on top for a
    target is charged when that is cheapest, or else as late as can be. `rooms` has the least and the
    greatest power (W) that the site's limit allows in each interval, where it has one.
    """
    rooms = rooms or [(-math.inf, math.inf)] * len(wanted)
    powers = [power for _start, _end, power in wanted]
    deadline, best = time.monotonic() + LONGEST_SECONDS, None
    for correction in range(MOST_CORRECTIONS):
        try:
            plan = walk(device, condition, wanted, powers, rooms, deadline)
        except errors.NotPlannable:
            if best is None:
                raise
            break
        missed = sum(each.lack for each in plan.missed)
        if best is None or missed < best[0] - HAIR * (device.top - device.bottom):
            best = missed, plan
        bounds = [(max(-device.least, least), min(device.most, most)) for least, most in rooms]
        surplus = 1.02 + correction / 4
        if not correct(device, plan, wanted, powers, bounds, prices, surplus):
            break
    return best[1]


@pyscript_compile
def walk(device, condition, wanted, powers, rooms, deadline):
    """Return the Plan for powers, without corrections; raise NotPlannable where that takes too long."""
    begin, end = wanted[0][0], wanted[-1][1]
    course = Course(condition)
    lines = [as_it_is(each, condition) for each in device.actuators]
    advance(device, course, lines, begin)
    for (start, until, _power), power, room in zip(wanted, powers, rooms, strict=True):
        if time.monotonic() > deadline:
            raise errors.NotPlannable("its operation modes are too many to be planned in time")
        length = until - start
        energy = within(room, power + course.owed / length) * length
        used = spend(device, course, until, energy, room)
        owed = energy - used
        course.owed = owed if abs(owed) <= 0.501 * device.step * length else 0.0
    course.owed = 0.0
    rest(device, course, end)
    plan = Plan(condition.moment, end, tidy(device, condition, course.changes), course.pieces, [], [])
    plan.starts = [piece[0] for piece in plan.pieces]
    plan.missed = missed_targets(device, plan)
    return plan


@pyscript_compile
def within(room, power):
    """Return the power (W) that comes nearest, of those that a room allows, which always allows none."""
    return min(max(power, min(room[0], 0.0)), max(room[1], 0.0))


@pyscript_compile
def as_it_is(actuator, condition):
    """Return the Settings of an actuator that is told nothing more; a transition under way is finished."""
    active = condition.actuators[actuator.id]
    mode = actuator.modes.get(active.mode)
    line = [
        devices.Setting(condition.moment, mode if active.ready <= condition.moment else None, active.factor)
    ]
    if mode and active.ready > condition.moment:
        line.append(devices.Setting(active.ready, mode, active.factor))
    return line


@pyscript_compile
def advance(device, course, lines, until):
    """Let time pass until a moment, with a timeline for each actuator; return the energy (J)."""
    now = course.condition
    run = devices.run(device, now.level, lines, now.moment, until)
    course.pieces += run.pieces
    now = replace(now, moment=until, level=run.level)
    course.condition = now
    return run.energy


@pyscript_compile
def spend(device, course, until, energy, room):
    """Spend an interval so that its electric energy (J) comes near to what is wanted; return what it is."""
    used = 0.0
    for part in range(MOST_PARTS):
        now = course.condition
        if until - now.moment < 1e-6:
            break
        used += spend_part(device, course, until, energy - used, room, part + 1 < MOST_PARTS)
    return used


@pyscript_compile
def spend_part(device, course, until, energy, room, may_part):
    """Choose for each actuator, and let time pass until the first of them wants to choose again."""
    now = course.condition
    want = within(room, energy / (until - now.moment))
    taken, left, end = [], want, until
    for place, actuator in enumerate(device.actuators):
        given = [*taken, *held_up(device, device.actuators[place + 1 :], now, until)]
        power = max(left, 0.0) if want >= 0 else min(left, 0.0)
        choice = choose(device, actuator, now, until, power, given, room, may_part)
        taken.append(choice)
        left -= choice.mean
        room = room[0] - choice.mean, room[1] - choice.mean
        end = min(end, choice.until)
    for actuator, choice in zip(device.actuators, taken, strict=True):
        settle(course, actuator, choice, end)
    return advance(device, course, [choice.line for choice in taken], end)


@pyscript_compile
def held_up(device, actuators, now, until):
    """Return what those do meanwhile that cannot be told anything yet: a timer blocks their way out."""
    found = []
    for actuator in actuators:
        active = now.actuators[actuator.id]
        mode = actuator.modes.get(active.mode)
        stuck = stuck_until(actuator, mode, active, now.moment, now.level) if mode else now.moment
        if stuck > now.moment:
            mild = replace(active, factor=devices.mildest(mode, now.level))
            line = as_it_is(actuator, replace(now, actuators={actuator.id: mild}))
            if stuck < until:
                line.append(devices.Setting(stuck, None, 0.0))
            found.append(Choice(line, [], until, 0.0, 0.0, 0.0, active, mode=mode, stuck=stuck))
    return found


@pyscript_compile
def settle(course, actuator, choice, end):
    """Take note of what an actuator is told until `end`."""
    now = course.condition
    for moment, mode_id, factor, active in choice.steps:
        if moment < end:
            power = devices.power_of(devices.element_at(actuator.modes[mode_id], now.level), factor)
            course.changes.append(transitions.Change(moment, actuator.id, mode_id, factor, power, active))
            now = replace(now, actuators=now.actuators | {actuator.id: active})
    course.condition = now


@pyscript_compile
def choose(device, actuator, now, until, power, others, room, may_part):
    """Return the Choice whose mean power comes nearest, of those that keep the fill level in its range.

    Those outside the site's limit come last. Of those that come as near, the cheapest to run is taken, then
    the one with the fewest changes; where there is no power, rather the mode that cannot have any.
    """
    scale = max(device.most, device.least, 1.0)
    best = None
    for choice in choices(device, actuator, now, until, power, others, room, may_part):
        miss = round(abs(choice.mean - power) / (SAME_POWER * scale))
        is_over = abs(choice.mean - within(room, choice.mean)) > SAME_POWER * scale
        is_idle = min(abs(power), abs(choice.mean)) < SAME_POWER * scale
        restless = choice.restless if is_idle else 0.0
        key = choice.badness, is_over, miss, choice.cost, restless, len(choice.steps)
        if best is None or key < best[0]:
            best = key, choice
    return best[1]


@pyscript_compile
def choices(device, actuator, now, until, power, others, room, may_part):
    """Return a Choice, or two, for each mode that an actuator can reach in time, the present one included."""
    active = now.actuators[actuator.id]
    routes = routes_from(actuator, active, now.moment)
    found = []
    for mode_id, route in routes.items():
        mode = actuator.modes.get(mode_id)
        stays = not route.steps
        if mode is None or (route.arrival >= until and not stays):
            continue
        found += ways(device, actuator, now, until, power, others, room, may_part, mode, route)
    return found or [none_at_all(device, actuator, now, until, others)]


@pyscript_compile
def routes_from(actuator, active, moment):
    """Return the routes from what an actuator is in; where that is not known, each mode is at hand."""
    if active.mode is None:
        return {
            each: transitions.Route((transitions.Step(moment, moment, each),), moment, 0.0, active.timers)
            for each in actuator.modes
        }
    moment = max(moment, active.ready)
    return transitions.routes(
        actuator.transitions, actuator.durations, actuator.modes, active.mode, moment, active.timers
    )


@pyscript_compile
def none_at_all(device, actuator, now, until, others):
    """Return the Choice to leave an actuator as it is, since no permitted mode can be reached."""
    active = now.actuators[actuator.id]
    line, lines = as_it_is(actuator, now), [each.line for each in others]
    run = devices.run(device, now.level, [*lines, line], now.moment, until)
    alone = devices.run(device, now.level, lines, now.moment, until)
    mean = (run.energy - alone.energy) / (until - now.moment)
    return Choice(line, [], until, mean, 0.0, 0.0, active)


@pyscript_compile
def ways(device, actuator, now, until, power, others, room, may_part, mode, route):
    """Return the Choices of one mode: its factor for the power, and one that keeps the level in range."""
    tried, found = [], []
    near = devices.element_at(mode, now.level)
    wish = power
    for _try in range(2):
        factor = steady(now.actuators[actuator.id], mode, devices.factor_of(mode, now.level, wish))
        choice, run = tried_out(device, actuator, now, until, power, others, mode, route, factor)
        tried.append(choice)
        lack = power - choice.mean
        time = (until - max(route.arrival, now.moment)) / (until - now.moment)
        if near.powers[0] == near.powers[1] or not time or abs(lack) * time < 1.0:
            break
        wish = within(room, devices.power_of(near, factor) + lack / time)
    choice = min(tried, key=lambda each: abs(each.mean - power))
    found.append(choice)
    if choice.badness:
        factor = choice.active.factor
        found += gentler(device, actuator, now, until, power, others, mode, route, factor)
        if may_part and run.hit is not None and len(found) == 1:
            found += until_full(device, actuator, now, run.hit, power, others, mode, route, factor, until)
    return found


@pyscript_compile
def steady(active, mode, factor):
    """Return the factor that is in force where it does as well."""
    if active.mode == mode.id and abs(active.factor - factor) < SAME_FACTOR:
        return active.factor
    return factor


@pyscript_compile
def gentler(device, actuator, now, until, power, others, mode, route, factor):
    """Return a Choice of the same mode, with the nearest factor that keeps the fill level in range."""
    mild = devices.mildest(mode, now.level)
    choice, _run = tried_out(device, actuator, now, until, power, others, mode, route, mild)
    if choice.badness:
        return []
    good, bad, best = mild, factor, choice
    for _halving in range(10):
        middle = (good + bad) / 2
        choice, _run = tried_out(device, actuator, now, until, power, others, mode, route, middle)
        if choice.badness:
            bad = middle
        else:
            good, best = middle, choice
    return [best]


@pyscript_compile
def until_full(device, actuator, now, hit, power, others, mode, route, factor, until):
    """Return the Choice to run a mode only until the storage is full, or empty."""
    if hit - max(route.arrival, now.moment) < MINUTE:
        return []
    choice, _run = tried_out(device, actuator, now, hit, power, others, mode, route, factor)
    if choice.badness:
        return []
    choice.mean *= (hit - now.moment) / (until - now.moment)
    return [choice]


@pyscript_compile
def tried_out(device, actuator, now, until, power, others, mode, route, factor):
    """Return (Choice, Run) of going to a mode by a route, and staying there until a moment.

    The Choice's badness is how far (in the storage's ranges) the fill level leaves its range, or will do so
    before the mode can be left again.
    """
    active = now.actuators[actuator.id]
    line, steps = timeline(actuator, now, power, mode, route, factor)
    lines = [each.line for each in others]
    run = devices.run(device, now.level, [*lines, line], now.moment, until)
    alone = devices.run(device, now.level, lines, now.moment, until) if others else None
    energy = run.energy - (alone.energy if alone else 0.0)
    worst = max(run.below, run.above)
    after = steps[-1][3] if steps else replace(active, factor=factor)
    stuck = stuck_until(actuator, mode, after, until, run.level)
    bound = [(mode, stuck), *[(each.mode, each.stuck) for each in others]]
    last = min(max(each[1] for each in bound), until + LONGEST_STUCK)
    if last > until:
        still = [stays_until(each, end, until, run.level) for each, end in bound if end > until]
        later = devices.run(device, run.level, still, until, last)
        worst = max(worst, later.below, later.above)
    span = device.top - device.bottom
    badness = worst / span if worst > HAIR * span else 0.0
    hours = (until - now.moment) / 3600
    cost = route.cost + devices.element_at(mode, now.level).cost * hours
    restless = max(abs(each) for each in devices.element_at(mode, now.level).rates)
    mean = energy / (until - now.moment)
    choice = Choice(line, steps, until, mean, round(badness, 6), cost, after, restless, mode, stuck)
    return choice, run


@pyscript_compile
def stays_until(mode, end, moment, level):
    """Return the Settings of a mode that is as mild as can be from a moment on, and is left at the end."""
    mild = devices.Setting(moment, mode, devices.mildest(mode, level))
    return [mild, devices.Setting(end, None, 0.0)]


@pyscript_compile
def timeline(actuator, now, power, mode, route, factor):
    """Return (the actuator's Settings in order, the steps that it is told) of a route to a mode.

    While it waits for a timer, and in modes that it passes through, its power is as near as can be.
    A step is (moment, mode, factor, the Active that follows).
    """
    active = now.actuators[actuator.id]
    present = actuator.modes.get(active.mode)
    line, steps = as_it_is(actuator, now), []
    ready = max(now.moment, active.ready)
    if present and present is not mode and route.steps and route.steps[0].start - ready >= MINUTE:
        meanwhile = devices.factor_of(present, now.level, power)
        if not present.is_fixed and abs(meanwhile - active.factor) >= SAME_FACTOR:
            waits = replace(active, factor=meanwhile, ready=ready)
            steps.append((ready, present.id, meanwhile, waits))
            line.append(devices.Setting(ready, present, meanwhile))
    elif present is mode and not mode.is_fixed and abs(factor - active.factor) >= SAME_FACTOR:
        steps.append((ready, mode.id, factor, replace(active, factor=factor, ready=ready)))
        line.append(devices.Setting(ready, mode, factor))
    timers = active.timers
    at = active.mode
    for step in route.steps:
        passed = actuator.modes[step.to]
        value = factor if passed is mode else devices.factor_of(passed, now.level, power)
        timers = started(actuator, at, step, timers)
        reached = transitions.Active(step.to, value, step.end, timers)
        steps.append((step.start, step.to, value, reached))
        line += [devices.Setting(step.start, None, 0.0), devices.Setting(step.end, passed, value)]
        at = step.to
    return line, steps


@pyscript_compile
def started(actuator, at, step, timers):
    """Return when each timer finishes after a step."""
    for each in actuator.transitions.get(at, ()):
        if each.to == step.to:
            return timers | {timer: step.start + actuator.durations[timer] for timer in each.start_timers}
    return timers


@pyscript_compile
def stuck_until(actuator, mode, active, moment, level):
    """Return until when a mode that moves the fill level cannot be left, from a moment on.

    One that cannot be left at all is taken to end by itself.
    """
    element = devices.element_at(mode, level)
    rate = devices.rate_of(element, devices.mildest(mode, level))
    if not rate:
        return moment
    ends = []
    for mode_id, route in routes_from(actuator, active, moment).items():
        other = actuator.modes.get(mode_id)
        if other and route.steps:
            end = devices.element_at(other, level)
            if devices.rate_of(end, devices.mildest(other, level)) * rate <= 0:
                ends.append(route.steps[0].start)
    return min(ends, default=moment)


@pyscript_compile
def rest(device, course, end):
    """Bring the device to rest after the plan: see `resting`."""
    now = course.condition
    for actuator in device.actuators:
        mode, factor, route = resting(actuator, now)
        if mode is None:
            continue
        _line, steps = timeline(actuator, now, 0.0, mode, route, factor)
        for moment, mode_id, value, active in steps:
            power = devices.power_of(devices.element_at(actuator.modes[mode_id], now.level), value)
            if moment < end + LONGEST_STUCK:
                course.changes.append(
                    transitions.Change(max(moment, end), actuator.id, mode_id, value, power, active)
                )


@pyscript_compile
def resting(actuator, condition):
    """Return (mode, factor, route) of an actuator's safest permitted mode that can be reached.

    It is the one that moves the fill level least, and could not do otherwise; of those, the one of least
    power; of those, the one that it is in. None where no permitted mode can be reached.
    """
    active = condition.actuators[actuator.id]
    best = None
    for mode_id, route in routes_from(actuator, active, condition.moment).items():
        mode = actuator.modes.get(mode_id)
        if mode is None:
            continue
        factor = devices.mildest(mode, condition.level)
        element = devices.element_at(mode, condition.level)
        rates, power = [abs(each) for each in element.rates], abs(devices.power_of(element, factor))
        key = abs(devices.rate_of(element, factor)), max(rates), power, len(route.steps)
        if best is None or key < best[0]:
            best = key, (mode, factor, route)
    return best[1] if best else (None, 0.0, None)


@pyscript_compile
def tidy(device, condition, changes):
    """Return the changes in order, without those that change nothing, one per moment and actuator."""
    kept, last = [], {}
    for actuator in device.actuators:
        active = condition.actuators[actuator.id]
        if active.mode is not None:
            last[actuator.id] = active.mode, active.factor
    for change in sorted(changes, key=lambda each: each.moment):
        told = last.get(change.actuator)
        if told and told[0] == change.mode and abs(told[1] - change.factor) < SAME_FACTOR:
            continue
        last[change.actuator] = change.mode, change.factor
        kept.append(change)
    return kept


@pyscript_compile
def missed_targets(device, plan):
    """Return the targets that a plan does not meet, and where the storage runs dry or over."""
    hair = 1.5 * devices.MARGIN * (device.top - device.bottom)
    found = []
    whole = (plan.start, plan.end, device.bottom, device.top)
    for start, end, lowest, highest in [*device.targets, whole]:
        first, last = max(start, plan.start), min(end, plan.end)
        if first > last or (first == last and end > start):
            continue
        levels = levels_between(plan, first, last)
        low, high = min(levels, key=lambda each: each[1]), max(levels, key=lambda each: each[1])
        lowest, highest = max(lowest, device.bottom), min(highest, device.top)
        worst, reached, moment = max((lowest - low[1], low[1], low[0]), (high[1] - highest, high[1], high[0]))
        if worst > hair:
            lack = worst + mean_lack(plan, first, last, lowest, highest)
            found.append(Target(first, last, lowest, highest, reached, moment, lack))
    return found


@pyscript_compile
def mean_lack(plan, first, last, lowest, highest):
    """Return how far the fill level is outside a range in the mean of some time."""
    total = 0.0
    for start, end, before, after, _power in plan.pieces:
        length = min(end, last) - max(start, first)
        if length > 0:
            level = (before + after) / 2
            total += length * max(lowest - level, level - highest, 0.0)
    return total / (last - first) if last > first else 0.0


@pyscript_compile
def levels_between(plan, first, last):
    """Return (moment, fill level) at a time's start and end, and at each piece's border in between."""
    found = [(first, level_at(plan, first)), (last, level_at(plan, last))]
    for start, _end, level, _after, _power in plan.pieces:
        if first < start < last:
            found.append((start, level))
    return found


@pyscript_compile
def piece_at(plan, moment):
    """Return the piece that a moment is in, or the first, or the last."""
    return plan.pieces[max(0, bisect_right(plan.starts, moment) - 1)]


@pyscript_compile
def level_at(plan, moment):
    """Return the fill level that is expected at a moment."""
    start, end, level, after, _power = piece_at(plan, moment)
    share = min(max((moment - start) / (end - start), 0.0), 1.0)
    return level + share * (after - level)


@pyscript_compile
def power_at(plan, moment):
    """Return the power (W) that is expected at a moment."""
    return piece_at(plan, moment)[4]


@pyscript_compile
def mean_power(plan, start, end):
    """Return the mean power (W) that is expected from one moment to another."""
    energy = sum(piece[4] * max(0.0, min(piece[1], end) - max(piece[0], start)) for piece in plan.pieces)
    return energy / (end - start)


@pyscript_compile
def correct(device, plan, wanted, powers, bounds, prices, surplus):
    """Change the powers so that the first missed target may be met; tell whether there was a way.

    A target that is missed from the start on is met as soon as can be. `surplus` is how much more is added
    than what it takes, for powers that come in steps.
    """
    missed = sorted(plan.missed, key=lambda each: each.moment)
    for target in missed:
        lacks = target.lowest - target.reached
        sign = 1 if lacks > 0 else -1
        amount = abs(lacks) if lacks > 0 else target.reached - target.highest
        worth = [found for each in device.actuators if (found := devices.per_level(device, each, sign))]
        if not worth:
            continue
        energy = sign * amount * worth[0][0] * surplus
        deadline, order = target.moment, latest_or_cheapest(sign, powers, prices)
        if deadline <= wanted[0][0]:
            deadline, order = target.end, earliest
        before = sorted([place for place, each in enumerate(wanted) if each[0] < deadline], key=order)
        if shift(wanted, powers, before, energy, bounds, deadline):
            return True
    return False


@pyscript_compile
def earliest(place):
    """Put first what comes first."""
    return place


@pyscript_compile
def latest_or_cheapest(sign, powers, prices):
    """Put first where the plan charges (or discharges) already, then where it is cheapest, or else latest."""

    def order(place):
        price = sign * prices[place] if prices else 0.0
        return sign * powers[place] <= 0, price, -place

    return order


@pyscript_compile
def shift(wanted, powers, places, energy, bounds, deadline):
    """Add electric energy (J, or take it away) in some intervals, in order; tell whether any was added."""
    sign = 1 if energy > 0 else -1
    left = abs(energy)
    for place in places:
        start, end, _power = wanted[place]
        length = min(end, deadline) - start
        bound = bounds[place][sign > 0]
        room = sign * (bound - powers[place]) * length
        if room <= 1.0:
            continue
        added = min(room, left)
        powers[place] += sign * added / length
        left -= added
        if left <= 1.0:
            break
    return left < abs(energy)
