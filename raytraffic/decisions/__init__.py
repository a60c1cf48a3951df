"""From a forecast to a decision: where base stations are built, and which radio units sleep. Pure numpy, SciPy and PuLP with HiGHS.

Base-station deployment (UoMo, Eq. 12; `deployment`, solved by `deployment_program`)
    asks how many stations each grid gets. Inputs: demand (draws, grids, slots) in users, or in any unit of traffic, wanted in each slot;
    station types with a capacity in that same unit, a price in money and an operating cost in served units a slot; stations that stand
    already; budgets in stations and in money; a limit per grid. The answer counts stations per grid and type. One draw is a plain forecast;
    with several the mean over the draws is maximised, or a mixture of it and the mean of the worst draws (`Cvar`).

Sleep control (UoMo, Eq. 13; `sleep`, solved by `sleep_chain` for whole fleets and by `sleep_program` for small ones)
    asks how many of a cell's remote radio units (RRUs) are active in each slot. Inputs: load (draws, cells, slots) in any unit of traffic
    a slot; what one RRU serves a slot in the same unit; RRUs installed per cell; what energy and a switch cost, measured in slots of one
    cell without service; optionally a load that must be served (`demand_quantile` of the draws makes that a chance constraint), a least
    number of active RRUs for coverage and minimum on and off times in slots. The answer is (cells, slots) active RRUs. Cells are
    independent of each other, so a fleet is cut into pieces (`SleepProblem.of_cells`) that are solved anywhere, in any order.

Where demand comes from (`strategies`): a forecast's draws, points of interest, residents, the past, or the real traffic (the upper bound).

What a decision was worth (`evaluation`): scores on real traffic that the decision did not see, strategies side by side, intervals over the
    forecast's draws, and the share of the possible gain reached.

From files and settings (`reading`, `site_tables`, `problems`) to what `raytraffic optimize` hands on (`outcome`).

    from raytraffic.decisions.deployment import DeploymentProblem, StationType
    from raytraffic.decisions.deployment_program import plan
    from raytraffic.decisions.solver import SolverLimits

    problem = DeploymentProblem(demand=draws, station_types=(StationType(capacity=200.0, price=1.0),), most_stations=40)
    found = plan(problem, SolverLimits(seconds=60))
    found.stations, found.terms.served.mean(), found.proof.status, found.proof.gap, found.proof.seconds

Every solution carries a `Proof`: the solver's status, bound, gap and seconds. A problem that no decision can satisfy is refused with a
ValueError that names the constraints in conflict.
"""
