"""Private learning: clip each example, account for the noise, tune privately.

- `clipping`: sums of per-example clipped gradients of any linen model, by
  ghost norms (no gradient of a single example is ever stored) or by `vmap`.
  Its parts: `norms` (one layer), `intercept` (calls of layers), `coverage`
  (which parameters have a rule) and `taps` (how norms add up).
- `accounting`: noise <-> epsilon, over `dp_accounting`.
- `tuning`: what choosing the best of several private runs costs.

`repjax.optim.dp_sgd` is the optimizer link, `repjax.data.batches.poisson` the
sampling that the accounting assumes; `repjax.experiments.private` plans a run
of them.
"""
