"""A sample of `python tests/ring_model.py --full`: the protocol of a replay's lanes under C++20's memory model."""

from __future__ import annotations

import pytest
from ring_model import CONFIGURATIONS, DYING, MUTANTS, NONE, PLAIN, SPARE_CHECKS, Configuration, Ring, Search


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_no_behaviour_accepts_what_was_not_asked_for(name: str) -> None:
    outcome = CONFIGURATIONS[name].check()

    assert outcome.violations == []
    assert not outcome.limit_hit
    assert outcome.never_accepted == 0


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_mistake_in_the_protocol_is_caught(mutant: str) -> None:
    assert MUTANTS[mutant].check(mutant).violations != []


def test_a_handover_without_mutex_is_caught_before_whichever_step_it_is() -> None:
    outcome = MUTANTS["handover_without_mutex"].check("handover_without_mutex")

    assert len(outcome.violations) == outcome.programs


@pytest.mark.parametrize("check", SPARE_CHECKS)
def test_the_protocol_would_hold_without(check: str) -> None:
    outcome = DYING.check(check)

    assert outcome.holds


def test_the_check_of_the_step_spares_copies() -> None:
    assert PLAIN.check().refused < PLAIN.check("no_step_check").refused


def test_the_check_of_the_step_stops_some_torn_slots_that_an_heir_published() -> None:
    checked = DYING.check("takeover_skips_torn_slot").violations
    unchecked = DYING.check("takeover_skips_torn_slot", "no_step_check").violations

    assert 0 < len(checked) < len(unchecked)


def test_a_lane_too_short_for_a_transition_is_noticed() -> None:
    outcome = Configuration(Ring(stack=3, slots=3, payload_words=1), steps=7).check()

    assert outcome.never_accepted > 0
    assert not outcome.holds


def test_a_search_that_was_cut_short_is_noticed() -> None:
    program = next(PLAIN.programs())
    outcome = Search(PLAIN.ring, program, NONE).run(state_limit=100)

    assert outcome.limit_hit
    assert not outcome.holds
