"""Device code: one layer of BEiT's transformer, and how it starts.

Bao et al., ICLR 2022, and the authors' code.
"""

import dataclasses
import functools
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import activations
from repjax.layers import attention as attention_lib
from repjax.layers import drop_path
from repjax.layers.positions import relative_positions

# Of weights, in pre-training: sigma 0.02, truncated at one sigma already.
_INIT_STDDEV, _INIT_CUT = 0.02, 1.0


def init(scale: float = 1.0, *, cut: float = _INIT_CUT):
  """Initializer of weights: `scale` times a normal cut at `cut` sigma."""
  normal = nn.initializers.truncated_normal(_INIT_STDDEV, lower=-cut, upper=cut)
  return lambda *args: scale * normal(*args)


class Attention(nn.Module):
  """Self-attention with a bias of queries and values, but not of keys.

  A bias of keys adds the same to all scores of a query, which the softmax does
  not see.

  Attributes:
    num_heads: H.
    dropout_rate: Dropout on attention weights.
    out_scale: Of the initial output projection.
    dtype: See `Encoder`, as for `param_dtype`.
  """

  num_heads: int
  _: dataclasses.KW_ONLY
  dropout_rate: float = 0.0
  out_scale: float = 1.0
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array, bias: jax.Array | None, *, train: bool
  ) -> jax.Array:
    """[B, T, D], biases of scores [H, T, T] -> [B, T, D]."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dim = tokens.shape[-1]
    project = functools.partial(
      nn.DenseGeneral,
      (self.num_heads, dim // self.num_heads),
      kernel_init=init(),
      **types,
    )
    rng = None
    if train and self.dropout_rate > 0:
      rng = self.make_rng('dropout')
    output = attention_lib.softmax_attention(
      project(name='query')(tokens),
      project(name='key', use_bias=False)(tokens),
      project(name='value')(tokens),
      bias=bias,
      broadcast_dropout=False,
      dropout_rng=rng,
      dropout_rate=self.dropout_rate,
      deterministic=not train,
      dtype=self.dtype,
      module=self if self.is_mutable_collection('intermediates') else None,
    )
    return nn.DenseGeneral(
      dim,
      axis=(-2, -1),
      kernel_init=init(self.out_scale),
      name='out',
      **types,
    )(output)


class Mlp(nn.Module):
  """Two dense layers with a gelu between, and no dropout there.

  Attributes:
    hidden_dim: Width between the layers.
    out_scale: Of the initial kernel of the second layer.
    gelu: See `Encoder`, as for the rest.
  """

  hidden_dim: int
  _: dataclasses.KW_ONLY
  out_scale: float = 1.0
  gelu: Literal['tanh', 'exact'] = 'exact'
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    hidden = nn.Dense(
      self.hidden_dim, kernel_init=init(), name='hidden', **types
    )(tokens)
    hidden = activations.by_name(f'gelu_{self.gelu}')(hidden)
    return nn.Dense(
      tokens.shape[-1], kernel_init=init(self.out_scale), name='out', **types
    )(hidden)


class Block(nn.Module):
  """A layer that normalises first and scales its branches.

  Sows its result as 'output', where 'intermediates' are mutable.

  Attributes:
    number: 1 for the first block: initial output kernels of both branches are
      divided by sqrt(2 * number).
    num_heads: H.
    mlp_dim: Width inside the MLP.
    relative: Whether the block has a table of relative positions of its own.
    drop_path_rate: Probability that an example skips a branch.
    The others are those of `Encoder`.
  """

  number: int
  _: dataclasses.KW_ONLY
  num_heads: int
  mlp_dim: int
  relative: bool
  layer_scale: float
  dropout_rate: float
  attention_dropout_rate: float
  drop_path_rate: float
  gelu: Literal['tanh', 'exact']
  layer_norm_epsilon: float
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    bias: jax.Array | None,
    grid: tuple[int, int],
    *,
    train: bool,
  ) -> jax.Array:
    """Tokens [B, T, D], biases of scores [H, T, T] -> [B, T, D]."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    norm = functools.partial(
      nn.LayerNorm, epsilon=self.layer_norm_epsilon, **types
    )
    out_scale = (2 * self.number) ** -0.5
    if self.relative:
      bias = relative_positions.RelativePositionBias(
        self.num_heads, self.param_dtype, name='relative_positions'
      )(grid)

    branch = norm(name='attention_norm')(tokens)
    branch = Attention(
      self.num_heads,
      dropout_rate=self.attention_dropout_rate,
      out_scale=out_scale,
      name='attention',
      **types,
    )(branch, bias, train=train)
    tokens = tokens + self._end(branch, 'attention', train=train)

    branch = norm(name='mlp_norm')(tokens)
    branch = Mlp(
      self.mlp_dim,
      out_scale=out_scale,
      gelu=self.gelu,
      name='mlp',
      **types,
    )(branch)
    tokens = tokens + self._end(branch, 'mlp', train=train)
    self.sow('intermediates', 'output', tokens)
    return tokens

  def _end(self, branch, name, *, train):
    """Dropout, layer scale and stochastic depth of a branch."""
    branch = nn.Dropout(
      self.dropout_rate, deterministic=not train, name=f'{name}_dropout'
    )(branch)
    if self.layer_scale:
      scale = self.param(
        f'{name}_scale',
        nn.initializers.constant(self.layer_scale),
        branch.shape[-1:],
        self.param_dtype,
      )
      branch = branch * scale.astype(branch.dtype)
    drop = drop_path.DropPath(self.drop_path_rate, name=f'{name}_drop_path')
    return drop(branch, train=train)
