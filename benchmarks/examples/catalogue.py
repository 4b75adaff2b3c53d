"""Which examples of NumPyro's and Pyro's repositories are run, and with which of their own options.

Only names and options stand here. Where an example takes long, its own options make it smaller, and where it has none, a number in
its text is replaced, for both kernels.
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

NUMPYRO = (
    Example("examples/annotation.py", ("--model", "mn"), note="marginalised classes"),
    Example("examples/annotation.py", ("--model", "hds")),
    Example("examples/ar2.py"),
    Example("examples/ar2.py", ("--unroll-loop",)),
    Example("examples/baseball.py", note="four models"),
    Example("examples/baseball.py", ("--algo", "HMC"), note="four models"),
    Example("examples/bnn.py", note=_LABELS),
    Example("examples/capture_recapture.py", ("-m", "1"), note=_MADE),
    Example("examples/capture_recapture.py", ("-m", "4"), note=_MADE),
    Example("examples/funnel.py"),
    Example("examples/gaussian_shells.py", ("--enum", "-n", "2000")),
    Example("examples/gp.py"),
    Example("examples/hmm.py"),
    Example("examples/hmm_enum.py", ("-m", "1", "--num-sequences", "5", "-t", "10", "-n", "200"), note=_MADE),
    Example("examples/holt_winters.py"),
    Example("examples/horseshoe_regression.py", ("--num-samples", "500")),
    Example("examples/mortality.py", note=_MADE),
    Example("examples/neutra.py", ("--num-iters", "1000")),
    Example("examples/ode.py"),
    Example("examples/proportion_test.py"),
    Example("examples/sparse_regression.py"),
    Example("examples/ssbvm_mixture.py", ("--device", "cpu", "--amino-acids", "S", "-n", "300"), note=_MADE),
    Example("examples/ucbadmit.py"),
    Example("examples/var2.py"),
    Example("examples/zero_inflated_poisson.py"),
    Example("notebooks/source/bad_posterior_geometry.ipynb"),
    Example("notebooks/source/bayesian_regression.ipynb", note=_MADE),
    Example("notebooks/source/discrete_imputation.ipynb"),
    Example("notebooks/source/gmm.ipynb", note=_LABELS),
    Example("notebooks/source/ordinal_regression.ipynb"),
    Example("notebooks/source/truncated_distributions.ipynb"),
    Example(
        "notebooks/source/variationally_inferred_parameterization.ipynb",
        replaced=(("svi.run(rng_key, 10000)", "svi.run(rng_key, 2000)"),),
        note=_MADE,
    ),
)

_FEWER = ("--num-samples", "200", "--warmup-steps", "200", "--num-chains", "1")

PYRO = (
    Example("examples/baseball.py", ("--num-chains", "1"), note="four models"),
    Example("examples/eight_schools/mcmc.py"),
    Example("examples/lkj.py", _FEWER),
    Example("examples/neutra.py", ("--num-steps", "500", "--num-samples", "300", "--num-warmup", "200")),
    Example("examples/sir_hmc.py", ("-w", "50", "-n", "100")),
    Example("examples/sir_hmc.py", ("-w", "50", "-n", "100", "--enum")),
    Example("examples/contrib/epidemiology/sir.py", ("-w", "50", "-n", "100", "-d", "10", "--nojit")),
    Example("examples/contrib/epidemiology/sir.py", ("-w", "50", "-n", "100", "-d", "10", "--haar", "--nojit")),
    Example("examples/contrib/epidemiology/regional.py", ("-w", "50", "-n", "100", "-d", "10", "--nojit")),
    Example("tutorial/source/bayesian_regression_ii.ipynb", smoke=True),
    Example(
        "tutorial/source/epi_intro.ipynb",
        replaced=(("num_samples=4 if", "num_samples=100 if"),),
        smoke=True,
    ),
    Example("tutorial/source/gmm.ipynb", smoke=True, note=_LABELS),
    Example("tutorial/source/jit.ipynb", smoke=True),
    Example("tutorial/source/predictive_deterministic.ipynb"),
    Example("tutorial/source/prodlda.ipynb", until="from sklearn.datasets import fetch_20newsgroups"),
    Example("pyro/infer/mcmc/hmc.py::HMC"),
    Example("pyro/infer/mcmc/nuts.py::NUTS"),
    Example("pyro/contrib/gp/models/model.py::GPModel"),
)

EXAMPLES = {"numpyro": NUMPYRO, "pyro": PYRO}
