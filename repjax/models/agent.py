"""Device code: agents that act on what they see, with several heads.

Hansen, Jangir, Sun, Alenya, Abbeel, Efros, Pinto and Wang, 'Self-Supervised
Policy Adaptation during Deployment' (PAD), ICLR 2021
(https://arxiv.org/abs/2007.04309): an encoder that all heads share, an actor, a
critic, and a self-supervised task. Parameters are grouped in that way,
`encoder`, `actor`, `critic` and `task`.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import unfolded_conv
from repjax.types import InputError

# Kernels whose centre is orthogonal and whose rest is zero, as in the authors'
# code, which leaves the projections of the task at PyTorch's default.
_CONV_INIT = nn.initializers.delta_orthogonal(2**0.5)
_DENSE_INIT = nn.initializers.orthogonal()


class Encoder(nn.Module):
  """Convolutions `conv_0`, ... of side 3 without padding, each with relu.

  The paper's figure has heads on one representation; in the authors' code heads
  share convolutions alone, and each has a projection of its own. `width` says
  which: adaptation that ends in a projection of the task's own does not reach
  the actor.

  Attributes:
    channels: Output channels of each.
    strides: Stride of each.
    width: Of a `Projection` that ends it, shared by all heads; 0 for none.
    unfolded: Whether they are matrix products (`layers.unfolded_conv`).
    dtype: Type of the computation; None infers it from input and parameters.
    remat: Whether convolutions are computed again in the backward pass, which
      then keeps what goes into them alone, and no windows of `unfolded`.
  """

  channels: Sequence[int]
  strides: Sequence[int]
  width: int = 0
  unfolded: bool = False
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, depth: int | None = None) -> jax.Array:
    """[B, H, W, C], uint8 or in [0, 1] -> [B, H', W', C'] or [B, width].

    Args:
      image: Of observations.
      depth: Convolutions to stop after; None for the whole encoder.
    """
    x = image
    if jnp.issubdtype(x.dtype, jnp.integer):
      x = x.astype(jnp.float32) / 255

    def stage(conv, x):
      return nn.relu(conv(x))

    run = nn.remat(stage) if self.remat else stage
    layers = list(zip(self.channels, self.strides, strict=True))
    for index, (width, stride) in enumerate(layers[:depth]):
      if min(x.shape[1:3]) < 3:
        raise InputError(
          f'images of {image.shape[1]} x {image.shape[2]} leave {x.shape[1]} x '
          f'{x.shape[2]} places for conv_{index}, whose kernel has side 3: '
          'take larger images (or a larger crop), or fewer convolutions'
        )
      x = run(self._conv(width, stride, f'conv_{index}'), x)
    if depth is not None or not self.width:
      return x
    return Projection(self.width, dtype=self.dtype, name='projection')(x)

  def _conv(self, width, stride, name):
    # Orthogonal columns must not be more than rows.
    settings = dict(kernel_init=_conv_init, dtype=self.dtype, name=name)
    if self.unfolded:
      return unfolded_conv.UnfoldedConv(width, stride=stride, **settings)
    return nn.Conv(width, (3, 3), strides=stride, padding='VALID', **settings)


def _conv_init(key, shape, dtype=jnp.float32):
  """Delta-orthogonal; of more inputs than outputs, as PyTorch makes it."""
  if shape[-2] <= shape[-1]:
    return _CONV_INIT(key, shape, dtype)
  swapped = _CONV_INIT(key, (*shape[:-2], shape[-1], shape[-2]), dtype)
  return swapped.swapaxes(-1, -2)


class Flat(nn.Module):
  """An encoder of features, which are their own representation."""

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    """[B, ...] -> [B, D]."""
    return features.reshape((features.shape[0], -1))


class Projection(nn.Module):
  """What a head makes of the encoder's output: tanh(LayerNorm(dense)).

  Attributes:
    width: Of the result; 0 leaves features as they are.
    own: Convolutions of the head's own before it, or None.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  width: int
  own: Encoder | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, ...] -> [B, width]."""
    if self.own is not None:
      x = self.own(x)
    x = x.reshape((x.shape[0], -1))
    if not self.width:
      return x
    x = nn.Dense(
      self.width, kernel_init=_DENSE_INIT, dtype=self.dtype, name='dense'
    )(x)
    return jnp.tanh(
      nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(x)
    )


class Trunk(nn.Module):
  """Dense layers `hidden_0`, ... with relu, then `out`.

  Attributes:
    out: Width of the output.
    features: Widths of the hidden layers.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  out: int
  features: Sequence[int] = (1024, 1024)
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, D] -> [B, out], float32."""
    for index, width in enumerate(self.features):
      x = nn.relu(
        nn.Dense(
          width,
          kernel_init=_DENSE_INIT,
          dtype=self.dtype,
          name=f'hidden_{index}',
        )(x)
      )
    x = nn.Dense(
      self.out, kernel_init=_DENSE_INIT, dtype=self.dtype, name='out'
    )(x)
    return x.astype(jnp.float32)


class Gaussian(NamedTuple):
  """A policy's distribution before it is squashed by tanh.

  Attributes:
    mean: [B, A].
    log_std: [B, A].
  """

  mean: jax.Array
  log_std: jax.Array


class Actor(nn.Module):
  """A Gaussian before tanh; `projection`, `trunk`.

  Attributes:
    projection: Of the encoder's output.
    trunk: Gives 2 A numbers.
    log_std_range: Into which a tanh puts the logarithm of the deviation.
  """

  projection: Projection
  trunk: Trunk
  log_std_range: tuple[float, float] = (-10.0, 2.0)

  def __call__(self, x: jax.Array) -> Gaussian:
    """[B, ...] -> a Gaussian of [B, A]."""
    mean, log_std = jnp.split(self.trunk(self.projection(x)), 2, axis=-1)
    low, high = self.log_std_range
    return Gaussian(mean, low + (high - low) / 2 * (jnp.tanh(log_std) + 1))


class Critic(nn.Module):
  """Two values of an action; `projection`, `first`, `second`.

  Attributes:
    projection: Of the encoder's output, shared by both.
    first: Gives 1 number.
    second: Gives 1 number.
  """

  projection: Projection
  first: Trunk
  second: Trunk

  def __call__(self, x: jax.Array, action: jax.Array) -> jax.Array:
    """[B, ...], [B, A] -> [B, 2]."""
    x = jnp.concatenate([self.projection(x), action], -1)
    return jnp.concatenate([self.first(x), self.second(x)], -1)


class Task(nn.Module):
  """The head of a self-supervised task; `projection`, `trunk`.

  Attributes:
    projection: Of the encoder's output of each input.
    trunk: Of the projections of all inputs, side by side.
    num_inputs: Observations that it is asked about at once.
    depth: Convolutions of the encoder after which it branches off, so that it
      trains those alone; None for the whole encoder.
  """

  projection: Projection
  trunk: Trunk
  num_inputs: int = 2
  depth: int | None = None

  def __call__(self, *inputs: jax.Array) -> jax.Array:
    """[B, ...] each -> [B, out]."""
    return self.trunk(jnp.concatenate([*map(self.projection, inputs)], -1))


class Agent(nn.Module):
  """An encoder and its heads.

  Attributes:
    encoder: Of observations.
    actor: Acts.
    critic: Values actions; None in an agent that is cloned.
    task: Is what is left to learn from once rewards are gone; None for none.
  """

  encoder: nn.Module
  actor: Actor
  critic: Critic | None = None
  task: Task | None = None

  def __call__(
    self, observation: jax.Array, action: jax.Array
  ) -> tuple[Any, ...]:
    """All heads of one observation, so that `init` makes all parameters."""
    x = self.encoder(observation)
    heads: list[Any] = [self.actor(x)]
    if self.critic is not None:
      heads.append(self.critic(x, action))
    if self.task is not None:
      heads.append(self.guess(*[observation] * self.task.num_inputs))
    return tuple(heads)

  def policy(self, observation: jax.Array, *, stop: bool = False) -> Gaussian:
    """The actor's Gaussian; `stop` keeps its gradient from the encoder."""
    return self.actor(self._encode(observation, stop=stop))

  def values(
    self, observation: jax.Array, action: jax.Array, *, stop: bool = False
  ) -> jax.Array:
    """Both values, [B, 2]; `stop` keeps their gradient from the encoder."""
    if self.critic is None:
      raise InputError('the agent has no critic: make it with one')
    return self.critic(self._encode(observation, stop=stop), action)

  def guess(self, *observations: jax.Array) -> jax.Array:
    """What the task's head says of one observation or several, [B, out]."""
    if self.task is None:
      raise InputError('the agent has no task: make it with one')
    depth = self.task.depth
    branch = () if depth is None else (depth,)
    return self.task(*[self.encoder(x, *branch) for x in observations])

  def _encode(self, observation, *, stop):
    x = self.encoder(observation)
    return jax.lax.stop_gradient(x) if stop else x
