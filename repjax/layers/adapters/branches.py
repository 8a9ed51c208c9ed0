"""Device code: what an adapter adds to one layer of a network.

Each function gets the call of a layer and a scope for parameters, and gives the
layer's changed output. Dense layers do the products, so that what knows dense
layers (the norms of `repjax.privacy`) knows adapters.
"""

from collections.abc import Callable
from collections.abc import Mapping
import inspect
import math
from typing import Any
from typing import NamedTuple

from flax import core
import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers.adapters import designs
from repjax.layers.adapters import prefix_attention
from repjax.types import InputError

# PyTorch's start of a linear layer, uniform in +-1 / sqrt(fan_in), which the
# authors' adapters and LoRA take for Wdown.
_START = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
_PREFIX_START = nn.initializers.normal(0.02)


class Call(NamedTuple):
  """A call of a layer that an adapter changes.

  Attributes:
    module: The layer, bound.
    run: (module or a copy of it) -> its output without this adapter.
    args: Positional arguments.
    kwargs: Named arguments.
    drop: Whether dropout applies.
  """

  module: nn.Module
  run: Callable[..., Any]
  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]
  drop: bool

  @property
  def name(self) -> str:
    """Path of the layer."""
    return '/'.join(self.module.path)

  def x(self) -> jax.Array:
    """The first argument."""
    if self.args:
      return self.args[0]
    parameters = list(inspect.signature(type(self.module).__call__).parameters)
    return self.kwargs[parameters[1]]

  def output(self) -> Any:
    """What the layer gives by itself."""
    return self.run(self.module)

  def with_attention(self, change: Callable[..., Any]) -> Any:
    """The output with `change(attention_fn)` as its attention.

    Raises:
      InputError: The layer has no `attention_fn`.
    """
    attention_fn = getattr(self.module, 'attention_fn', None)
    if not callable(attention_fn):
      raise InputError(
        f'layer {self.name!r} ({type(self.module).__name__}) has no attention_'
        'fn: prefixes and adapters of heads need a layer such as nn.'
        'MultiHeadDotProductAttention or layers.multi_head.MultiHeadAttention'
      )
    # The same layer at the same place: it finds the same variables.
    return self.run(
      self.module.clone(
        parent=self.module.scope, name=None, attention_fn=change(attention_fn)
      )
    )


def change(
  adapter: designs.Adapter,
  call: Call,
  scope: core.Scope,
  hidden: jax.Array | None,
) -> Any:
  """Output of a layer with an adapter.

  Args:
    adapter: What is added.
    call: Of the layer.
    scope: Of the adapter's parameters.
    hidden: `reparametrize` of the adapter, if it has a reparametrization.

  Raises:
    InputError: The adapter cannot change this layer.
  """
  design = adapter.design
  if design.representation == 'head':
    if design.form == 'softmax':
      return _prefix(adapter, call, scope, hidden)
    return _heads(adapter, call, scope)
  if design.representation == 'heads':
    return _attention(adapter, call, scope)
  output = call.output()
  # Of several outputs (one that decodes gives its state, too) the first is h.
  h, *rest = output if isinstance(output, tuple) else (output,)
  x = h if design.insertion == 'sequential' else call.x()
  if design.representation == 'linear layer':
    dh = _low_rank(adapter, call, scope, x)
  else:
    dh = _bottleneck(adapter, call, scope, x, h.shape)
  h = h + (adapter.scale * dh).astype(h.dtype)
  return (h, *rest) if rest else h


def reparametrize(
  adapter: designs.Adapter, scope: core.Scope
) -> jax.Array | None:
  """What prefixes are made of, [l, hidden_dim], or None for other adapters."""
  sizes = adapter.reparametrization
  if sizes is None:
    return None
  embedding = scope.param(
    'embedding',
    nn.initializers.normal(1.0),  # PyTorch's start of an embedding.
    (adapter.size, sizes.embedding_dim),
  )
  inner: Any = scope.push('hidden')  # Modules take scopes as parents, too.
  dense = nn.Dense(sizes.hidden_dim, kernel_init=_START, parent=inner)
  return jnp.tanh(dense(embedding))


def _bottleneck(adapter, call, scope, x, shape):
  """relu(x Wdown) Wup of the shape of h."""
  lead = x.shape[:-1]
  features = shape[len(lead) :]
  if shape[: len(lead)] != lead or not features:
    raise InputError(
      f'{adapter.name}: layer {call.name!r} makes {shape} of {x.shape}, which '
      'no parallel branch of dense layers does: select another layer'
    )
  _check_rank(adapter, call, x.shape[-1], math.prod(features))
  types = _types(call.module)
  if adapter.layer_norm:
    norm = scope.push('norm', reuse=True)
    x = nn.LayerNorm(1e-5, parent=norm, **types)(x)
  x = _drop(adapter, call, scope, x)
  down = scope.push('down', reuse=True)
  up = scope.push('up', reuse=True)
  x = nn.Dense(adapter.size, kernel_init=_START, parent=down, **types)(x)
  return nn.DenseGeneral(
    features, kernel_init=nn.initializers.zeros, parent=up, **types
  )(nn.relu(x))


def _low_rank(adapter, call, scope, x):
  """Computes x Wdown Wup; Wdown Wup has the shape of the layer's kernel."""
  layer = call.module
  unfit = [
    name
    for name, plain in (('batch_dims', ()), ('feature_group_count', 1))
    if getattr(layer, name, plain) != plain
  ]
  if getattr(layer, 'mask', None) is not None:  # An array, perhaps.
    unfit.append('mask')
  if type(layer) not in (nn.Dense, nn.DenseGeneral, nn.Conv) or unfit:
    raise InputError(
      f'{adapter.name} changes the matrices of nn.Dense, nn.DenseGeneral and '
      f'nn.Conv; layer {call.name!r} is a {type(layer).__name__}'
      + f' with {", ".join(unfit)}'
      * bool(unfit)
    )
  kernel = layer.get_variable('params', 'kernel')
  features = layer.features
  features = features if isinstance(features, tuple) else (features,)
  out = math.prod(features)
  _check_rank(adapter, call, kernel.size // out, out)
  x = _drop(adapter, call, scope, x)
  down = layer.clone(
    features=adapter.size,
    use_bias=False,
    kernel_init=_START,
    name=None,
    parent=scope.push('down', reuse=True),
  )
  up = nn.DenseGeneral(
    features,
    use_bias=False,
    kernel_init=nn.initializers.zeros,
    parent=scope.push('up', reuse=True),
    **_types(layer),
  )
  return up(down(x))


def _prefix(adapter, call, scope, hidden):
  """Attention to a prefix and to the sequence."""
  dtype = _types(call.module)['param_dtype']

  def prefix(key, value):
    def rows(name, like):
      shape = like.shape[-2:]
      if hidden is None:
        shape = (adapter.size, *shape)
        return _param(scope, name, _PREFIX_START, shape, dtype)
      dense = nn.DenseGeneral(
        shape, kernel_init=_START, parent=scope.push(name, reuse=True)
      )
      return dense(hidden)

    return rows('key', key), rows('value', value)

  return call.with_attention(
    lambda fn: prefix_attention.PrefixAttention(fn, prefix, length=adapter.size)
  )


def _heads(adapter, call, scope):
  """Adds relu(q Pk') Pv to the output of each head."""
  dtype = _types(call.module)['param_dtype']

  def branch(query, key, value):
    del key
    shape = (adapter.size, *query.shape[-2:])
    # Each head has a matrix of its own, [D, r].
    down = _param(
      scope,
      'key',
      nn.initializers.variance_scaling(
        1 / 3, 'fan_in', 'uniform', in_axis=2, out_axis=0, batch_axis=1
      ),
      shape,
      dtype,
    )
    up = _param(
      scope,
      'value',
      nn.initializers.zeros,
      (*shape[:2], value.shape[-1]),
      dtype,
    )
    scores = jnp.einsum('...qhd,lhd->...hql', query, down.astype(query.dtype))
    return jnp.einsum(
      '...hql,lhd->...qhd', nn.relu(scores), up.astype(value.dtype)
    )

  return call.with_attention(lambda fn: _Sum(fn, branch))


def _attention(adapter, call, scope):
  """Adds relu(x Wdown) Wup to the outputs of all heads, side by side."""
  x = call.x()

  def branch(query, key, value):
    del key
    shape = (*query.shape[:-1], value.shape[-1])
    # Queries of a prefix, which nobody reads.
    more = query.shape[-3] - x.shape[-2]
    rows = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(max(more, 0), 0), (0, 0)])
    return adapter.scale * _bottleneck(adapter, call, scope, rows, shape)

  return call.with_attention(lambda fn: _Sum(fn, branch))


class _Sum:
  """An `attention_fn` and a branch; decodes where the `attention_fn` does."""

  def __init__(self, attention_fn, branch):
    self._fn = attention_fn
    self._branch = branch
    self.causal = getattr(attention_fn, 'causal', False)
    self.__signature__ = inspect.signature(attention_fn)

  def __getattr__(self, name):
    if name == 'init_state':
      return self._fn.init_state
    if name not in ('prefill', 'step') or not hasattr(self._fn, name):
      raise AttributeError(name)

    def decode(state, query, key, value, **settings):
      output, state = getattr(self._fn, name)(
        state, query, key, value, **settings
      )
      return self._add(output, query, key, value), state

    return decode

  def __call__(self, query, key, value, **settings):
    output = self._fn(query, key, value, **settings)
    return self._add(output, query, key, value)

  def _add(self, output, query, key, value):
    return output + self._branch(query, key, value).astype(output.dtype)


def _param(scope, *args):
  """A parameter that may be asked for again, by another call of the layer."""
  return scope.rewound().param(*args)


def _drop(adapter, call, scope, x):
  if not adapter.dropout_rate or not call.drop:
    return x
  keep = jax.random.bernoulli(
    scope.make_rng('dropout'), 1 - adapter.dropout_rate, x.shape
  )
  return jnp.where(keep, x / (1 - adapter.dropout_rate), 0)


def _types(module):
  """Types of the layer's computation and parameters."""
  return dict(
    dtype=getattr(module, 'dtype', None),
    param_dtype=getattr(module, 'param_dtype', jnp.float32),
  )


def _check_rank(adapter, call, width_in, width_out):
  width = min(width_in, width_out)
  if adapter.size > width:
    raise InputError(
      f'{adapter.name}: rank {adapter.size} is above the width of layer '
      f'{call.name!r}, {width_in} -> {width_out}: choose at most {width}'
    )
