"""Rules that choose rates."""

import numpy as np

from repjax.protocols import rate_search


def test_noise_never_chooses_a_larger_rate():
  scores = np.asarray([[0.70, 0.90], [0.86, 0.88], [0.90, 0.92], [0.50, 0.90]])
  # The highest mean is 0.91, its standard error 0.01.
  assert rate_search.one_standard_error(scores) == 2
  assert rate_search.one_standard_error(scores + [[0], [0.035], [0], [0]]) == 1
  assert rate_search.one_standard_error(scores[:, :1]) == 2


def test_the_best_mean_is_chosen_and_of_equal_ones_the_smaller_rate():
  scores = np.asarray([[0.0, 0.4], [0.9, 0.1], [0.3, 0.7], [0.0, 0.9]])
  assert rate_search.best_mean(scores) == 1
  assert rate_search.best_mean(scores[[0, 3]]) == 1
