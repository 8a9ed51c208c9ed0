"""Device code: strides that a network learns, among what a step reports."""

import flax.linen as nn
import jax.numpy as jnp

from repjax import interceptors
from repjax import types
from repjax.layers import diffstride
from repjax.optim import strides as learnt


def reporting(method: types.Method) -> types.Method:
  """The same method, whose sums have the strides that its step used.

  They are the parameters, brought into what map and crop hold, as the layer
  does: parameters may lie further out.

  Args:
    method: Of a network with `layers.diffstride.DiffStride`; that of another
      one reports nothing more.

  Returns:
    A method with 'stride/<layer>' of each such layer, or, where its axes have
    strides of their own, 'stride/<layer>/0' (height) and so on. A layer goes by
    the first name of its path, or, where that has several, by all of it.
  """

  def update(state, batch, rng):
    seen = _Limits()
    with nn.intercept_methods(seen):
      after, sums = method.update(state, batch, rng)
    found, own = learnt.in_order(state.params), {}
    layers = [
      next(x for x in interceptors.module_paths(path[:-1]) if x in seen.limits)
      for path, _ in found
    ]
    firsts = [layer[0] for layer in layers]
    for layer, (_, strides) in zip(layers, found, strict=True):
      used = jnp.clip(strides, *seen.limits[layer])
      layer = layer[:1] if firsts.count(layer[0]) == 1 else layer
      name = '/'.join(('stride', *layer))
      several = len(strides) > 1
      for axis, stride in enumerate(used):
        own[f'{name}/{axis}' if several else name] = (stride, 1.0)
    return after, {**sums, **own}

  return method._replace(update=update)


class _Limits(interceptors.Interceptor):
  """What strides the layers' maps and crops hold, by their paths."""

  def __init__(self):
    self.limits = {}

  def __call__(self, next_fn, args, kwargs, context):
    module = context.module
    if isinstance(module, diffstride.DiffStride):
      self.limits[module.path] = module.limits(args[0].shape[1:-1])
    return next_fn(*args, **kwargs)

  def changes(self, module, method):
    return False

  def alike(self, layers):
    return not layers  # Its layers' paths are those of no other block.
