"""What the screen says of the chains' pace."""

import math

import pytest

from pyro_dft.recipe.pace import LEAST_GRADIENTS, Pace


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_seconds_of_a_gradient_leave_out_what_came_before_the_first_ones():
    clock = Clock()
    pace = Pace(clock)
    clock.now = 30.0  # compiling
    assert pace.words(512) == "512 gradients"
    clock.now = 30.5
    assert pace.words(512 + LEAST_GRADIENTS - 1) == f"{512 + LEAST_GRADIENTS - 1:,} gradients"
    clock.now = 34.0
    assert pace.words(512 + 2000) == "2,512 gradients of 2.0 ms"


def test_the_time_left_is_that_of_the_gradients_ahead():
    clock = Clock()
    pace = Pace(clock)
    pace.words(1000)
    pace.found(420.4, 1200.0, 20_000, 11_000)
    clock.now = 10.0
    assert pace.words(11_000) == "11,000 gradients of 1.0 ms, 420 of 1,200 effective draws, about 20 s left"
    # Half of them later, at the same pace.
    clock.now = 20.0
    assert pace.words(21_000).endswith("about 10 s left")
    # Nothing where it took longer than was thought, or nobody knows.
    clock.now = 50.0
    assert pace.words(51_000).endswith("effective draws")
    pace.found(30.0, 1200.0, math.inf, 51_000)
    assert pace.words(51_000) == "51,000 gradients of 1.0 ms, 30 of 1,200 effective draws"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2e-5, "20 µs"), (0.0019, "1.9 ms"), (0.04, "40 ms"), (1.5, "1.5 s"), (100, "100 s"), (200, "3.3 min"),
     (4000, "67 min"), (8000, "2.2 h")],
)  # fmt: skip
def test_times_are_in_units_that_are_read_at_a_glance(seconds, words):
    clock = Clock()
    pace = Pace(clock)
    pace.words(0)
    clock.now = seconds * LEAST_GRADIENTS
    assert pace.words(LEAST_GRADIENTS) == f"{LEAST_GRADIENTS:,} gradients of {words}"
