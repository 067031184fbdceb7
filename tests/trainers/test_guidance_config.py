"""The settings of guidance: what is refused, how guidance fades, and what is drawn."""

import math
import re
from collections import Counter

import pytest

from lastmile_trl.trainers.guidance_config import ALONE, MODES, ROLL_IN, ROLL_OUT, Draw, GuidanceConfig


def guidance(**settings) -> GuidanceConfig:
    """PPO++ with the base as its guide, always, unless said otherwise."""
    return GuidanceConfig(**({"mode": "ppo++", "guide": "base", "probability": 1.0, "anneal": None} | settings))


def by_chance(counts, chances) -> bool:
    """Whether these counts are what these chances give: Pearson's chi-square, which fails once in 10,000 tests."""
    total, freedom = sum(counts), len(counts) - 1
    found = sum((count - total * chance) ** 2 / (total * chance) for count, chance in zip(counts, chances, strict=True))
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson and Hilferty
    return found < limit


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "ppo"}, "mode must be one of ppo++, drpo, aggrevated, lols, d2lols, not 'ppo'."),
        ({"mode": "drpo"}, "mode drpo begins with references, not with 'base': that is mode ppo++."),
        ({"guide": None}, "mode ppo++ needs a guide: base, a model, package.module:function, or an endpoint."),
        ({"mode": "lols", "guide": None}, "mode lols needs a guide: base, a model"),
        ({"guide": "references"}, "mode ppo++ does not take references as its guide: that is mode drpo."),
        ({"mode": "aggrevated", "guide": "references"}, "mode aggrevated does not take references as its guide: they "
         "cannot go on from what the learner wrote."),
        ({"mode": "d2lols", "guide": "references"}, "mode d2lols does not take references as its guide"),
        ({"mixture": 0.5}, "mixture is for mode lols, not ppo++: leave it out."),
        ({"mode": "d2lols", "mixture": 0.5}, "mixture is for mode lols, not d2lols: leave it out."),
        ({"switch": 0.5}, "switch is for mode d2lols, not ppo++: leave it out."),
        ({"span": 2}, "span is for mode aggrevated, lols, d2lols, not ppo++: leave it out."),
        ({"mode": "drpo", "guide": None, "span": 2}, "span is for mode aggrevated, lols, d2lols, not drpo"),
        ({"probability": 1.1}, "probability must be between 0 and 1, not 1.1."),
        ({"probability": -0.1}, "probability must be between 0 and 1, not -0.1."),
        ({"mode": "lols", "mixture": 2}, "mixture must be between 0 and 1, not 2."),
        ({"mode": "d2lols", "switch": -1}, "switch must be between 0 and 1, not -1."),
        ({"anneal": [1.0, 0.5]}, "anneal must be two shares of training such as [0.5, 1.0], or null, not [1.0, 0.5]."),
        ({"anneal": [0.5]}, "anneal must be two shares of training such as [0.5, 1.0], or null, not [0.5]."),
        ({"anneal": [0.5, 1.5]}, "anneal must be two shares of training"),
        ({"anneal": [-0.5, 1.0]}, "anneal must be two shares of training"),
        ({"anneal": ["a", "b"]}, "anneal must be two shares of training"),
        ({"mode": "aggrevated", "span": 0}, "span must be at least 1, not 0."),
        ({"prefix_per": "token"}, "prefix_per must be group or completion, not 'token'."),
        ({"anchor": -0.1}, "anchor must be at least 0, not -0.1."),
        ({"sampling": {"top_q": 1}}, "sampling takes temperature, top_p, top_k, min_p, not 'top_q'."),
        ({"guide": "package.module:function", "sampling": {"top_p": 1}}, "sampling has no effect on the guide "
         "'package.module:function': leave it out."),
        ({"mode": "drpo", "guide": None, "sampling": {"top_p": 1}}, "sampling has no effect on the guide 'references'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ValueError) as error:
        guidance(**settings)
    assert str(error.value).startswith(words)


def test_what_is_left_out_is_filled_in_where_the_mode_has_it():
    found = {mode: GuidanceConfig(mode=mode, guide=None if mode == "drpo" else "base") for mode in MODES}
    assert [found[mode].mixture for mode in MODES] == [None, None, None, 0.8, None]
    assert [found[mode].switch for mode in MODES] == [None, None, None, None, 0.2]
    assert [found[mode].rolls_out for mode in MODES] == [False, False, True, True, True]
    assert found["drpo"].guide == "references"
    assert {(one.probability, tuple(one.anneal), one.anchor) for one in found.values()} == {(0.8, (0.5, 1.0), 0.0)}


@pytest.mark.parametrize(
    ("guide", "sampling"),
    [("base", {"top_p": 0.92}), ("some/model", {"top_p": 0.92}), ({"endpoint": "http://127.0.0.1:1/v1"},
     {"top_p": 0.92}), ("package.module:function", {})],
)  # fmt: skip
def test_a_guide_that_samples_has_settings_of_its_own(guide, sampling):
    assert guidance(guide=guide).sampling == sampling


# --- how it fades ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anneal", "expected"),
    [
        ([0.5, 1.0], {0.0: 0.8, 0.5: 0.8, 0.75: 0.4, 0.875: 0.2, 1.0: 0.0}),
        (None, {0.0: 0.8, 0.5: 0.8, 1.0: 0.8}),
        ([0.5, 0.5], {0.0: 0.8, 0.49: 0.8, 0.5: 0.0, 1.0: 0.0}),
        ([0.0, 1.0], {0.0: 0.8, 0.25: 0.6, 1.0: 0.0}),
        ([0, 0], {0.0: 0.0, 1.0: 0.0}),
        ([1, 1], {0.0: 0.8, 0.99: 0.8, 1.0: 0.0}),
    ],
    ids=str,
)
def test_the_probability_fades_between_two_shares_of_training(anneal, expected):
    settings = guidance(probability=0.8, anneal=anneal)
    assert {done: round(settings.probability_at(done), 12) for done in expected} == expected


@pytest.mark.parametrize("mixture", [0.0, 0.3, 0.8, 1.0])
def test_lols_is_one_or_the_other_for_a_whole_rollout(mixture):
    settings = guidance(mode="lols", mixture=mixture)
    parts = [settings.part_at(0, f"{step}/0", 0.0) for step in range(2000)]
    share, deviation = parts.count(ROLL_IN) / 2000, math.sqrt(mixture * (1 - mixture) / 2000)
    assert abs(share - mixture) <= 4 * deviation
    assert set(parts) <= {ROLL_IN, ROLL_OUT}
    for step in range(20):
        assert {settings.draw(0, f"{step}/0", row, 0.0).part for row in range(50)} == {parts[step]}


def test_d2lols_is_one_and_then_the_other():
    settings = guidance(mode="d2lols", switch=0.25)
    parts = [settings.part_at(0, f"{step}/0", step / 100) for step in range(101)]
    assert parts == [ROLL_OUT] * 25 + [ROLL_IN] * 76


@pytest.mark.parametrize(("mode", "part"), [("ppo++", ROLL_IN), ("drpo", ROLL_IN), ("aggrevated", ROLL_OUT)])
def test_the_other_modes_are_always_the_same(mode, part):
    settings = guidance(mode=mode, guide=None if mode == "drpo" else "base")
    assert {settings.part_at(seed, f"{seed}/0", seed / 100) for seed in range(100)} == {part}


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.8, 1.0])
def test_so_many_rollouts_are_guided(probability):
    settings = guidance(probability=probability)
    draws = [settings.draw(seed, f"{step}/0", row, 0.0) for seed in range(4) for step in range(20) for row in range(50)]
    share, deviation = sum(draw.part != ALONE for draw in draws) / 4000, math.sqrt(probability * (1 - probability)) / 63
    assert abs(share - probability) <= 4 * deviation


def test_fading_guides_fewer_and_no_others():
    """Rows that are guided late are guided early: the coin is one and the same, held against less."""
    settings = guidance(probability=0.8, anneal=[0.0, 1.0])
    early, late = ({row for row in range(500) if settings.draw(0, "0/0", row, done).part != ALONE} for done in (0, 0.5))
    assert late < early and 150 < len(late) < 250 < len(early)


@pytest.mark.parametrize("length", range(2, 9))
def test_the_switch_is_anywhere_within_the_text_alike(length):
    settings = guidance()
    counts = Counter(settings.draw(seed, "0/0", row, 0.0).switch(length) for seed in range(100) for row in range(50))
    assert sorted(counts) == list(range(1, length))
    if length > 2:
        assert by_chance(counts.values(), [1 / (length - 1)] * (length - 1))


def test_there_is_no_switch_in_a_text_of_one_token_or_none_nor_without_a_guide():
    assert [Draw(ROLL_OUT, 0.5, 0.0).switch(length) for length in (0, 1)] == [0, 0]
    assert Draw(ALONE, 0.5, 0.0).switch(9) == 0
    assert Draw(ROLL_IN, math.nextafter(1.0, 0.0), 0.0).switch(9) == 8


def test_every_reference_is_taken_alike_whatever_the_switch():
    settings = guidance(mode="drpo", guide=None)
    draws = [settings.draw(seed, "0/0", row, 0.0) for seed in range(100) for row in range(60)]
    both = Counter((int(draw.reference * 3), draw.switch(4)) for draw in draws)
    assert len(both) == 9 and by_chance(both.values(), [1 / 9] * 9)


def test_a_draw_is_that_of_its_seed_step_and_row_and_of_nothing_else():
    import random

    settings = guidance(probability=0.5)
    keys = [(seed, f"{step}/{part}", row) for seed in range(3) for step in range(3) for part in range(2)
            for row in range(8)]  # fmt: skip
    first = {key: settings.draw(*key, 0.0) for key in keys}
    random.seed(7)
    random.shuffle(keys)
    assert {key: settings.draw(*key, 0.0) for key in keys} == first
    assert len({(draw.position, draw.reference) for draw in first.values()}) == len(keys)
    assert len({tuple(first[key].part for key in sorted(keys) if key[0] == seed) for seed in range(3)}) == 3


def test_a_draw_takes_nothing_from_the_streams_of_others():
    import random

    import torch

    before, numbers = random.getstate(), torch.get_rng_state()
    guidance(mode="lols").draw(0, "0/0", 0, 0.0)
    assert random.getstate() == before and torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temperature", 0, "must be above 0 (for the likeliest, top_k: 1), not 0"),
        ("temperature", True, "must be above 0"),
        ("top_p", 5, "must be above 0 and at most 1, not 5"),
        ("top_k", "hello", "must be a whole number, 0 for all, not 'hello'"),
        ("top_k", 2.5, "must be a whole number"),
        ("min_p", -0.1, "must be between 0 and 1, not -0.1"),
    ],
)
def test_what_no_model_can_sample_by_is_refused(name, value, said):
    with pytest.raises(ValueError, match=re.escape(f"sampling.{name} {said}")):
        GuidanceConfig(mode="ppo++", guide="base", sampling={name: value})


def test_a_server_may_know_temperature_0():
    guide = {"endpoint": "http://127.0.0.1/v1", "model": "any"}
    assert GuidanceConfig(mode="ppo++", guide=guide, sampling={"temperature": 0}).sampling == {"temperature": 0}
