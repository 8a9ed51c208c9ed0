"""Host side: what a network costs, stage by stage, and whole strides for it.

Comparisons of poolings are seldom of equal cost: with the published smoothness
of 4, learnt strides of 2 leave a ResNet-18's maps of 32 places at 24, 20 and
18, where strided convolutions leave 16, 8 and 4 (Riad et al., ICLR 2022,
https://arxiv.org/abs/2202.01653, and its code). Counts are of shapes: nothing
is computed.
"""

import bisect
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import types
from repjax.layers import diffstride
from repjax.types import InputError


class StageCost(NamedTuple):
  """Of one module of a network, for one image.

  Attributes:
    positions: Places of the map that it hands on, H x W.
    flops: Of convolutions, dense layers and learnt poolings (as products with
      matrices; fixed ones are not counted), forward, two for a product and
      its sum.
    bytes: Of what these hand on, float32: what a backward pass keeps.
  """

  positions: int
  flops: int
  bytes: int


def stage_costs(
  model: nn.Module, image_shape: Sequence[int]
) -> dict[str, StageCost]:
  """Costs of a network's direct submodules, in the order of their calls.

  Args:
    model: Called as networks here are, `model(image, train=False)`.
    image_shape: (H, W, C).
  """
  flops: dict[str, int] = {}
  kept: dict[str, int] = {}
  places: dict[str, int] = {}

  def count(next_fn, args, kwargs, context):
    output = next_fn(*args, **kwargs)
    path = context.module.path
    if not path or context.method_name != '__call__':
      return output
    stage = path[0]
    kind = type(context.module).__name__
    if isinstance(context.module, nn.RNN | nn.RNNCellBase) or 'Scan' in kind:
      raise types.InputError(
        f'{"/".join(path)} is a loop ({kind}), whose steps are not counted: '
        'build the network without it (scan_layers=False).'
      )
    work = _flops(context.module, (*args, *kwargs.values()), output)
    if work:
      flops[stage] = flops.get(stage, 0) + work
      kept[stage] = kept.get(stage, 0) + 4 * output.size
    # Of what the stage gives; of its last layer, where it is not called itself.
    if work or len(path) == 1:
      shape = max((x.shape for x in jax.tree.leaves(output)), key=math.prod)
      places[stage] = math.prod(shape[1:-1])
    return output

  def init(rng, image):
    with nn.intercept_methods(count):
      return model.init(rng, image, train=False)

  jax.eval_shape(
    init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
  )
  return {
    stage: StageCost(places[stage], work, kept[stage])
    for stage, work in flops.items()
  }


def total(costs: Mapping[str, StageCost]) -> StageCost:
  """Sums over stages; `positions` are those of all maps together."""
  return StageCost(*(sum(x) for x in zip(*costs.values(), strict=True)))


def compare(
  networks: Mapping[str, nn.Module],
  image_shape: Sequence[int],
  *,
  tolerance: float = 0.05,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
  """A table of several networks, and a line that says what is not matched.

  Args:
    networks: Name -> network; the first is what others are compared with.
    image_shape: (H, W, C).
    tolerance: Relative differences up to it count as matched.

  Returns:
    (header, one line of cells for each network, the line).
  """
  types.check_range('[0, inf)', tolerance=tolerance)
  if not networks:
    raise InputError('Costs are compared of at least one network.')
  costs = {name: stage_costs(x, image_shape) for name, x in networks.items()}
  sums = {name: total(x) for name, x in costs.items()}
  first, base = next(iter(sums.items()))
  lines: list[tuple[str, ...]] = []
  unmatched = []
  for name, each in costs.items():
    own = sums[name]
    lines.append(
      (
        name,
        ' '.join(str(x.positions) for x in each.values() if x.positions > 1),
        f'{own.flops / 1e6:.3g}',
        f'{own.bytes / 1e6:.3g}',
      )
    )
    ratios = {
      field: mine / theirs
      for field, mine, theirs in zip(own._fields, own, base, strict=True)
    }
    far = [
      f'{ratio:.2f} x the {field}'
      for field, ratio in ratios.items()
      if abs(ratio - 1) > tolerance
    ]
    if far:
      unmatched.append(f'{name} has {", ".join(far)}')
  said = (
    f'Not matched to {first}: {"; ".join(unmatched)}.'
    if unmatched
    else f'All are matched to {first} within {100 * tolerance:g} %.'
  )
  return ('network', 'positions', 'Mflops', 'MB'), lines, said


def matched_width(
  make: Callable[[int], nn.Module],
  image_shape: Sequence[int],
  flops: float,
  widths: Sequence[int],
) -> int:
  """The width whose network costs most nearly so many flops.

  Args:
    make: Width -> network.
    image_shape: (H, W, C).
    flops: What `total(...).flops` should be.
    widths: What to choose from, from the narrowest to the widest.
  """

  def cost(width):
    return total(stage_costs(make(width), image_shape)).flops

  place = bisect.bisect_left(widths, flops, key=cost)
  near = widths[max(place - 1, 0) : place + 1]
  return min(near, key=lambda width: abs(math.log(cost(width) / flops)))


def whole_strides(strides: Sequence[float]) -> tuple[int, ...]:
  """Whole strides for convolutions, in place of learnt ones, layer by layer.

  Each is rounded so that all up to it together come as near as they can, as a
  ratio, to what was learnt: (1.4, 1.4) is (1, 2).

  Args:
    strides: Learnt ones along one axis, in order, each >= 1.
  """
  wanted, made, found = 1.0, 1, []
  for stride in strides:
    types.check_range('[1, inf)', stride=float(stride))
    wanted *= float(stride)
    ratio = wanted / made
    below = max(1, math.floor(ratio))
    nearer = below if ratio / below < (below + 1) / ratio else below + 1
    found.append(nearer)
    made *= nearer
  return tuple(found)


def _flops(module, args, output):
  """Of one call of a module that does the work; 0 of one that holds others."""
  if isinstance(module, nn.Conv | nn.ConvLocal):
    size = module.kernel_size
    whole = size if isinstance(size, int) else math.prod(size)
    taps = whole * args[0].shape[-1]
    return 2 * output.size * taps // module.feature_group_count
  if isinstance(module, nn.ConvTranspose):
    size = module.kernel_size
    whole = size if isinstance(size, int) else math.prod(size)
    return 2 * args[0].size * whole * module.features
  if isinstance(module, nn.Dense):
    return 2 * output.size * args[0].shape[-1]
  if isinstance(module, nn.DenseGeneral):
    axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
    return 2 * output.size * math.prod(args[0].shape[x] for x in axes)
  if isinstance(module, diffstride.DiffStride):
    work, shape = 0, list(args[0].shape)
    for axis, size in enumerate(output.shape[1:-1], 1):
      work += 2 * math.prod(shape) * size
      shape[axis] = size
    return work
  return 0
