"""Which parameters decay.

As in BEiT (Bao et al., ICLR 2022, https://arxiv.org/abs/2106.08254) and the
authors' code, after ViT's in PyTorch.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from repjax import trees
from repjax import types


def weight_decay_mask(
  params: types.PyTree,
  *,
  exempt: Collection[str] = ('bias', 'scale', 'cls', 'positions'),
) -> types.PyTree:
  """Which parameters decay: not vectors, biases and the names of `exempt`.

  For `mask` of `optax.adamw`. By name and not by shape alone, because a bias
  of attention has an axis of heads, and under `nn.scan` scales of norms have
  one of layers.

  Args:
    params: Parameters.
    exempt: Parts of paths. By default those of the authors: all biases, the
      class token, and absolute positions. Their tables of relative positions
      decay unless 'relative_positions' is here.

  Returns:
    A tree of booleans.
  """
  leaves = trees.flatten(params)
  return jax.tree.unflatten(
    jax.tree.structure(params),
    [
      jnp.ndim(leaf) > 1 and not set(path) & set(exempt)
      for path, leaf in leaves.items()
    ],
  )
