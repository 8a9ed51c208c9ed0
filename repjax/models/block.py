"""Device code: the layer that ViT, BEiT and models over tokens are made of.

Attention, attention to another sequence, MLP (Vaswani et al., 'Attention Is All
You Need', NeurIPS 2017, https://arxiv.org/abs/1706.03762). What ViT, BEiT and
models over tokens have each for themselves are fields of `BlockConfig`.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import activations
from repjax.layers import attention
from repjax.layers import drop_path
from repjax.layers.attention import multi_head
from repjax.layers.attention import signature
from repjax.types import check_choice
from repjax.types import check_range

Init = Callable[..., jax.Array]


class DropoutNames(NamedTuple):
  """Names of dropout layers: the masks of a seed depend on them.

  Attributes:
    attention: After attention.
    hidden: Inside of the MLP.
    out: After the MLP, inside of its scope; None has it outside, 'mlp_dropout'.
  """

  attention: str = 'attention_dropout'
  hidden: str = 'dropout'
  out: str | None = None


_NAMES = DropoutNames()
_NORMAL = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
  """What a block is.

  Attributes:
    mlp_dim: Width inside the MLP.
    num_heads: H, a divisor of the tokens' width.
    norm: 'pre' normalises what a branch reads (GPT-2, ViT), 'post' the sum
      after it (Vaswani et al., BERT, BART).
    activation: Of the MLP, by its name in `layers.activations`.
    dropout_rate: Dropout after every branch.
    attention_dropout_rate: Dropout on attention weights.
    activation_dropout_rate: Dropout on hidden units of the MLP.
    drop_path_rate: Probability that an example skips a branch.
    layer_scale: Initial factor of every channel of a branch (Touvron et al.,
      'Going Deeper with Image Transformers', https://arxiv.org/abs/2103.17239);
      0 for no such parameters.
    attention_fn: Attention like `nn.dot_product_attention`.
    cross_attention_fn: Attention to another sequence; None has none.
    rotary: Whether self-attention rotates queries and keys.
    key_bias: Whether keys have a bias.
    own_bias: Called inside of the block, whose parameters it makes: what is
      added to scores in the place of the caller's `bias`, [H, L, L].
    layer_norm_epsilon: Added to variances.
    kernel_init: Initial kernels.
    out_kernel_init: Those of the last layers of branches; None means
      `kernel_init`.
    hidden_kernel_init: Of the first layer of the MLP; None means `kernel_init`.
    mlp_bias_init: Initial biases of the MLP; others are 0.
    dropout_names: What the dropout layers are called.
    dtype: Type of the computation; None infers it from input and parameters.
      Statistics of norms and the softmax are float32 in any case.
    param_dtype: Type of the parameters.
  """

  mlp_dim: int
  num_heads: int
  norm: Literal['pre', 'post'] = 'pre'
  activation: str = 'gelu_tanh'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  activation_dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  layer_scale: float = 0.0
  attention_fn: signature.AttentionFn = attention.softmax_attention
  cross_attention_fn: signature.AttentionFn | None = None
  rotary: bool = False
  key_bias: bool = True
  own_bias: Callable[[], jax.Array] | None = None
  layer_norm_epsilon: float = 1e-5
  kernel_init: Init = _NORMAL
  out_kernel_init: Init | None = None
  hidden_kernel_init: Init | None = None
  mlp_bias_init: Init = nn.initializers.zeros
  dropout_names: DropoutNames = _NAMES
  dtype: Any = None
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    check_choice('norm', self.norm, ('pre', 'post'))
    check_range('[1, inf)', mlp_dim=self.mlp_dim, num_heads=self.num_heads)
    check_range(
      '[0, 1)',
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      activation_dropout_rate=self.activation_dropout_rate,
      drop_path_rate=self.drop_path_rate,
    )
    check_range(
      '[0, inf)',
      layer_scale=self.layer_scale,
      layer_norm_epsilon=self.layer_norm_epsilon,
    )

  @property
  def types(self) -> dict[str, Any]:
    """The fields of linen's layers that are types."""
    return dict(dtype=self.dtype, param_dtype=self.param_dtype)

  def repeat(self, num_layers: int) -> list['BlockConfig']:
    """One config a layer, of which `drop_path_rate` rises linearly from 0."""
    check_range('[1, 10000]', num_layers=num_layers)
    rate = self.drop_path_rate
    return [
      dataclasses.replace(
        self, drop_path_rate=rate * i / max(num_layers - 1, 1)
      )
      for i in range(num_layers)
    ]


class BlockState(NamedTuple):
  """Decoding states of one block.

  Attributes:
    attention: What the block's `attention_fn.init_state` makes.
    cross: `multi_head.CrossState`, or () where there is no other sequence.
  """

  attention: Any
  cross: Any


class _Configured(nn.Module):
  """A layer with a config, and with the types that adapters ask layers for."""

  config: BlockConfig

  @property
  def dtype(self) -> Any:
    return self.config.dtype

  @property
  def param_dtype(self) -> Any:
    return self.config.param_dtype


class Mlp(_Configured):
  """Two dense layers with an activation between."""

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
    """[B, L, D] -> [B, L, D]."""
    config = self.config
    names = config.dropout_names
    dense = functools.partial(
      nn.Dense, bias_init=config.mlp_bias_init, **config.types
    )
    drop = functools.partial(nn.Dropout, deterministic=not train)
    hidden = dense(
      features=config.mlp_dim,
      kernel_init=config.hidden_kernel_init or config.kernel_init,
      name='hidden',
    )(tokens)
    hidden = activations.by_name(config.activation)(hidden)
    hidden = drop(config.activation_dropout_rate, name=names.hidden)(hidden)
    output = dense(
      features=tokens.shape[-1],
      kernel_init=config.out_kernel_init or config.kernel_init,
      name='out',
    )(hidden)
    if names.out is not None:
      output = drop(config.dropout_rate, name=names.out)(output)
    return output


class Block(_Configured):
  """One layer of a transformer.

  Sows its result as 'output', and the attentions' 'attention_weights', where
  the caller makes 'intermediates' mutable.
  """

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    context: jax.Array | None = None,
    *,
    train: bool,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    context_mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    max_length: int | None = None,
    state: BlockState | None = None,
    drop_path_rate: jax.Array | None = None,
  ) -> tuple[jax.Array, BlockState]:
    """Arguments as in `multi_head.MultiHeadAttention`.

    `drop_path_rate`, a scalar, stands in for that of the config.

    Returns:
      (output [B, L, D], decoding states).
    """
    config = self.config
    state = BlockState(None, None) if state is None else state
    if config.own_bias is not None:
      bias = config.own_bias()

    def residual(name, fn, x, dropout):
      """Computes x + fn(norm(x)), or norm(x + fn(x))."""
      norm = nn.LayerNorm(
        config.layer_norm_epsilon, name=f'{name}_norm', **config.types
      )
      branch, new_state = fn(norm(x) if config.norm == 'pre' else x)
      if dropout is not None:
        branch = nn.Dropout(
          config.dropout_rate, deterministic=not train, name=dropout
        )(branch)
      if config.layer_scale:
        scale = self.param(
          f'{name}_scale',
          nn.initializers.constant(config.layer_scale),
          branch.shape[-1:],
          config.param_dtype,
        )
        scale = scale.reshape((1,) * (branch.ndim - 1) + (-1,))
        branch = branch * scale.astype(branch.dtype)
      drop = drop_path.DropPath(config.drop_path_rate, name=f'{name}_drop_path')
      x = x + drop(branch, train=train, rate=drop_path_rate)
      return (x if config.norm == 'pre' else norm(x)), new_state

    attend = functools.partial(
      multi_head.MultiHeadAttention,
      config.num_heads,
      dropout_rate=config.attention_dropout_rate,
      key_bias=config.key_bias,
      kernel_init=config.kernel_init,
      out_kernel_init=config.out_kernel_init,
      **config.types,
    )
    self_attention = attend(
      attention_fn=config.attention_fn, rotary=config.rotary, name='attention'
    )
    tokens, own_state = residual(
      'attention',
      lambda x: self_attention(
        x,
        train=train,
        bias=bias,
        mask=mask,
        segments=segments,
        positions=positions,
        max_length=max_length,
        state=state.attention,
      ),
      tokens,
      config.dropout_names.attention,
    )

    cross_state = ()
    if config.cross_attention_fn is not None:
      cross_attention = attend(
        attention_fn=config.cross_attention_fn, name='cross_attention'
      )
      tokens, cross_state = residual(
        'cross_attention',
        lambda x: cross_attention(
          x,
          context,
          train=train,
          mask=context_mask,
          max_length=max_length,
          state=state.cross,
        ),
        tokens,
        'cross_attention_dropout',
      )

    mlp = Mlp(config, name='mlp')
    tokens, _ = residual(
      'mlp',
      lambda x: (mlp(x, train=train), None),
      tokens,
      'mlp_dropout' if config.dropout_names.out is None else None,
    )
    self.sow('intermediates', 'output', tokens)
    return tokens, BlockState(own_state, cross_state)
