"""Keywords of NUTS and HMC in the call of a `DFTKernel`: taken, mapped where that is honest, and told of once."""

from __future__ import annotations

import inspect
import warnings

import numpyro.infer
import pyro.infer
import pytest

from pyro_dft.experimental import Experimental
from pyro_dft.interface.nuts_options import NUMPYRO_NUTS, PLACES, PYRO_HMC, PYRO_NUTS, translated

# Options of NUTS and HMC that `DFT` has too.
SHARED = {"init_strategy", "max_plate_nesting", "transforms", "num_steps"}
FOUR, SEVEN = Experimental(leapfrog_steps=4), Experimental(leapfrog_steps=7)
KERNELS = {
    "NumPyro's NUTS": (numpyro.infer.NUTS, NUMPYRO_NUTS), "NumPyro's HMC": (numpyro.infer.HMC, None),
    "Pyro's NUTS": (pyro.infer.NUTS, PYRO_NUTS), "Pyro's HMC": (pyro.infer.HMC, PYRO_HMC),
}  # fmt: skip


def translate(*positional, pyro=True, potential=False, **keywords):
    """Options, form of the mass matrix, and the texts of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, dense = translated(positional, keywords, pyro=pyro, potential=potential, stacklevel=1)
    assert all(entry.category is UserWarning for entry in caught)
    return found, dense, [str(entry.message) for entry in caught]


@pytest.mark.parametrize("name", KERNELS)
def test_every_keyword_is_known_and_in_its_place(name):
    kernel, order = KERNELS[name]
    parameters = list(inspect.signature(kernel.__init__).parameters.values())[1:]
    assert [each.name for each in parameters[:2]] == ["model", "potential_fn"]
    placed = [each.name for each in parameters[2:] if each.kind is each.POSITIONAL_OR_KEYWORD]
    if order is not None:
        assert tuple(placed) == order
    for each in parameters[2:]:
        assert each.name in PLACES or each.name in SHARED
        if each.name in PLACES:  # what is left at its default is not worth a word
            assert translate(**{each.name: each.default}) == ({}, False, [])


def test_one_warning_lists_all_that_do_not_act():
    options = {
        "step_size": 0.1, "adapt_step_size": False, "adapt_mass_matrix": False, "dense_mass": True, "kinetic_fn": abs,
        "target_accept_prob": 0.95, "trajectory_length": 3.0, "use_multinomial_sampling": False, "min_stepsize": 1e-3,
        "max_stepsize": 2.0, "inverse_mass_matrix": [1.0],
    }  # fmt: skip
    found, dense, texts = translate(**options, seed=3, width=8)
    assert (found, dense, len(texts)) == ({"seed": 3, "width": 8}, True, 1)
    assert all(f"{name}=" in texts[0] for name in options)
    assert "refine_steps" not in texts[0]


def test_what_is_done_anyway_is_not_worth_a_word():
    quiet = {
        "jit_compile": True, "ignore_jit_warnings": True, "jit_options": {"optimize": False},
        "forward_mode_differentiation": True, "find_heuristic_step_size": True, "regularize_mass_matrix": False,
    }  # fmt: skip
    assert translate(**quiet) == ({}, False, [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # HMC's, and not the training of a network for four steps.
        ({"num_steps": 4}, {"experimental": FOUR}),
        ({"num_steps": 4, "step_size": 0.1, "seed": 1}, {"experimental": FOUR, "seed": 1}),
        ({"num_steps": 4, "experimental": SEVEN}, {"num_steps": 4, "experimental": SEVEN}),
        ({"num_steps": 4, "step_size": 0.1, "experimental": SEVEN}, {"experimental": SEVEN}),
        ({"num_steps": None, "experimental": SEVEN}, {"experimental": SEVEN}),
        ({"num_steps": 400, "step_size": 0.01}, {}),  # more than a transition may have
        ({"num_steps": None, "trajectory_length": 1.0}, {}),
        # The training's.
        ({"num_steps": 2000}, {"num_steps": 2000}),
        ({"num_steps": 20, "width": 8}, {"num_steps": 20, "width": 8}),
        ({"num_steps": 2000, "jit_compile": True, "seed": 1}, {"num_steps": 2000, "seed": 1}),
    ],
)
def test_steps_of_hmc_are_no_steps_of_training(given, expected):
    found, _, texts = translate(**given)
    assert found == expected
    told = "num_steps" in given and "num_steps" not in expected and given["num_steps"] is not None
    assert any("num_steps=" in text for text in texts) == told


@pytest.mark.parametrize(("depth", "told"), [(5, True), ((10, 3), True), (10, False), (None, False)])
def test_the_depth_of_trees_is_no_budget(depth, told):
    """A fit that ends where NUTS' trees would is no help; what limits it has a name of its own."""
    found, _, texts = translate(max_tree_depth=depth)
    assert found == {}
    assert [("max_tree_depth" in text and "max_gradients" in text) for text in texts] == (
        [True] if told else []
    )
    assert translate(max_tree_depth=depth, max_gradients=7)[0] == {"max_gradients": 7}


def test_positions_are_those_of_the_framework():
    # HMC(model, None, step_size, trajectory_length, num_steps) and NUTS(model, None, step_size, adapt_step_size).
    assert translate(1.0, None, 4)[0] == {"experimental": FOUR}
    rate = Experimental(score_steps=4)
    found = translate(1.0, None, 4, experimental=rate)[0]["experimental"]
    assert found == Experimental(score_steps=4, leapfrog_steps=4)
    assert translate(1.0, None, 4, experimental=SEVEN)[0] == {"experimental": SEVEN}
    assert translate(1.0, True, True, True)[:2] == ({}, True)
    assert translate(1.0, True, True, False, True, {"a": 1}, 2)[0] == {
        "transforms": {"a": 1},
        "max_plate_nesting": 2,
    }
    assert translate(None, 0.5, None, True, True, [("a",)], pyro=False)[1] == [("a",)]
    with pytest.raises(TypeError, match="at most 15 positional"):
        translate(*range(14))
    with pytest.raises(TypeError, match="multiple values for step_size"):
        translate(0.5, step_size=0.5)


def test_a_potential_has_no_strategy_for_its_sites():
    found, _, texts = translate(potential=True, init_strategy=abs)
    assert found == {}
    assert "a potential starts at its initial values" in texts[0]
    assert translate(init_strategy=abs)[0] == {"init_strategy": abs}


def test_traced_numbers_are_not_looked_at():
    import jax

    def traced(step_size):
        with pytest.warns(UserWarning, match=r"step_size=\.\.\."):
            assert (
                translated((), {"step_size": step_size}, pyro=False, potential=False, stacklevel=1)[0] == {}
            )
        return step_size

    jax.jit(traced)(1.0)
