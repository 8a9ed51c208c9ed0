"""Device code: strides that a network learns, among what a step reports."""

from repjax import types
from repjax.optim import strides as learnt


def reporting(method: types.Method) -> types.Method:
  """The same method, whose sums have the strides that its step began with.

  Args:
    method: Of a network with `layers.diffstride.DiffStride`; that of another
      one reports nothing more.

  Returns:
    A method with 'stride/<layer>' of each such layer, or, where its axes have
    strides of their own, 'stride/<layer>/0' (height) and so on. A layer goes by
    the first name of its path, or, where that has several, by all of it.
  """

  def update(state, batch, rng):
    after, sums = method.update(state, batch, rng)
    found, own = learnt.in_order(state.params), {}
    firsts = [path[0] for path, _ in found]
    for path, strides in found:
      layer = path[:1] if firsts.count(path[0]) == 1 else path[:-1]
      name = '/'.join(('stride', *layer))
      several = len(strides) > 1
      for axis, stride in enumerate(strides):
        own[f'{name}/{axis}' if several else name] = (stride, 1.0)
    return after, {**sums, **own}

  return method._replace(update=update)
