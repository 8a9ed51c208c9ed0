"""A larger batch fills the same bins, and who shares one is not read."""

import numpy as np

from configs.parts import imprint_batches
from configs.parts import imprint_study
from configs.studies import imprint as study
from repjax.experiments import of_images
from repjax.protocols import side_by_side

SEEDS = (5, 6)


def bench():
  config = study.get_config('smoke')
  data = of_images.read(config)
  rows = side_by_side.rows(data.train, data.recipe.evaluate)
  return imprint_study.Bench(config, data, rows, SEEDS)


def alone(images, trap):
  """Too simple to be wrong: how many share a bin with nobody."""
  bins = [
    sum(float((x.reshape(-1) * trap.direction).sum()) > e for e in edges)
    for x in images
    for edges in [trap.edges[:-1]]
  ]
  return sum(b > 0 and bins.count(b) == 1 for b in bins) / len(images)


def test_recovery_falls_with_the_batch_as_the_oracle_does(monkeypatch):
  asked, read = [], imprint_study.Bench.read

  def noted(self, num_bins, protocol=imprint_study.FEDSGD, **how):
    asked.append((np.dtype(protocol.dtype).name, num_bins, how['num_rows']))
    return read(self, num_bins, protocol, **how)

  monkeypatch.setattr(imprint_study.Bench, 'read', noted)
  made = bench()
  scalars, figures = imprint_batches.measure(made)
  sizes = [1, 2, 4, 8, 16, 32]
  assert imprint_batches.sizes(made.config.study.num_rows) == sizes
  traps = made.traps(made.config.imprint.num_bins)
  images = made.columns(max(sizes))['image']
  found = []
  for size in sizes:
    expected = [
      alone(x[:size], trap) for x, trap in zip(images, traps, strict=True)
    ]
    name = f'batch of {size}: '
    np.testing.assert_allclose(scalars[name + 'alone in their bin'], expected)
    # In float32 a mean of two that are alike may pass for one of them.
    np.testing.assert_allclose(scalars[name + 'recovered'], expected, atol=0.07)
    independent = (1 - 1 / 32) ** (size - 1)
    np.testing.assert_allclose(scalars[name + 'independent'], independent)
    found.append(expected)
  assert found[0] == [1.0, 1.0]
  assert max(found[-1]) < 0.7
  assert scalars['exact_batches'] == [0.0]
  assert asked == [(x, 32, y) for y in sizes for x in ('float32', 'float64')]
  assert set(figures) == {'batches'}
