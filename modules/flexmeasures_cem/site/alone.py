"""One device planned by itself, in a market that has all else at the site as given."""

from typing import Any

import numpy as np

import flexmeasures_cem.market as markets
import flexmeasures_cem.optimisation.grid as grids
import flexmeasures_cem.optimisation.search as search
import flexmeasures_cem.optimisation.site as sites

WATTS = 1000.0
"""W in a kW."""
NO_PEAK_PRICE = markets.Connection()


@pyscript_compile
def site_of(
    market: list[markets.Interval], cuts: Any = (), connection: markets.Connection = NO_PEAK_PRICE
) -> Any:
    """Return the Site of a market (market.Intervals), with further edges at some moments (s since 1970).

    The `connection` has what a peak costs; the limits are the market's own.
    """
    first, last = market[0].start, market[-1].end
    inside = [moment for moment in cuts if first < moment < last - grids.MIN_STEP_SECONDS]
    grid = grids.of([each.start for each in market] + [last, *inside])
    places = np.searchsorted([each.start for each in market], grid.starts + 0.5, "right") - 1

    def column(name: str, scale: float = 1.0) -> Any:
        return np.array([getattr(each, name) for each in market])[places] / scale

    production_price = column("production_price")
    return sites.Site(
        grid,
        sites.Tariffs(
            consumption_price=column("consumption_price"),
            production_price=production_price,
            load=column("load", WATTS),
            curtailable=np.where(production_price < 0, column("curtailable", WATTS), 0.0),
            consumption_capacity=column("consumption_capacity", WATTS),
            production_capacity=column("production_capacity", WATTS),
            peak_consumption=connection.peak_consumption / WATTS,
            peak_price=connection.peak_price,
        ),
    )


@pyscript_compile
def solved(site: sites.Site, effort: Any = None) -> Any:
    """Return the linear.Solution of a Site of one device, to within what cannot be told apart."""
    site.connect()
    return site.solve(effort or search.Effort(seconds=20.0, gap=1e-6, relative_gap=0.0))


@pyscript_compile
def planned(
    control_type: Any,
    device: Any,
    state: Any,
    wanted: Any,
    market: list[markets.Interval],
    tariffs: dict[str, float],
    effort: Any = None,
    storage: Any = markets.AS_DESCRIBED,
) -> Any:
    """Return the Plan of a device under a base.ControlType in a market.

    `wanted` has the powers (start, end, W) of a schedule to follow, or is None; `tariffs` are those of other
    commodities, `effort` is a search.Effort (None: to within what cannot be told apart), `storage` has the
    StorageTerms.
    """
    site = site_of(market, control_type.grid_edges(device, state))
    part = control_type.add_to_site(site, device, state, wanted, tariffs, storage)
    return part.plan(solved(site, effort), market)
