"""What `make bench` measures of the site model can be measured; the rest needs a machine of its own."""

from tests import bench_plans


def test_devices_are_planned_together_and_their_plan_is_compared_with_the_best():
    devices = ("battery", "washing-machine")
    scenario = bench_plans.Scenario(title="two devices", devices=devices, limit=bench_plans.LIMIT_W)

    found = bench_plans.plan(scenario, best_seconds=0.1)

    assert found.steps == 96
    assert min(found.columns, found.rows, found.whole) > 0
    assert min(found.build_seconds, found.solve_seconds, found.plan_seconds) > 0
    assert found.bound <= found.best <= found.cost
    assert len(bench_plans.cells(found)) == len(bench_plans.COLUMNS)
