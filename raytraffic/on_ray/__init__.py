"""The only package that imports ray: preparation, training, evaluation and forecasting on a cluster."""
