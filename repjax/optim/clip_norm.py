"""Clipping of the whole gradient, as configs name it."""

import optax

from repjax.types import check_range


def clip_norm(limit: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, of which 0 is no clipping.

  Pascanu et al., 'On the difficulty of training recurrent neural networks',
  ICML 2013 (https://arxiv.org/abs/1211.5063).

  Args:
    limit: Largest norm of the gradient of all parameters, >= 0.
  """
  check_range('[0, inf)', clip=limit)
  return optax.clip_by_global_norm(limit) if limit else optax.identity()
