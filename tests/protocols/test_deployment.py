"""Rates are chosen on looks of other kinds, by what was earned there."""

import numpy as np

from repjax.protocols import deployment


def test_a_looks_own_kind_counts_for_nothing():
  kinds = ['training', 'light', 'light', 'stripes']
  fails = np.array([[False, True, True, True]])
  # Light likes the first rate, stripes the second.
  tried = np.array([[[9.0, 5.0, 5.0, 1.0]], [[0.0, 1.0, 1.0, 3.0]]])
  chosen = deployment.choose_rates(tried, fails, kinds)
  np.testing.assert_array_equal(chosen, [[0, 1, 1, 0]])
  # A look that does not fail has no say.
  fails = np.array([[False, False, False, True]])
  chosen = deployment.choose_rates(tried, fails, kinds)
  np.testing.assert_array_equal(chosen, [[1, 1, 1, 0]])
