"""All benchmarks behind one command: ``python -m benchmarks NAME [options]``; ``python -m benchmarks`` lists them.

``python -m benchmarks NAME --help`` shows the options of one. docs/benchmarks.md says which question each answers.
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "swap": "NUTS against DFT on thirteen real models with known answers",
    "posteriordb": "the same on 36 published posteriors",
    "posteriordb.seeds": "how much the seed matters",
    "posteriordb.rivals": "against guides, Pathfinder, SVGD, NeuTra",
    "posteriordb.check": "do the models agree with the published draws?",
    "geometry": "funnels, bananas, rings, heavy tails, 200 dimensions",
    "modes": "how often are all separate modes found?",
    "sbc": "simulation-based calibration",
    "calibration": "do the diagnostics tell bad fits from good ones?",
    "drift": "how often the drift test flags right draws, and wrong ones",
    "flags": "the diagnostics on densities of many kinds",
    "hostile": "is a fit that says converged ever wrong? random posteriors with exact draws",
    "evidence": "is the evidence right?",
    "cost": "what fits cost against NUTS and others: gradients, CPU seconds, memory, worst errors",
    "objectives": "which objective trains best at equal cost?",
    "objectives.race": "does DFT earn its place where its steps cost no gradient of the model?",
    "suites": "the frameworks' own tests of MCMC with the kernel swapped",
    "examples": "the frameworks' own examples with the kernel swapped, against NUTS",
    "compiled": "what many chains and many data sets cost in NumPyro",
    "many": "what many posteriors cost, and whether each is right",
    "scale": "one posterior over shared rows: what it costs on 1, 2 and 4 devices, predicted and measured",
    "million": "what a million draws, or a million rows, cost",
    "paper": "the experiments of the paper",
    "paper.toy2d.tuning": "training settings of the paper's objective on ten densities",
    "versions": "do small fits work with the oldest and the newest versions?",
    "fingerprint": "do draws stay the same to the bit?",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark, or lists them; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [options]\n")
        width = max(map(len, COMMANDS))
        print("\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()))
        return 0
    name, *options = given
    if name not in COMMANDS:
        print(f"unknown benchmark {name!r}; python -m benchmarks lists them", file=sys.stderr)
        return 2
    sys.argv = [f"benchmarks.{name}", *options]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
