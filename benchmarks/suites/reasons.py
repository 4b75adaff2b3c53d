"""Which tests of the frameworks' suites say nothing about another kernel, and why."""

from __future__ import annotations

import re

# Regular expression for a test's id -> why it does not apply.
REASONS = {
    "numpyro": {
        r"[\[-](SA|BarkerMH|AIES|ESS)[-\]]|test_SA_|test_get_proposal|test_numpy_delete": "another kernel",
        r"test_functional_": "functions behind the kernels",
        r"test_diverging\[False": "a leapfrog step of 10 that may not be adapted; here it always is",
        r"test_initial_inverse_mass_matrix": "a mass matrix that may not be adapted; here it always is",
        r"test_none_trajectory_length\[None": "HMC refuses to have no trajectory; here there is always one",
        r"test_none_trajectory_length\[10": "ten gradients for each draw; a refined draw takes several transitions of ten",
        r"test_init_strategy_substituted": "a warning of NumPyro's own initialisation, which is not used",
        r"test_chain_jit_args": "other data than those of the warm-up, which need another training, and are refused",
        r"test_fixed_num_steps": "a warning of HMC that it cannot adapt its step size; here it can",
    },
    "pyro": {
        r"test_mcmc_interface|test_num_chains|test_mcmc_diagnostics": "another kernel",
        r"test_potential_fn_pickling|log_prob|test_enumeration_in": "functions behind the kernels",
        # Exactly, by Gibbs sampling and the prior's ratios: 97.4, 1.94 and .63 % of the posterior are in three labellings, and
        # draws are served by these weights. The mean over 300 draws then has a standard error of .07, data included, around 4.89.
        r"test_gaussian_mixture_model": "asks for a mean over draws of one labelling; here all are served by their weights",
        r"test_arrowhead_mass": "a mass matrix adapter of its own is put into the kernel",
        r"test_singular_matrix_catch": "NUTS' own cache is set by hand, for a potential without a density",
        r"test_model_with_potential_fn": "a potential without a density: it falls without end",
    },
}


def not_applicable(backend: str, test: str) -> str:
    """Why a test does not apply; empty where it does."""
    for pattern, reason in REASONS[backend].items():
        if re.search(pattern, test):
            return reason
    return ""
