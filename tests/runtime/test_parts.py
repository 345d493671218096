"""What a question takes, composed of its parts: against sums that are written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.device.parts import PartSamples, reading_points
from export.runtime.routing.parts import Parts, Work, between
from export.runtime.routing.settled import here

PARTS = Parts(
    image=1.0, vision=((1, 10.0), (4, 28.0)), connector=((1, 0.5), (36, 1.0)),
    prefill=((10, 5.0), (20, 9.0), (100, 49.0)), token=((10, 2.0), (100, 3.0)),
    picture=0.7, question=0.2, router=0.1,
)  # fmt: skip


def test_between_points_and_beyond_them():
    points = ((10, 5.0), (20, 9.0), (100, 49.0))
    at = {1: 5.0, 10: 5.0, 15: 7.0, 20: 9.0, 60: 29.0, 100: 49.0, 140: 69.0}
    assert {place: between(points, place) for place in at} == at
    assert between(((3, 4.0),), 50) == 4.0


def test_a_question_about_a_new_picture():
    # a view, its tokens, 46 positions, and 3 more tokens of answer behind 50
    work = Work(views=1, connected=1, tokens=36, read=46, behind=4)
    assert PARTS.ms(work, 4) == pytest.approx(1 + 10 + 1 + (9 + 40 * 26 / 80) + 3 * (2 + 40 / 90))


def test_what_is_done_already_costs_nothing():
    # the picture was read at this scale before: the question alone, behind it
    assert PARTS.ms(Work(0, 0, 36, 10, behind=40), 1) == pytest.approx(5.0)
    assert PARTS.ms(Work(0, 0, 36, 0, behind=40), 3) == pytest.approx(2 * (2 + 30 / 90))


@pytest.mark.parametrize(("at_once", "vision_ms"), [(1, 90.0), (4, 28.0 + 28.0 + 10.0), (5, 34.0 + 28.0), (32, 58.0)])
def test_tiles_are_encoded_in_the_batches_that_the_encoder_makes(at_once, vision_ms):
    tiled = replace(PARTS, views_at_once=at_once)  # 6 ms for each view beside the first
    assert tiled.ms(Work(0, 0, 36, 0, 10, tiles=9), 1) == pytest.approx(9 * 1.0 + vision_ms)
    cut = replace(tiled, image_tiles=((2, 3.0), (10, 19.0)))
    assert cut.ms(Work(0, 0, 36, 0, 10, tiles=9), 1) == pytest.approx(17.0 + vision_ms)
    assert cut.ms(Work(1, 0, 36, 0, 10, tiles=9), 1) == pytest.approx(1.0 + 10.0 + 17.0 + vision_ms)
    assert cut.ms(Work(0, 0, 36, 0, 10), 1) == 0


def test_what_a_scale_costs_here():
    """Against the sums of what is left, where a question about a new picture costs what was measured."""
    whole = {m: Work(1, 1, m, 10 + m, behind=4) for m in (1, 36)}
    usual = np.array([PARTS.ms(whole[m], 3) + 1.0 for m in whole])  # choosing is 1.0
    same = here(usual, (1, 36), PARTS, whole.get, lambda m: replace(whole[m], views=0), 3, picture_seen=False)
    assert same.costs == pytest.approx(usual)
    assert same.overhead == pytest.approx(1.0)
    # 36 tokens were read, and the router has looked at the picture
    left = {1: Work(0, 1, 1, 11, behind=4), 36: Work(0, 0, 36, 10, behind=40)}
    now = here(usual, (1, 36), PARTS, whole.get, left.get, 3, picture_seen=True)
    look, choosing = PARTS.looking_ms(1), 0.3
    assert now.overhead == pytest.approx(choosing)
    assert now.costs == pytest.approx([look + PARTS.ms(left[m], 3) + choosing for m in left])
    assert now.costs[1] < now.costs[0] + 1  # what is ready is about as cheap as the coarsest


def test_choosing_for_a_picture_that_was_seen():
    assert PARTS.choosing_ms(picture_seen=False) == pytest.approx(1.0)
    assert PARTS.choosing_ms(picture_seen=True) == pytest.approx(0.3)


def test_more_is_never_cheaper():
    samples = PartSamples()
    for part, at, ms in [
        ("image", 0, 1.0), ("vision", 1, 2.0), ("connector", 9, 0.5), ("token", 30, 1.0),
        ("prefill", 30, 4.0), ("prefill", 10, 5.0), ("prefill", 50, 6.0),
    ]:  # fmt: skip
        samples.add(part, at, ms)
    parts = samples.parts(lambda ms: ms[0])
    assert parts.prefill == ((10, 5.0), (30, 5.0), (50, 6.0))
    assert parts.choosing_ms(picture_seen=False) == 0  # of a bundle without a router


def test_reading_is_measured_at_the_scales_or_at_some_of_many():
    assert reading_points((1, 9, 144)) == (1, 9, 144)
    many = reading_points(range(1, 145))
    assert (many[0], many[-1]) == (1, 144)
    assert len(many) <= 8
