"""One posterior over rows on several devices or processes: what it costs, and what a model of the cost says."""
