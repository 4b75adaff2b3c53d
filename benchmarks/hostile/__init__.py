"""Random hostile posteriors whose exact draws are known: is a fit that says `converged` ever wrong?"""
