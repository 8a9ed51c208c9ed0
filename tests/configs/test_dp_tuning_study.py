"""The price of a search: what is compared is what is named."""

import numpy as np

from configs.studies import dp_tuning as study
from repjax.privacy import accounting
from repjax.privacy import tuning


def test_a_numeric_bound_that_is_too_large_is_seen(monkeypatch):
  orders = np.arange(2.0, 64.0)
  curve = accounting.RdpCurve(orders, 0.01 * orders)
  theorem = tuning.rdp_by_theorem

  def doubled(run, law, power):
    del power
    orders, epsilons = theorem(run, law)
    return accounting.RdpCurve(orders, 2 * epsilons)

  monkeypatch.setattr(tuning, 'rdp_by_lemma', doubled)
  scalars, _ = study._prices(study.get_config('smoke'), curve)
  assert scalars['lemma_over_theorem'][0] > 1
