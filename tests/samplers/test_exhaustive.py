"""The exhaustive sampler proposes in order of cost."""

from __future__ import annotations

from sampled_study import SMALL, admission_of, history_of, sampler_of


def test_exhaustive_proposes_every_configuration_in_order_of_cost() -> None:
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
