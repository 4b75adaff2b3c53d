"""Do draws stay the same to the bit? ``python -m benchmarks.fingerprint --store``, change code, ``--check``.

For a change that only moves code: each of ten models is fitted in both frameworks with short settings, and the bits of its
kept, new and raw draws are hashed. Hashes hold for one machine and one set of installed versions, so they are kept in
the cache and not in the repository.
"""

from __future__ import annotations

from benchmarks import one_thread as one_thread

# isort: split
import argparse
import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models.registry import BENCHMARKS
from pyro_dft.experimental import grouped

STORE = Path(__file__).resolve().parent / ".cache" / "fingerprint.json"
MODELS = (
    "breast_cancer", "eight_schools_centered", "eight_schools_noncentered", "baseball", "mixture", "lkj_iris",
    "varying_slopes", "ark", "negbin_linnerud", "horseshoe_diabetes",
)  # fmt: skip
SHORT: dict[str, Any] = {"num_steps": 60, "num_draws": 400, "precondition_steps": 60, "max_refine_steps": 8}
# Settings beside the short ones, model by model in turn, so that several roads are taken.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"train": "always", "dft_fraction": 0.5},
    {"num_chains": 2, "train": "always"},
    {"objective": "kl", "modes": "never"},
    {"train": "never"},
)


def fingerprint(framework: str, model: str, options: dict[str, Any]) -> str:
    """Hash of the draws of one fit."""
    case = BENCHMARKS[model]
    if framework == "pyro":
        import pyro

        from pyro_dft import DFT

        pyro.set_rng_seed(0)
        function, args = case.pyro()
        dft: Any = DFT(function, seed=1, disable_progbar=True, **grouped(options))
        dft.run(*args)
    else:
        import jax

        from pyro_dft.numpyro import DFT as NumPyroDFT

        function, args = case.numpyro()
        dft = NumPyroDFT(function, disable_progbar=True, **grouped(options))
        dft.run(jax.random.key(1), *args)
    digest = hashlib.sha256()
    for draws in (dft.get_samples(), dft.get_samples(50), dft.get_samples(50, refine_steps=0)):
        for name in sorted(draws):
            digest.update(np.ascontiguousarray(np.asarray(draws[name])).tobytes())
    return digest.hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    """Stores or checks the hashes; returns the number of fits that differ."""
    parser = argparse.ArgumentParser(prog="benchmarks.fingerprint", description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--store", action="store_true", help="fit and keep the hashes")
    action.add_argument("--check", action="store_true", help="fit and compare")
    parser.add_argument("--backend", choices=("pyro", "numpyro"), help="one of the two only")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, default all ten")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    kept = json.loads(STORE.read_text()) if STORE.exists() else {}
    different = 0
    for framework in (options.backend,) if options.backend else ("pyro", "numpyro"):
        for model in options.models.split(","):
            variant = VARIANTS[MODELS.index(model) % len(VARIANTS)]
            name, found = f"{framework} {model}", fingerprint(framework, model, {**SHORT, **variant})
            same = kept.get(name) == found
            if options.store:
                kept[name] = found
            else:
                different += not same
            print(
                name, found, "" if options.store or same else f"DIFFERENT from {kept.get(name)}", flush=True
            )
    if options.store:
        STORE.parent.mkdir(exist_ok=True)
        STORE.write_text(json.dumps(kept, indent=1, sort_keys=True))
    return different


if __name__ == "__main__":
    sys.exit(main())
