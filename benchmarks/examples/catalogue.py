"""Which examples of NumPyro's and Pyro's repositories are run, and with which of their own options.

Only names and options stand here. Where an example takes long, its own options make it smaller, and where it has none, a number
in its text is replaced, for both kernels. So is what today's jax, scikit-learn or NumPyro no longer knows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One program of theirs.

    Attributes:
        path: File in the repository: a script, a notebook, or `file.py::Class` for the example in a docstring.
        arguments: What a script is called with.
        replaced: Pairs of texts: each first one, which must be there, becomes the second.
        until: Text, which must be there, from which on it is not run: the rest is about something else.
        smoke: Whether it sees `CI`, which makes tutorials short.
        note: What a reader of the table should know.
    """

    path: str
    arguments: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    until: str = ""
    smoke: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """Path and options."""
        return " ".join((self.path, *self.arguments))


_LABELS = "labels may be exchanged: NUTS stays in one labelling"
_MADE = "data made at the size of the real ones"
_OLD = "what today's packages no longer know is left out"

_SHORT = ("-n", "500", "--num-warmup", "500")

# The cheap ones first: whoever stops early has most of them.
NUMPYRO = (
    Example("examples/ucbadmit.py", _SHORT),
    Example("examples/funnel.py"),
    Example("examples/ar2.py", _SHORT),
    Example("examples/gp.py", _SHORT),
    Example("examples/holt_winters.py", _SHORT),
    Example("examples/var2.py", _SHORT),
    Example(
        "examples/zero_inflated_poisson.py",
        (*_SHORT, "--maxiter", "1000"),
        replaced=((".to_py()", ""), (", squared=False", "")),
        note=f"{_MADE}; {_OLD}",
    ),
    Example("examples/hmm.py", _SHORT),
    Example("examples/capture_recapture.py", ("-m", "1", *_SHORT), note=_MADE),
    Example("examples/sparse_regression.py", _SHORT),
    Example("examples/horseshoe_regression.py", _SHORT),
    Example("examples/gaussian_shells.py", ("--enum", "-n", "1000"), note="imports jaxns"),
    Example("examples/neutra.py", ("--num-iters", "500", "-n", "1000")),
    Example("examples/bnn.py", _SHORT, note=_LABELS),
    Example("examples/baseball.py", _SHORT, note="four models"),
    Example("examples/proportion_test.py"),
    Example("notebooks/source/gmm.ipynb", note=_LABELS),
    Example("notebooks/source/ordinal_regression.ipynb", note="four models"),
    Example("notebooks/source/discrete_imputation.ipynb", note="five models"),
    Example("notebooks/source/bayesian_regression.ipynb", note=_MADE),
    Example(
        "notebooks/source/variationally_inferred_parameterization.ipynb",
        replaced=(("svi.run(rng_key, 10000)", "svi.run(rng_key, 2000)"),),
        note=_MADE,
    ),
    Example("notebooks/source/bad_posterior_geometry.ipynb"),
    Example(
        "notebooks/source/truncated_distributions.ipynb",
        replaced=(
            (
                ", TruncatedNormal(loc, scale, high=high)",
                ", TruncatedNormal(loc, scale, high=high, validate_args=False)",
            ),
            (
                "        high=high,\n        validate_args=validate_args,",
                "        high=high,\n        validate_args=False,",
            ),
        ),
        until="def scipy_truncated_poisson_icdf",
        note=f"{_OLD}; four models, without the discrete one",
    ),
    Example("examples/annotation.py", ("--model", "mn", *_SHORT)),
    Example("examples/annotation.py", ("--model", "hds", *_SHORT)),
    Example("examples/hmm_enum.py", ("-m", "1", "--num-sequences", "5", "-t", "10", "-n", "200"), note=_MADE),
    Example("examples/ssbvm_mixture.py", ("--device", "cpu", "--amino-acids", "S", "-n", "300"), note=_MADE),
    Example("examples/ode.py", ("-n", "300", "--num-warmup", "300")),
    Example("examples/capture_recapture.py", ("-m", "4", *_SHORT), note=_MADE),
    Example("examples/mortality.py", note=_MADE),
    Example("examples/baseball.py", ("--algo", "HMC", *_SHORT), note="four models"),
)

_FEWER = ("--num-samples", "300", "--warmup-steps", "200")
_EPIDEMIC = ("-w", "50", "-n", "100", "-d", "20", "--nojit")

PYRO = (
    Example("pyro/infer/mcmc/hmc.py::HMC"),
    Example("pyro/infer/mcmc/nuts.py::NUTS"),
    Example("pyro/contrib/gp/models/model.py::GPModel"),
    Example("tutorial/source/jit.ipynb", smoke=True),
    Example("tutorial/source/prodlda.ipynb", until="from sklearn.datasets import fetch_20newsgroups"),
    Example("tutorial/source/gmm.ipynb", smoke=True, note=_LABELS),
    Example("tutorial/source/bayesian_regression_ii.ipynb", smoke=True),
    Example("tutorial/source/predictive_deterministic.ipynb"),
    Example("examples/eight_schools/mcmc.py", _FEWER),
    Example("examples/lkj.py", ("--num-samples", "200", "--warmup-steps", "200", "--num-chains", "1")),
    Example("examples/neutra.py", ("--num-steps", "300", "--num-samples", "300", "--num-warmup", "200")),
    Example("examples/baseball.py", ("--num-chains", "1"), note="four models"),
    Example("examples/sir_hmc.py", ("-w", "50", "-n", "100", "--sequential")),
    Example("examples/sir_hmc.py", ("-w", "50", "-n", "100", "-p", "6", "-d", "6", "--enum")),
    Example("examples/contrib/epidemiology/sir.py", _EPIDEMIC),
    Example("examples/contrib/epidemiology/regional.py", ("-w", "50", "-n", "100", "-d", "10", "--nojit")),
    Example(
        "tutorial/source/epi_intro.ipynb",
        replaced=(("num_samples=4 if", "num_samples=100 if"),),
        smoke=True,
    ),
    Example("examples/contrib/epidemiology/sir.py", (*_EPIDEMIC, "--haar")),
    Example("examples/sir_hmc.py", ("-w", "50", "-n", "100")),
)

EXAMPLES = {"numpyro": NUMPYRO, "pyro": PYRO}
