"""The exhaustive sampler against the order of costs."""

from __future__ import annotations

from sampled_study import SMALL, admission_of, history_of, sampler_of


def test_exhaustive_goes_from_the_cheapest_to_the_most_expensive_and_ends() -> None:
    admission = admission_of(SMALL, constraints="[{metric: gflops, max: 1e-3}]")
    sampler, history = sampler_of("exhaustive"), history_of(admission)
    costs = []
    while (proposal := sampler.propose(history, None)) is not None:
        candidate = admission.price(proposal.point)
        admission.take(candidate.id)
        number = history.study.enter(proposal.point, proposal.carried)
        history.study.tell(number, [0.5, candidate.cost.gflops])
        costs.append(candidate.cost.gflops)
    assert costs == sorted(costs)
    assert admission.table is not None
    assert len(costs) == len(admission.table) > 10
