"""What users of `numpyro.infer.MCMC` write by habit."""

from __future__ import annotations

from typing import Any

from pyro_dft.interface.mcmc_verdict import verdict_line
from pyro_dft.judging.summary import Summary
from pyro_dft.numpyro.pure import PureTraining


class Habits(PureTraining):
    """The calls of MCMC that differ from Pyro's."""

    def get_samples(
        self,
        num_samples: int | bool | None = None,
        group_by_chain: bool = False,
        *,
        refine_steps: int | None = None,
    ) -> dict[str, Any]:
        """Posterior draws of all latent and deterministic sites, constrained, as `MCMC.get_samples`.

        Args:
            num_samples: Draws over all chains, or for each chain with `group_by_chain`. None returns the draws that the fit kept
                (`num_draws` in the settings, refined): the same at each call. A number makes new ones, up to `refine_limit`
                (20,000) refined. True or False is taken for `group_by_chain`, which comes first in NumPyro's MCMC.
            group_by_chain: Whether to keep a leading chain dimension.
            refine_steps: HMC transitions for each new draw; 0 gives raw ones. None takes the number that the fit
                found, or raw draws above `refine_limit`.

        Returns:
            Site name -> array of shape (num_samples, *site), or (num_chains, num_samples, *site).

        Raises:
            NotFittedError: before `run`.
            ValueError: `num_samples` or `refine_steps` is not a positive integer (0 is allowed for the latter).
            MemoryError: there is no room for so many draws.

        Example:
            >>> tuple(dft.get_samples(True)["mu"].shape)
            (1, 4000)
            >>> tuple(dft.get_samples(10)["mu"].shape)  # new ones, refined
            (10,)
        """
        if isinstance(num_samples, bool) and not group_by_chain:
            return super().get_samples(None, num_samples, refine_steps=refine_steps)
        return super().get_samples(num_samples, group_by_chain, refine_steps=refine_steps)

    def print_summary(self, prob: float = 0.9, exclude_deterministic: bool = True) -> None:
        """Prints the table of `summary`, as `MCMC.print_summary`.

        Args:
            prob: Mass of the interval that is shown.
            exclude_deterministic: Whether to leave out sites that the latent ones determine.

        Raises:
            NotFittedError: before `run`.

        Example:
            >>> dft.print_summary()  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
                mean  std  median  5.0%  95.0%  n_eff  r_hat  mcse  approx_error
            mu  ...
        """
        table = self.summary_table(prob)
        latent = set(self._layout().names)
        shown = {
            name: own for name, own in table.sites.items() if name in latent or not exclude_deterministic
        }
        print(Summary(shown, table.prob))
        print(verdict_line([self._report], "diagnostics()"))
