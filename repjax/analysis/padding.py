"""Host side: where a network's padding treats the sides of an image unlike.

    for layer in padding.pad_audit(model, (224, 224, 3), train=False):
      print(layer)
    padding.even_sizes(model, (224, 224, 3), train=False)  # ((193, 225), ...)

Alsallakh et al., 'Mind the Pad - CNNs Can Develop Blind Spots', ICLR 2021
(https://openreview.net/forum?id=m1CD7tPubNy): a layer with a stride may reach
its padding on one side alone, and its kernels then grow lopsided. It does not
where (h + 2 p - k) is a multiple of s; n such layers of stride 2 in a row, with
p = (k - 1) / 2, want images of a 2^n + 1 places.
"""

from collections.abc import Sequence
import math
import re
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from repjax import trees
from repjax import types
from repjax.layers import pad_arithmetic
from repjax.layers import padding


class Layer(NamedTuple):
  """A layer whose window slides over a map.

  Attributes:
    name: Module names, joined by '/'; of pooling, the layer that it follows.
    kind: 'conv' or 'pool'.
    windows: One for each spatial dimension.
  """

  name: str
  kind: Literal['conv', 'pool']
  windows: tuple[pad_arithmetic.Window, ...]

  @property
  def is_even(self) -> bool:
    """Whether opposite sides of the map are treated alike."""
    return all(w.is_even for w in self.windows)

  def __str__(self) -> str:
    sides = ', '.join('{}/{}'.format(*w.consumed) for w in self.windows)
    size = ' x '.join(str(w.size) for w in self.windows)
    kernel = ' x '.join(str(w.kernel) for w in self.windows)
    stride = ' x '.join(str(w.stride) for w in self.windows)
    unread = max(w.unread for w in self.windows)
    return (
      f'{self.name}: {self.kind} {kernel}, stride {stride}, on {size}; '
      f'padding consumed {sides}'
      + (f'; {unread} unread' if unread else '')
      + ('' if self.is_even else '  <- uneven')
    )


def pad_audit(
  model: nn.Module, shape: Sequence[int], **kwargs: Any
) -> tuple[Layer, ...]:
  """All convolutions and poolings of a model, in their order; computes nothing.

  Args:
    model: A linen model of images; of a `padding.Padded`, the layers pad as
      much as those of the model in it.
    shape: Of an image, (H, W, C).
    **kwargs: What else the model is called with, such as train=False.

  Raises:
    InputError: If the model calls no convolution (`flax.linen.Conv`).
  """
  if isinstance(model, padding.Padded):
    layers = pad_audit(model.model, shape, **kwargs)
    return _balanced(layers) if model.mode == 'balanced' else layers
  found: list[Layer] = []

  def interceptor(next_fn, args, kwargs, context):
    conv = context.module
    if context.method_name != '__call__' or not isinstance(conv, nn.Conv):
      return next_fn(*args, **kwargs)
    inputs = args[0] if args else kwargs['inputs']
    name = '/'.join(conv.path) or type(conv).__name__
    found.append(Layer(name, 'conv', padding.windows(conv, inputs.shape)))
    # Pooling is a function, which only the trace shows: the scope says where.
    with jax.named_scope(f'{_MARK}{len(found)}'):
      return next_fn(*args, **kwargs)

  def init(rng, image):
    return model.init(rng, image, **kwargs)

  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  with nn.intercept_methods(interceptor):
    trace = jax.make_jaxpr(init)(jax.random.key(0), image)
  if not found:
    raise types.InputError(
      f'{type(model).__name__} calls no convolution (flax.linen.Conv): it has '
      'no padding to audit.'
    )
  return _merged(found, _pools(trace.jaxpr, 0)[0])


def even_sizes(
  model: nn.Module, shape: Sequence[int], **kwargs: Any
) -> tuple[tuple[int, ...], ...]:
  """Sizes of images, nearest to a given one, at which all layers are even.

  Args:
    model: A linen model of images.
    shape: Of an image, (H, W, C).
    **kwargs: What else the model is called with.

  Returns:
    For each spatial dimension: its size alone if that is even, else the nearest
    ones below and above that are one more than a multiple of all strides (the
    paper's rule), or, if those are not, of the first other remainder whose are
    (with strides of 3 sizes of other remainders may be nearer); () if there are
    none, as with 'SAME' padding of even kernels.
  """
  found: dict[int, tuple[int, ...]] = {}
  for axis, size in enumerate(shape[:-1]):
    if size not in found:  # Sides of one length are alike.
      found[size] = _even_sizes(model, tuple(shape), axis, kwargs)
  return tuple(found[size] for size in shape[:-1])


def foveation(
  layers: Sequence[Layer], mode: pad_arithmetic.Mode = 'zero'
) -> np.ndarray:
  """In how many ways a pixel takes part in what a stack of layers computes.

  Args:
    layers: Of one path through a network, as `pad_audit` gives them; leave out
      shortcuts. A pool counts like a convolution.
    mode: Padding of the convolutions.

  Returns:
    Products of counts over the layers, summed over all paths, [H, W].

  Raises:
    InputError: If there is no layer, or one does not take what the one before
      it gives.
  """
  if not layers:
    raise types.InputError('foveation needs a layer; pad_audit gives them.')
  total: Any = 1.0
  for axis in range(len(layers[0].windows)):
    counts = np.ones(layers[-1].windows[axis].out)
    for layer in reversed(layers):
      window = layer.windows[axis]
      if window.out != len(counts):
        raise types.InputError(
          f'{layer.name} gives {window.out} places, and the next layer takes '
          f'{len(counts)}: give the layers of one path (without shortcuts).'
        )
      own = mode if layer.kind == 'conv' else 'zero'
      counts = counts @ pad_arithmetic.uses(window, own)
    total = np.multiply.outer(total, counts)
  return total


def constant_response(
  model: nn.Module,
  variables: types.PyTree,
  shape: Sequence[int],
  *,
  value: float = 1.0,
  **kwargs: Any,
) -> dict[str, np.ndarray]:
  """What each convolution makes of an image that is the same everywhere.

  Its maps vary over places by padding alone.

  Args:
    model: A linen model of images, in a `padding.Padded` or not.
    variables: Of the model.
    shape: Of an image, (H, W, C).
    value: Of all pixels and channels.
    **kwargs: What else the model is called with.

  Returns:
    Layer -> its output, [H', W', C'], of the last call of each layer.
  """
  _, seen = model.apply(
    variables,
    jnp.full((1, *shape), value, jnp.float32),
    capture_intermediates=lambda module, method: (
      isinstance(module, nn.Conv) and method == '__call__'
    ),
    mutable=['intermediates'],
    **kwargs,
  )
  maps = trees.flatten(seen['intermediates'])
  found: dict[str, np.ndarray] = {}
  for path, x in maps.items():
    # The last call of a layer is the last one here, and what padding makes of
    # its output comes behind the output itself.
    found['/'.join(path[: path.index('__call__')])] = np.asarray(x)[0]
  return found


_MARK = 'pad_audit_'


def _even_sizes(model, shape, axis, kwargs):
  def windows(size):
    changed = (*shape[:axis], size, *shape[axis + 1 :])
    layers = pad_audit(model, changed, **kwargs)
    return [x.windows[axis] for x in layers]

  def is_even(size):
    return all(w.is_even and w.out > 0 for w in windows(size))

  own = shape[axis]
  if is_even(own):
    return (own,)
  # Evenness repeats: images larger by a multiple of all strides before a layer
  # and of its own are cut alike there.
  base = windows(own)
  step = math.prod(w.stride for w in base)
  grown = windows(own + step)
  period = math.lcm(
    *(
      w.stride * step // (v.size - w.size)
      for w, v in zip(base, grown, strict=True)
      if v.size > w.size  # Not behind a global mean.
    )
  )
  # First what the paper's rule says.
  for rest in (1, *(x for x in range(period) if x != 1)):
    above = own + (rest - own) % period
    if is_even(above):
      below = above - period
      return (*((below,) if below > 0 and is_even(below) else ()), above)
  return ()


def _balanced(layers):
  def change(window, name):
    if not (window.before or window.after):
      return window
    sides = pad_arithmetic.balanced(window)
    if sides is None:
      raise types.InputError(pad_arithmetic.unbalanced(window, name))
    return window._replace(before=sides, after=sides)

  return tuple(
    x._replace(windows=tuple(change(w, x.name) for w in x.windows))
    if x.kind == 'conv'
    else x
    for x in layers
  )


def _pools(jaxpr, count):
  """([(convolutions before it, windows)] of a trace, convolutions so far)."""
  found: list[tuple[int, Any]] = []
  constants: set[Any] = set()
  for eqn in jaxpr.eqns:
    fixed = all(
      isinstance(x, core.Literal) or x in constants for x in eqn.invars
    )
    if fixed:  # Such as the ones by which a mean pool counts its places.
      constants.update(eqn.outvars)
      continue
    marks = re.findall(f'{_MARK}([0-9]+)', str(eqn.source_info.name_stack))
    count = max([count, *map(int, marks)])
    if eqn.primitive.name.startswith('reduce_window'):
      found.append((count, _pool(eqn)))
    looped = eqn.primitive.name in ('scan', 'while')
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        body = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
        if isinstance(body, core.Jaxpr):
          if looped and 'conv_general_dilated' in str(body):
            raise types.InputError(
              'Convolutions stand in a loop (nn.scan), which is traced once: '
              'give a network that calls each of them.'
            )
          own, count = _pools(body, count)
          found += own
  return found, count


def _pool(eqn):
  settings = eqn.params
  return tuple(
    pad_arithmetic.Window(size, k, s, d, before, after)
    for size, k, s, d, (before, after) in list(
      zip(
        eqn.invars[0].aval.shape,
        settings['window_dimensions'],
        settings['window_strides'],
        settings['window_dilation'],
        settings['padding'],
        strict=True,
      )
    )[1:-1]
  )


def _merged(convs, pools):
  layers = []
  for number, conv in enumerate([None, *convs]):
    if conv is not None:
      layers.append(conv)
    layers += [
      Layer(f'pool after {conv.name if conv else "the input"}', 'pool', windows)
      for at, windows in pools
      if at == number
    ]
  return tuple(layers)
