"""The cheapest schedules of a site's storages and flows, as FlexMeasures reckons them, without a server.

Moments are seconds since 1970, powers W, energies Wh, prices currency per kWh, consumption positive. Within
the program powers are kW and energies kWh, so that its numbers are of one order.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

import highspy
import numpy as np

import flexmeasures_api.errors as errors
import flexmeasures_api.flexible_devices as storages
import flexmeasures_api.prices as prices
import flexmeasures_api.schedule as schedules
import flexmeasures_cem.site as sites

BREACH, SITE_BREACH = 1000.0, 10_000.0
"""What a kWh of a wish costs that is not fulfilled, at each step, and a kW beyond the site's limit."""
PREFERENCE = 1e-4
"""Which part of the greatest difference of price a kWh is worth for being stored a day earlier."""
GAP = 1e-6
"""By which part a plan with choices may cost more than the best one."""

Spans = Iterable[tuple[float, float, float]]
"""Powers (start, end, W), in order."""
Prices = Callable[[float, float], Awaitable[list[prices.PriceInterval]]]
"""Returns the prices from a start to an end in order, as site.Site has it."""
Device = storages.Storage | storages.Flow


def priced(start: float, end: float, consumption: float, production: float) -> prices.PriceInterval:
    """Return known prices (currency per kWh) of some time."""
    return prices.PriceInterval(start=start, end=end, consumption=consumption, production=production)


class Optimiser:
    """Answers a site's questions; `limit` is the greatest power of the site (W)."""

    def __init__(self, prices_of: Prices, limit: float | None = None) -> None:
        self.prices = prices_of
        self.limit = math.inf if limit is None else limit

    async def solve(
        self,
        devices: list[Device],
        window: sites.Window,
        loads: Mapping[int, Spans | None],
        limits: Mapping[str, Spans],
    ) -> dict[int, schedules.Schedule]:
        """Return the Schedule of each power sensor, as site.Site has it; raise Infeasible.

        A load that only a server has (None) counts as nothing.
        """
        known = await self.prices(window.start, window.end)
        return await asyncio.to_thread(self._solved, devices, window, loads, limits, known)

    def _solved(self, devices, window, loads, limits, known) -> dict[int, schedules.Schedule]:
        edges = np.arange(round((window.end - window.start) / window.step) + 1) * window.step + window.start
        site = Site(edges, known)
        powers = {each.power_sensor: site.add(each) for each in devices}
        given = sum(mean_powers(each, edges) for each in loads.values() if each is not None)
        varying = limits.get("power_capacity")
        most = mean_powers(varying, edges) if varying else self.limit
        site.meet(given / 1000, most / 1000)
        values = site.program.solved()
        begin, step = datetime.fromtimestamp(window.start, UTC), timedelta(seconds=window.step)

        def schedule(up: np.ndarray, down: np.ndarray) -> schedules.Schedule:
            watts = np.round(1000 * (values[up] - values[down]), 3) + 0.0
            return schedules.Schedule(
                start=begin,
                resolution=step,
                unit="W",
                values=watts.tolist(),
                soc_unit="Wh",
                soc=None,
                missed_targets=[],
                cost=None,
                updated_at=begin,
            )

        return {sensor: schedule(*columns) for sensor, columns in powers.items()}


class Program:
    """A linear program in the making, of columns (variables) and rows (constraints), each with a number."""

    def __init__(self) -> None:
        self.columns: list[tuple[float, float, float, bool]] = []
        self.rows: list[tuple[float, float]] = []
        self.entries: list[np.ndarray] = []

    def variables(self, count: int, lower=0.0, upper=math.inf, cost=0.0, *, whole=False) -> np.ndarray:
        """Return the numbers of new variables, each between two bounds; a unit of it costs something."""
        bounds = [np.broadcast_to(each, count).tolist() for each in (lower, upper, cost, whole)]
        self.columns += zip(*bounds, strict=True)
        return np.arange(len(self.columns) - count, len(self.columns))

    def constrain(self, lower, upper, *terms: tuple[np.ndarray, object]) -> None:
        """Keep sums of (variables, factors) between two bounds, one sum for each place."""
        count = len(terms[0][0])
        rows = np.arange(len(self.rows), len(self.rows) + count)
        self.rows += zip(*[np.broadcast_to(each, count).tolist() for each in (lower, upper)], strict=True)
        self.entries += [
            np.column_stack([rows, variables, np.broadcast_to(factors, count)])
            for variables, factors in terms
        ]

    def solved(self) -> np.ndarray:
        """Return the variables' values at the least cost; raise Infeasible."""
        rows, columns, factors = np.concatenate(self.entries).T
        order = np.argsort(rows, kind="stable")
        lower, upper, costs, whole = (np.array(each) for each in zip(*self.columns, strict=True))
        row_lower, row_upper = (np.array(each) for each in zip(*self.rows, strict=True))
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(lower), len(row_lower)
        program.col_lower_, program.col_upper_, program.col_cost_ = lower, upper, costs
        program.row_lower_, program.row_upper_ = row_lower, row_upper
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = np.searchsorted(rows[order], np.arange(len(row_lower) + 1))
        program.a_matrix_.index_ = columns[order].astype(int)
        program.a_matrix_.value_ = factors[order]
        if whole.any():
            kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
            program.integrality_ = [kinds[int(each)] for each in whole]
        solver = highspy.Highs()
        for name, value in (("output_flag", False), ("threads", 1), ("mip_rel_gap", GAP)):
            solver.setOptionValue(name, value)
        solver.passModel(program)
        solver.run()
        if (status := solver.getModelStatus()) != highspy.HighsModelStatus.kOptimal:
            raise errors.Infeasible(f"no schedule meets all limits: {solver.modelStatusToString(status)}")
        return np.array(solver.getSolution().col_value)


class Site:
    """What the devices of a site may do in the steps between `edges` (s), and what that costs.

    A step has the price at its start.
    """

    def __init__(self, edges: np.ndarray, known: list[prices.PriceInterval]) -> None:
        self.program = Program()
        self.edges, self.count = edges, len(edges) - 1
        self.hours = (edges[1] - edges[0]) / 3600
        places = np.searchsorted([interval.start for interval in known], edges[:-1], "right") - 1
        pairs = [(interval.consumption, interval.production) for interval in known]
        self.consumption, self.production = np.array(pairs)[places].T
        assert (self.consumption >= self.production).all(), "to buy and feed in at once would pay"
        spread = np.ptp(self.consumption) or 1.0
        self.preference = PREFERENCE * spread * self.hours / 24 * (1 - np.arange(self.count) / self.count)
        self.nets: list[tuple[np.ndarray, float]] = []

    def add(self, device: Device) -> tuple[np.ndarray, np.ndarray]:
        """Return the variables of what a device consumes and produces in each step (kW)."""
        whole = getattr(device, "power_capacity", None)
        most = [
            self._capacity(each, whole) for each in (device.consumption_capacity, device.production_capacity)
        ]
        up, down = (self.program.variables(self.count, 0.0, each) for each in most)
        self.nets += [(up, 1.0), (down, -1.0)]
        if isinstance(device, storages.Storage):
            self._store(device, up, down)
            self._keep_to_modes(device, up, down)
            self._go_one_way(up, down, *most)
        return up, down

    def meet(self, given: float | np.ndarray, limit: float | np.ndarray) -> None:
        """Have the grid give or take what is left, beside a given load, within a limit if possible (kW)."""
        add = self.program.variables
        net = add(self.count, -math.inf, math.inf, self.production * self.hours)
        bought = add(self.count, cost=(self.consumption - self.production) * self.hours)
        excess = add(self.count, cost=SITE_BREACH)
        self.program.constrain(0.0, math.inf, (bought, 1.0), (net, -1.0))
        self.program.constrain(-given, -given, (net, -1.0), *self.nets)
        self.program.constrain(-math.inf, limit, (net, 1.0), (excess, -1.0))
        self.program.constrain(-limit, math.inf, (net, 1.0), (excess, 1.0))

    def _capacity(self, capacity: object, otherwise: float | None) -> float | np.ndarray:
        """Return the greatest power in each step (kW)."""
        if isinstance(capacity, list):
            return np.minimum(self._of_spans(capacity), math.inf if otherwise is None else otherwise) / 1000
        found = [each for each in (capacity, otherwise) if each is not None]
        return min(found, default=math.inf) / 1000

    def _of_spans(self, spans: list[storages.PowerSpan]) -> np.ndarray:
        pieces = [(each.start.timestamp(), each.end.timestamp(), each.value) for each in spans]
        return mean_powers(pieces, self.edges)

    def _store(self, device: storages.Storage, up: np.ndarray, down: np.ndarray) -> None:
        """Reckon the state of charge at the end of each step (kWh)."""
        even = math.sqrt(device.roundtrip_efficiency or 1.0)
        charging, discharging = (
            even if each is None else each
            for each in (device.charging_efficiency, device.discharging_efficiency)
        )
        keeps = 1.0 if device.storage_efficiency is None else device.storage_efficiency
        lasting = self.hours * (1.0 if keeps == 1.0 else (keeps - 1.0) / math.log(keeps))
        soc = device.soc_at_start / 1000
        lowest, highest = min(device.soc_min / 1000, soc), max(device.soc_max / 1000, soc)
        stored = self.program.variables(self.count, lowest, highest, -self.preference)
        before = self.program.variables(1, soc, soc)
        used = lasting * self._of_spans(device.soc_usage) / 1000 if device.soc_usage else 0.0
        self.program.constrain(
            -used,
            -used,
            (stored, 1.0),
            (np.concatenate([before, stored[:-1]]), -keeps),
            (up, -lasting * charging),
            (down, lasting / discharging),
        )
        begin, end = (datetime.fromtimestamp(each, UTC) for each in self.edges[[0, -1]])
        below = [storages.SocEvent(begin, end, device.soc_min)] if lowest < device.soc_min / 1000 else []
        above = [storages.SocEvent(begin, end, device.soc_max)] if highest > device.soc_max / 1000 else []
        for wishes in (device.soc_minima, device.soc_targets, below):
            self._wish(stored, wishes, 1.0)
        for wishes in (device.soc_maxima, device.soc_targets, above):
            self._wish(stored, wishes, -1.0)

    def _wish(self, stored: np.ndarray, wishes: list[storages.SocEvent], sign: float) -> None:
        """Have as much stored as is wished for, where each kWh less (or more, by the sign) costs."""
        for wish in wishes:
            first, last = (
                np.searchsorted(self.edges[1:], each.timestamp() - 1e-3) for each in (wish.start, wish.end)
            )
            held = stored[first : last + 1]
            if len(held):
                missing = self.program.variables(len(held), cost=BREACH)
                self.program.constrain(sign * wish.value / 1000, math.inf, (held, sign), (missing, 1.0))

    def _keep_to_modes(self, device: storages.Storage, up: np.ndarray, down: np.ndarray) -> None:
        """Have the power in one of the ranges of the operation modes, where there are any."""
        if not device.operation_modes:
            return
        chosen = [self.program.variables(self.count, 0.0, 1.0, whole=True) for _ in device.operation_modes]
        self.program.constrain(1.0, 1.0, *[(each, 1.0) for each in chosen])
        ends = zip(*device.operation_modes, strict=True)
        for (lower, upper), values in zip(((0.0, math.inf), (-math.inf, 0.0)), ends, strict=True):
            terms = [(each, -value / 1000) for each, value in zip(chosen, values, strict=True)]
            self.program.constrain(lower, upper, (up, 1.0), (down, -1.0), *terms)

    def _go_one_way(self, up: np.ndarray, down: np.ndarray, most_up: object, most_down: object) -> None:
        """Keep a storage from doing both at once, which would pay where power costs less than nothing."""
        ups, downs = (np.broadcast_to(each, self.count) for each in (most_up, most_down))
        [where] = np.nonzero((self.production < 0) & (ups > 0) & (downs > 0))
        if len(where):
            goes_up = self.program.variables(len(where), 0.0, 1.0, whole=True)
            self.program.constrain(-math.inf, 0.0, (up[where], 1.0), (goes_up, -ups[where]))
            self.program.constrain(-math.inf, downs[where], (down[where], 1.0), (goes_up, downs[where]))


def mean_powers(pieces: Spans, edges: np.ndarray) -> np.ndarray:
    """Return the mean of pieces (start, end, value) in each step between edges (s), 0 where there is none."""
    moments, sums = [0.0], [0.0]
    for start, end, value in pieces:
        moments += [start, end]
        sums += [sums[-1], sums[-1] + (end - start) * value]
    return np.diff(np.interp(edges, moments, sums)) / np.diff(edges)
