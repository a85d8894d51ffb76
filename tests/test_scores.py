"""The published scores: complete, named as the engine names games, and copied without a slip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastrl.engine.games import playable_games
from fastrl.runs import scores
from fastrl.runs.scores import human_normalised, reference


def test_both_conventions_are_complete_and_name_cartridges() -> None:
    assert len(scores.games("57")) == 57
    assert len(scores.games("nature")) == 49
    assert set(scores.games("57")) <= set(playable_games())
    assert set(scores.games("nature")) <= set(scores.games("57"))
    assert "Mnih et al. 2015" in scores.source("nature")


@pytest.mark.parametrize(
    ("game", "score", "convention", "expected"),
    [
        ("breakout", 401.2, "57", (401.2 - 1.7) / (30.5 - 1.7)),
        ("breakout", 401.2, "nature", 399.5 / 30.1),  # 1327.2% in the paper
        ("seaquest", 5286, "57", 5217.6 / 41986.3),
        ("seaquest", 5286, "nature", 5217.6 / 20113.6),  # 25.9% in the paper: twice that of the other convention
        ("freeway", 0.0, "57", 0.0),
        ("skiing", -4336.9, "57", 1.0),
    ],
)
def test_hand_worked_scores(game: str, score: float, convention: str, expected: float) -> None:
    assert human_normalised(game, score, convention) == pytest.approx(expected)


def test_below_random_is_negative() -> None:
    assert human_normalised("pong", -21.0) == pytest.approx(-0.3 / 35.3)


@pytest.mark.parametrize("game", ["cart_pole", "SpaceInvaders", "phoenix"])
def test_a_game_without_a_reference_has_no_score(game: str) -> None:
    assert human_normalised(game, 1.0, "nature") is None
    assert reference(game, "nature") is None


def test_an_unknown_convention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"convention: 'atari100k' is not known; take one of 57, nature"):
        human_normalised("pong", 1.0, "atari100k")


def test_the_papers_own_percentages_follow_from_its_scores() -> None:
    """Any wrong digit in Nature's table would show: the last column was computed from the others by its authors."""
    table = json.loads((Path(scores.__file__).parent / "atari_scores.json").read_text())["nature"]["games"]

    def half_a_digit(value: float) -> float:
        return 0.5 if abs(value) >= 1000 else 0.05

    wrong = []
    for game, (random, human, dqn, _, percent) in table.items():
        # The largest error that rounding of the printed numbers explains.
        share = abs(dqn - random) / (human - random)
        slack = half_a_digit(dqn) + half_a_digit(random) + share * (half_a_digit(human) + half_a_digit(random))
        if abs(100 * (dqn - random) / (human - random) - percent) > 100 * slack / (human - random) + 0.06:
            wrong.append(game)

    assert wrong == []


def test_the_two_conventions_agree_on_random_play() -> None:
    wrong = [
        game for game in scores.games("nature") if abs(reference(game, "nature").random - reference(game).random) > 0.5
    ]

    assert wrong == []
