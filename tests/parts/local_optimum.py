"""The cheapest schedules of a site's storages and flows by FlexMeasures' model, without a server.

Moments are seconds since 1970, powers W, energies Wh, prices currency per kWh, consumption positive. Within
the program powers are kW and energies kWh, so that its numbers are of one order.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import highspy
import numpy as np
import numpy.typing as npt

import flexmeasures_api.errors as errors
import flexmeasures_api.flexible_devices as storages
import flexmeasures_api.prices as prices
import flexmeasures_api.schedule as schedules
import flexmeasures_cem.site.site as sites

BREACH, SITE_BREACH = 1000.0, 10_000.0
"""The cost of a kWh missing from a wish, in every step, and of a kW beyond the site's limit."""
PREFERENCE = 1e-4
"""The fraction of the greatest difference of prices that storing a kWh a day earlier is worth."""
GAP = 1e-6
"""The fraction by which a plan with integers may cost more than the best one."""

type Array = npt.NDArray[np.float64]
type Columns = npt.NDArray[np.int64]
"""Numbers of variables."""
type Spans = Iterable[tuple[float, float, float]]
"""Powers (start, end, W), in order."""
type Prices = Callable[[float, float], Awaitable[list[prices.PriceInterval]]]
"""Returns the prices from a start to an end in order, as for site.Site."""
type Device = storages.Storage | storages.Flow


def priced(start: float, end: float, consumption: float, production: float) -> prices.PriceInterval:
    """Return known prices (currency per kWh) of an interval."""
    return prices.PriceInterval(start=start, end=end, consumption=consumption, production=production)


class Optimiser:
    """An optimiser in place of a server; `limit` is the maximum power of the site (W)."""

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
        """Return the Schedule of every power sensor, as for site.Site; raise Infeasible.

        A load that only a server knows (None) counts as nothing.
        """
        intervals = await self.prices(window.start, window.end)
        return await asyncio.to_thread(self._solved, devices, window, loads, limits, intervals)

    def _solved(
        self,
        devices: list[Device],
        window: sites.Window,
        loads: Mapping[int, Spans | None],
        limits: Mapping[str, Spans],
        intervals: list[prices.PriceInterval],
    ) -> dict[int, schedules.Schedule]:
        steps = np.arange(round((window.end - window.start) / window.step) + 1, dtype=np.float64)
        edges: Array = steps * window.step + window.start
        site = Site(edges, intervals)
        powers = {device.power_sensor: site.add(device) for device in devices}
        load = np.zeros(len(edges) - 1)
        for spans in loads.values():
            if spans is not None:
                load += mean_powers(spans, edges)
        varying = limits.get("power_capacity")
        limit = mean_powers(varying, edges) if varying else self.limit
        site.meet(load / 1000, limit / 1000)
        values = site.program.solved()
        begin, step = datetime.fromtimestamp(window.start, UTC), timedelta(seconds=window.step)

        def schedule(up: Columns, down: Columns) -> schedules.Schedule:
            watts = np.round(1000 * (values[up] - values[down]), 3) + 0.0
            return schedules.Schedule(
                start=begin,
                resolution=step,
                unit="W",
                values=[float(power) for power in watts],
                soc_unit="Wh",
                soc=None,
                missed_targets=[],
                cost=None,
                updated_at=begin,
            )

        return {sensor: schedule(*columns) for sensor, columns in powers.items()}


class Program:
    """A linear program under construction, of numbered columns (variables) and rows (constraints)."""

    def __init__(self) -> None:
        self.columns: list[tuple[float, float, float, bool]] = []
        self.rows: list[tuple[float, float]] = []
        self.entries: list[Array] = []

    def variables(
        self,
        count: int,
        lower: float | Array = 0.0,
        upper: float | Array = math.inf,
        cost: float | Array = 0.0,
        *,
        whole: bool = False,
    ) -> Columns:
        """Return the numbers of new variables between two bounds, with a cost per unit."""
        bounds = [np.broadcast_to(bound, count).tolist() for bound in (lower, upper, cost, whole)]
        self.columns += zip(*bounds, strict=True)
        return np.arange(len(self.columns) - count, len(self.columns))

    def constrain(
        self, lower: float | Array, upper: float | Array, *terms: tuple[Columns, float | Array]
    ) -> None:
        """Keep the elementwise sums of variables times factors between two bounds."""
        count = len(terms[0][0])
        rows = np.arange(len(self.rows), len(self.rows) + count)
        self.rows += zip(*[np.broadcast_to(bound, count).tolist() for bound in (lower, upper)], strict=True)
        self.entries += [
            np.column_stack([rows, variables, np.broadcast_to(factors, count)])
            for variables, factors in terms
        ]

    def solved(self) -> Array:
        """Return the values of the variables at the lowest cost; raise Infeasible."""
        rows, columns, factors = np.concatenate(self.entries).T
        order = np.argsort(rows, kind="stable")
        lower, upper, costs, whole = (np.array(column) for column in zip(*self.columns, strict=True))
        row_lower, row_upper = (np.array(column) for column in zip(*self.rows, strict=True))
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
            program.integrality_ = [kinds[int(is_whole)] for is_whole in whole]
        solver = highspy.Highs()
        for name, value in (("output_flag", False), ("threads", 1), ("mip_rel_gap", GAP)):
            solver.setOptionValue(name, value)
        solver.passModel(program)
        solver.run()
        if (status := solver.getModelStatus()) != highspy.HighsModelStatus.kOptimal:
            raise errors.Infeasible(f"no schedule meets all limits: {solver.modelStatusToString(status)}")
        return np.array(solver.getSolution().col_value)


class Site:
    """The linear program of a site, in steps between `edges` (s) with the price at their start."""

    def __init__(self, edges: Array, intervals: list[prices.PriceInterval]) -> None:
        self.program = Program()
        self.edges, self.count = edges, len(edges) - 1
        self.hours = float(edges[1] - edges[0]) / 3600
        starts = np.array([interval.start for interval in intervals])
        places = np.searchsorted(starts, edges[:-1], "right") - 1
        self.consumption: Array = np.array([interval.consumption for interval in intervals])[places]
        self.production: Array = np.array([interval.production for interval in intervals])[places]
        assert (self.consumption >= self.production).all(), "buying and feeding in at once would pay"
        spread = np.ptp(self.consumption) or 1.0
        self.preference = PREFERENCE * spread * self.hours / 24 * (1 - np.arange(self.count) / self.count)
        self.nets: list[tuple[Columns, float | Array]] = []

    def add(self, device: Device) -> tuple[Columns, Columns]:
        """Return the variables of a device's consumption and production in every step (kW)."""
        power_capacity = getattr(device, "power_capacity", None)
        max_up = self._capacity(device.consumption_capacity, power_capacity)
        max_down = self._capacity(device.production_capacity, power_capacity)
        up = self.program.variables(self.count, 0.0, max_up)
        down = self.program.variables(self.count, 0.0, max_down)
        self.nets += [(up, 1.0), (down, -1.0)]
        if isinstance(device, storages.Storage):
            self._store(device, up, down)
            self._keep_to_modes(device, up, down)
            self._go_one_way(up, down, max_up, max_down)
        return up, down

    def meet(self, load: Array, limit: float | Array) -> None:
        """Balance the devices and a fixed load by the grid, within a limit if possible (kW)."""
        add = self.program.variables
        net = add(self.count, -math.inf, math.inf, self.production * self.hours)
        bought = add(self.count, cost=(self.consumption - self.production) * self.hours)
        excess = add(self.count, cost=SITE_BREACH)
        self.program.constrain(0.0, math.inf, (bought, 1.0), (net, -1.0))
        self.program.constrain(-load, -load, (net, -1.0), *self.nets)
        self.program.constrain(-math.inf, limit, (net, 1.0), (excess, -1.0))
        self.program.constrain(-limit, math.inf, (net, 1.0), (excess, 1.0))

    def _capacity(
        self, capacity: float | Sequence[storages.PowerSpan] | None, power_capacity: float | None
    ) -> float | Array:
        """Return the maximum power in every step (kW)."""
        limit = math.inf if power_capacity is None else power_capacity
        if isinstance(capacity, Sequence):
            return np.minimum(self._of_spans(capacity), limit) / 1000
        return min(math.inf if capacity is None else capacity, limit) / 1000

    def _of_spans(self, spans: Sequence[storages.PowerSpan]) -> Array:
        pieces = [(span.start.timestamp(), span.end.timestamp(), span.value) for span in spans]
        return mean_powers(pieces, self.edges)

    def _store(self, device: storages.Storage, up: Columns, down: Columns) -> None:
        """Add the state of charge at the end of every step (kWh)."""
        one_way = math.sqrt(device.roundtrip_efficiency or 1.0)
        charging, discharging = (
            one_way if efficiency is None else efficiency
            for efficiency in (device.charging_efficiency, device.discharging_efficiency)
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
        begin, end = (datetime.fromtimestamp(edge, UTC) for edge in self.edges[[0, -1]])
        below = [storages.SocEvent(begin, end, device.soc_min)] if lowest < device.soc_min / 1000 else []
        above = [storages.SocEvent(begin, end, device.soc_max)] if highest > device.soc_max / 1000 else []
        for wishes in (device.soc_minima, device.soc_targets, below):
            self._wish(stored, wishes, 1.0)
        for wishes in (device.soc_maxima, device.soc_targets, above):
            self._wish(stored, wishes, -1.0)

    def _wish(self, stored: Columns, wishes: Sequence[storages.SocEvent], sign: float) -> None:
        """Add a cost for every kWh below the wishes (or above them, by the sign)."""
        for wish in wishes:
            first, last = (
                np.searchsorted(self.edges[1:], moment.timestamp() - 1e-3)
                for moment in (wish.start, wish.end)
            )
            held = stored[first : last + 1]
            if len(held):
                missing = self.program.variables(len(held), cost=BREACH)
                self.program.constrain(sign * wish.value / 1000, math.inf, (held, sign), (missing, 1.0))

    def _keep_to_modes(self, device: storages.Storage, up: Columns, down: Columns) -> None:
        """Keep the power within one of the ranges of the operation modes, if there are any."""
        if not device.operation_modes:
            return
        chosen = [self.program.variables(self.count, 0.0, 1.0, whole=True) for _ in device.operation_modes]
        self.program.constrain(1.0, 1.0, *[(mode, 1.0) for mode in chosen])
        ends = zip(*device.operation_modes, strict=True)
        for (lower, upper), values in zip(((0.0, math.inf), (-math.inf, 0.0)), ends, strict=True):
            terms = [(mode, -value / 1000) for mode, value in zip(chosen, values, strict=True)]
            self.program.constrain(lower, upper, (up, 1.0), (down, -1.0), *terms)

    def _go_one_way(self, up: Columns, down: Columns, max_up: float | Array, max_down: float | Array) -> None:
        """Prevent a storage from charging and discharging at once, which pays at negative prices."""
        ups, downs = (np.broadcast_to(power, self.count) for power in (max_up, max_down))
        [where] = np.nonzero((self.production < 0) & (ups > 0) & (downs > 0))
        if len(where):
            goes_up = self.program.variables(len(where), 0.0, 1.0, whole=True)
            self.program.constrain(-math.inf, 0.0, (up[where], 1.0), (goes_up, -ups[where]))
            self.program.constrain(-math.inf, downs[where], (down[where], 1.0), (goes_up, downs[where]))


def mean_powers(pieces: Spans, edges: Array) -> Array:
    """Return the means of pieces (start, end, value) in the steps between edges (s), without one 0."""
    moments, sums = [0.0], [0.0]
    for start, end, value in pieces:
        moments += [start, end]
        sums += [sums[-1], sums[-1] + (end - start) * value]
    means: Array = np.diff(np.interp(edges, moments, sums)) / np.diff(edges)
    return means
