"""Numbers of the recipe that both engines use."""

# Gaussian phase

# Above this dimension a full matrix costs more than it gives: scales only.
FULL_RANK_LIMIT = 300
# Above this one only scales are fitted until all restarts have settled, and the full matrix from there.
SCALES_FIRST = 50
# The last steps average noise out, at a rate that falls as k^-0.7: this many steps, or with minibatches this share of all.
AVERAGING = 8
AVERAGING_SHARE = 0.27
# Evaluations times data rows that the final estimate of the evidence bound, on the full data, may use.
EVIDENCE_ROWS = 4e7
# A standard deviation beyond this means a direction without a proper density: the restart stops there.
MAX_SD = 1e12
# A restart has settled when it has not moved by more than noise for this many steps; the second figure is for where the noise
# of a step is not known (minibatches, compiled functions).
CALM_STEPS, LONG_CALM = 3, 15
# After a fit to minibatches: most steps on the full data, and how many steps without movement end them.
POLISH_STEPS, POLISH_CALM = 30, 4
LEAST_POLISH = 6

# Networks

# b1 = 0.5 for the score network lets it follow the moving sampler.
SCORE_BETAS = (0.5, 0.99)
GENERATOR_BETAS = (0.9, 0.99)
MAX_GRADIENT_NORM = 10.0
# In the last share of the KL phase the generator moves slowly (its rate times the first number at most) and the score network
# catches up with it (its rate times the second): better in few dimensions, where it costs nothing (docs/experiments.md).
SETTLING_RATE = 1 / 30
SETTLING_SCORE = 0.3
# A learned sigma is kept above this: the eps / sigma term has variance of order 1 / sigma^2.
MIN_SIGMA = 0.02
# Through how many of a point's target scores the generator's gradient runs, by objective: there are two where the model
# subsamples its data, from two minibatches.
DIFFERENTIATED = {"kl": 0, "fisher-partial": 1, "dft": 2, "dft-paper": 2}
# Draws for each chain on which minibatch noise is measured, with and without a control variate.
ANCHOR_DRAWS = 64

# Refinement

TARGET_ACCEPTANCE = 0.8
# As in NUTS: an energy error beyond this is a divergence.
MAX_ENERGY_ERROR = 1000.0
# The step size is tuned on this many draws at most, over this many transitions.
TUNING_DRAWS = 200
TUNING_STEPS = 15
# The search for the number of transitions that draws need starts with this many.
FIRST_STEPS = 2


def pairs(dim: int) -> int:
    """Antithetic pairs of draws for each restart in an averaging step of the Gaussian phase, and with minibatches in any."""
    return max(32, 2 * dim) if dim <= FULL_RANK_LIMIT else 64


def fitting_pairs(dim: int, full: bool) -> int:
    """Antithetic pairs in steps before the averaging, which need a direction only: enough for a regression on all coordinates.

    Args:
        dim: d.
        full: Whether whole matrices are fitted.
    """
    if full:
        return 6 + dim
    return 16 if dim <= FULL_RANK_LIMIT else 8


def averaging_steps(steps: int, minibatch: bool) -> int:
    """How many of at most `steps` steps average at the end."""
    return round(AVERAGING_SHARE * steps) if minibatch else min(AVERAGING, max(1, steps // 4))


# Particles

# Most transitions in one compiled call.
BLOCK_STEPS = 16
# Where transitions that end at a finite density are accepted with more than this probability, those that end where it is not
# finite do not make the step size smaller: they cross a boundary, which small steps cross as well.
FINE = 0.9

# Surrogate scores

# Rows in each step of the surrogate's fit, and Adam's first learning rate.
SURROGATE_BATCH, SURROGATE_RATE = 256, 3e-3
# Steps of the first fit, and of each later one that goes on with a few more points.
SURROGATE_STEPS, SURROGATE_MORE = 2000, 500
