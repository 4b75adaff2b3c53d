"""Bayesian logistic regression on Covertype (arXiv 2411.01453, Figure 4 and Table 3), trained on minibatches."""
