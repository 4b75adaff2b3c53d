"""One model, many data sets: a posterior and a verdict for each of them. Written once over both front doors."""
