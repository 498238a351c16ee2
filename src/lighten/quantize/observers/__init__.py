"""Range observers, one file each; importing this package enters them into the registry.

An observer is made from its config, sees every calibration batch of one tensor through `observe(x)`, and answers
`range()`, the (low, high) that codes should span. Its memory does not grow with the number of batches.
"""

from lighten.quantize.observers import entropy, mean_std, minmax, mse, percentile

__all__ = ["entropy", "mean_std", "minmax", "mse", "percentile"]
