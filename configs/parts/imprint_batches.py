"""Recovery against the number of rows in a gradient, bins as they are.

Fowl et al., ICLR 2022 (https://arxiv.org/abs/2110.13057), section 3: images
that share a bin come out as their mean, so what is recovered falls with the
batch as the share of images that are alone does.
"""

import numpy as np

from configs.parts import imprint_study
from repjax import plots

# Of the study's rows: an eighth of them to four times as many.
_PARTS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)


def sizes(num_rows: int) -> list[int]:
  """Batches around `num_rows`, of one row at least.

  >>> sizes(64)
  [8, 16, 32, 64, 128, 256]
  """
  return sorted({max(1, round(num_rows * x)) for x in _PARTS})


def measure(bench: imprint_study.Bench):
  """Scalars and figures; the oracle beside what is recovered."""
  config = bench.config
  num_bins, at = config.imprint.num_bins, sizes(config.study.num_rows)
  scalars, curves, gaps = {}, {}, []
  for num_rows in at:
    scored = bench.read(num_bins, num_rows=num_rows)
    found = imprint_study.beside_formulas(scored, num_rows, num_bins)
    for name, x in found.items():
      scalars[f'batch of {num_rows}: {name}'] = x
      curves.setdefault(name, []).append(x)
    gaps.append(imprint_study.exactly(bench, num_rows))
  scalars['exact_batches'] = [max(gaps)]
  drawn = plots.seed_curves(
    {name: (np.asarray(at), np.stack(x)) for name, x in curves.items()},
    xlabel='images in the batch',
    ylabel=f'share of them, {num_bins} bins',
  )
  return scalars, {'batches': drawn}
