"""Private learning: clip each example, account for the noise, tune privately.

- `clipping`: sums of per-example clipped gradients of any linen model, by
  ghost norms (no gradient of a single example is ever stored) or by `vmap`.
  Inside, `ghost/`: `rules` (one layer), `intercept` (calls of layers),
  `coverage` and `walks` (which parameters have a rule), `taps` (how norms add
  up) and `forms` (in how many passes). `of_batch`: what `grad_fn` asks of it.
- `accounting`: noise <-> epsilon, by Renyi moments over `dp_accounting` and by
  `losses`: what the steps of a run can tell, as one distribution.
- `statements`: what a run may claim.
- `auditing`: how much of the claimed epsilon an attack shows.
- `tuning`: what choosing the best of several private runs costs. Inside,
  `search/`: `laws` (of the number of runs), `tradeoff` (what tests can tell)
  and `costs` (of a search over known candidates).

`repjax.optim.dp_sgd` is the optimizer link, `repjax.data.batches.poisson` the
sampling that the accounting assumes; `repjax.experiments.private` plans a run
of them.
"""
