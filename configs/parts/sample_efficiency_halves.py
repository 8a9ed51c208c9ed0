"""The study of sample efficiency: which half of a Gaussian vector is longer.

Li et al., ICLR 2021. https://arxiv.org/abs/2010.08515
"""

import numpy as np

from configs.parts import sample_efficiency_study as parts
from repjax import plots
from repjax.analysis import sample_efficiency


def task(config, seeds):
  """Accuracy by rows and dimensions: (scalars, figures)."""
  study = config.study
  full_sizes = {
    dim: [round(x * dim**2) for x in study.multiples] for dim in study.dims
  }
  scalars, rates = {}, {}
  for name, grid, sizes in (
    (parts.FULL, study.full_rates, full_sizes[study.gap_dim]),
    (parts.CONV, study.conv_rates, study.conv_sizes),
  ):
    tried = {
      rate: halves(
        config, seeds, name, study.gap_dim, sizes, rate, split='validation'
      ).scores.mean(0)
      for rate in grid
    }
    rates[name] = max(tried, key=lambda rate, tried=tried: tried[rate].mean())
    scalars |= {f'{name}, validation, rate {r:g}': x for r, x in tried.items()}
    scalars[f'{name}, rate'] = np.full(len(seeds), rates[name])
  full, conv = (
    {
      dim: halves(config, seeds, name, dim, sizes[dim], rates[name])
      for dim in study.dims
    }
    for name, sizes in (
      (parts.FULL, full_sizes),
      (parts.CONV, dict.fromkeys(study.dims, study.conv_sizes)),
    )
  )
  at = full[study.gap_dim]
  some = conv[study.gap_dim]
  conv_at_32 = some.scores[some.sizes == 32][0]
  first, last = full[study.dims[0]], full[study.dims[-1]]
  low, middle, high = last.scores - first.scores
  scalars |= {
    'gap': conv_at_32 - at.scores[0],
    'full_fits': at.fitted[0],
    'full_rises': at.scores[-1] - at.scores[0],
    'conv_accuracy': conv_at_32,
    'full_accuracy': at.scores[0],
    'full_exponent': exponents(full, study.accuracy),
    'conv_exponent': exponents(conv, study.accuracy),
    'collapse_low': low,
    'collapse_middle': middle,
    'collapse_high': high,
    'collapse_spread': [
      float(sample_efficiency.collapse([*full.values()]).max())
    ],
    **scores(parts.FULL, full),
    **scores(parts.CONV, conv),
  }
  return scalars, {
    'rows_over_squared_dimension': plots.seed_curves(
      {
        f'D = {dim}': (np.log2(study.multiples), x.scores)
        for dim, x in full.items()
      },
      xlabel='log2(rows / D^2)',
      ylabel='test accuracy, fully connected',
    ),
    'rows': plots.seed_curves(
      {
        f'{name}, D = {dim}': (np.log2(x[dim].sizes), x[dim].scores)
        for name, x in ((parts.CONV, conv), (parts.FULL, full))
        for dim in (study.dims[0], study.dims[-1])
      },
      xlabel='log2(rows)',
      ylabel='test accuracy',
    ),
  }


def halves(config, seeds, network, dim, sizes, rate, *, split='test'):
  """`sample_efficiency.curve` of which half is longer."""
  config = config.copy_and_resolve_references()
  config.data.update(kind='halves', dim=dim, eval_splits=(split,))
  config.num_rows.train = parts.POOL * max(sizes)
  full = network == parts.FULL
  config.network = 'fully_connected' if full else 'pooled_conv'
  config.fully_connected.width = 2 * dim
  return parts.curve(config, seeds, f'{network}, D = {dim}', sizes, rate)


def exponents(curves, accuracy) -> np.ndarray:
  """Exponent of D in the rows that are needed, one a seed; NaN if none."""
  rows = np.stack(
    [sample_efficiency.needed(x, accuracy) for x in curves.values()], 1
  )
  return np.asarray(
    [
      sample_efficiency.power_law([*curves], x).exponent
      if np.isfinite(x).all()
      else np.nan
      for x in rows
    ]
  )


def scores(name, curves) -> dict[str, np.ndarray]:
  """Test accuracies for RESULTS."""
  return {
    f'{name}, D = {dim}, {size} rows': row
    for dim, x in curves.items()
    for size, row in zip(x.sizes, x.scores, strict=True)
  }
