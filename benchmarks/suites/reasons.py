"""Which tests of the frameworks' suites say nothing about another kernel, and why."""

from __future__ import annotations

import re

# A part of a test's id -> why it does not apply to a kernel that is no HMC adapted by dual averaging.
REASONS = {
    "numpyro": {
        "test_diverging[": "a leapfrog step of 10 that may not be adapted; here it always is",
        "test_initial_inverse_mass_matrix": "a mass matrix that may not be adapted; here it always is",
        "test_none_trajectory_length[None]": "HMC refuses to have no trajectory; here there is always one",
        "test_fixed_num_steps": "a warning of HMC that it cannot adapt its step size; here it can",
    },
    "pyro": {
        "test_arrowhead_mass": "a mass matrix adapter of its own is put into the kernel",
        "test_singular_matrix_catch": "NUTS' own cache is set by hand, for a potential without a density",
        "test_model_with_potential_fn": "a potential without a density: it falls without end",
    },
}


def not_applicable(backend: str, test: str) -> str:
    """Why a test does not apply; empty where it does."""
    for part, reason in REASONS[backend].items():
        if re.search(re.escape(part), test):
            return reason
    return ""
