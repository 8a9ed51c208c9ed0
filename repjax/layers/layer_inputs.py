"""What the layers of an unmodified linen network see.

`with_input_of` gives what one layer sees as rows: the features before a head.
The others give columns of matrices: the representation matrices of gradient
projection memory (Saha, Garg and Roy,
ICLR 2021, https://arxiv.org/abs/2103.09762), in the order in which flax
flattens kernels.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

from flax.core import tracers
import flax.linen as nn
from flax.linen import linear
import jax
import jax.numpy as jnp
import numpy as np

from repjax import trees
from repjax import types

_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv)


def with_input_of(
  forward: Callable[[], Any], layer: str
) -> tuple[Any, jax.Array]:
  """Device code: what a function returns, and what one layer saw meanwhile.

  Args:
    forward: Applies a linen model once; `predict` of a method does.
    layer: Module names, joined by '/'.

  Returns:
    (its outputs, the layer's input as rows [B, D], float32).

  Raises:
    InputError: If no layer is called so, it is applied more than once, or is
      rematerialised.
  """
  seen, found, outside = set(), [], tracers.current_trace()

  def interceptor(next_fn, args, kwargs, context):
    name = '/'.join(context.module.path)
    if context.method_name == '__call__' and name:
      seen.add(name)
      if name == layer:
        check_open(name, outside)
        found.append(args[0] if args else next(iter(kwargs.values())))
    return next_fn(*args, **kwargs)

  with nn.intercept_methods(interceptor):
    outputs = forward()
  if len(found) != 1:
    raise types.InputError(
      f'The model applies the layer {layer!r} {len(found)} times, not once.'
      f'{trees.nearest(layer, seen)} It has: {", ".join(sorted(seen))}'
    )
  rows = found[0].reshape((found[0].shape[0], -1))  # `len` wants a number.
  return outputs, rows.astype(jnp.float32)


def check_open(name: str, outside: Any) -> None:
  """Refuses to take a value out of a trace that is over when it is used.

  Args:
    name: Of the layer.
    outside: `tracers.current_trace()` where the value will be used.

  Raises:
    InputError: It is another one.
  """
  if tracers.current_trace() != outside:
    raise types.InputError(
      f'The layer {name!r} is inside of a rematerialised, scanned or compiled '
      'part of the model, from which no value can be taken: build the model '
      'with remat=False, which has the same parameters.'
    )


def representations(
  model: nn.Module,
  variables: types.PyTree,
  batch: types.Batch,
  *,
  rows: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
  """Inputs of all Dense, DenseGeneral and Conv layers in a forward pass.

  Args:
    model: Called as `model.apply(variables, image, train=False, mask=...)`.
    variables: Of the model.
    batch: A sample of one task: 'image' [B, H, W, C] and 'mask' [B].
    rows: Layer -> how many examples its columns are made of; others use all.

  Returns:
    Layer (module names joined by '/') -> its inputs as columns, [n, s].
  """
  mask = np.asarray(batch['mask']) > 0
  image = jnp.asarray(batch['image'])[mask]

  def forward():
    model.apply(variables, image, train=False, mask=jnp.ones(len(image)))

  return layer_inputs(forward, rows=rows)


def layer_inputs(
  forward: Callable[[], Any], *, rows: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
  """Inputs of all Dense, DenseGeneral and Conv layers that a function applies.

  Args:
    forward: Applies a linen model, not under jit. Every row of what its layers
      see counts: pass no padding.
    rows: Layer -> how many examples its columns are made of, the first ones;
      others use all. A convolution has one column for each place of each
      image; the authors take 24 of 125 images for the first one.

  Returns:
    Layer (module names joined by '/') -> its inputs, [n, s], float32. n runs
    through the input axes of the kernel: patches are (height, width, channel).
    A layer that is applied several times has the columns of all calls.

  Raises:
    InputError: If `rows` names no layer, or a layer is of a kind whose columns
      are not defined (grouped convolutions, batch axes in a kernel).
  """
  rows = {} if rows is None else dict(rows)
  found: dict[str, list[np.ndarray]] = {}

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    if context.method_name == '__call__' and isinstance(module, _LAYERS):
      name = '/'.join(module.path)
      inputs = args[0] if args else kwargs['inputs']
      inputs = inputs[: rows.get(name)]
      columns = _columns(module, name, inputs)  # [s, n]
      found.setdefault(name, []).append(np.asarray(columns, np.float32).T)
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(intercept):
    forward()
  unknown = sorted(set(rows) - set(found))
  if unknown:
    raise types.InputError(
      f'rows names {unknown}, but the layers are {sorted(found)}.'
    )
  return {name: np.concatenate(parts, 1) for name, parts in found.items()}


def _columns(module, name, inputs):
  if isinstance(inputs, jax.core.Tracer):
    raise types.InputError(
      f'Layer {name!r} is applied under jit or another transformation, where '
      'its inputs cannot be read.'
    )
  if isinstance(module, nn.Dense):
    return inputs.reshape(-1, inputs.shape[-1])
  if isinstance(module, nn.DenseGeneral):
    if module.batch_dims:
      raise types.InputError(
        f'Layer {name!r} has batch_dims, one kernel for each of their values: '
        'leave it out by `project` of project_gradients.'
      )
    axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
    axes = tuple(sorted(axis % inputs.ndim for axis in axes))
    size = math.prod(inputs.shape[axis] for axis in axes)
    moved = jnp.moveaxis(inputs, axes, range(-len(axes), 0))
    return moved.reshape(-1, size)
  return _patches(module, name, inputs)


def _patches(module, name, inputs):
  """Inputs of a convolution at every place, [s, kh * kw * C] as in HWIO."""
  if module.feature_group_count != 1:
    raise types.InputError(
      f'Layer {name!r} is a grouped convolution, whose groups see different '
      'inputs: leave it out by `project` of project_gradients.'
    )
  size = module.kernel_size
  size = (size,) if isinstance(size, int) else tuple(size)
  dims = len(size)
  inputs = inputs.reshape(-1, *inputs.shape[-dims - 1 :])
  dilation = _broadcast(module.kernel_dilation, dims)
  padding = linear.canonicalize_padding(module.padding, dims)
  reach = [(k - 1) * d for k, d in zip(size, dilation, strict=True)]
  if padding in ('CIRCULAR', 'REFLECT'):
    mode = {'CIRCULAR': 'wrap', 'REFLECT': 'reflect'}[padding]
    sides = [(r // 2, (r + 1) // 2) for r in reach]
    inputs = jnp.pad(inputs, [(0, 0), *sides, (0, 0)], mode=mode)
    padding = 'VALID'
  elif padding == 'CAUSAL':
    inputs = jnp.pad(inputs, [(0, 0), (reach[0], 0), (0, 0)])
    padding = 'VALID'
  spatial = 'HWD'[:dims]
  patches = jax.lax.conv_general_dilated_patches(
    inputs,
    size,
    _broadcast(module.strides, dims),
    padding,
    lhs_dilation=_broadcast(module.input_dilation, dims),
    rhs_dilation=dilation,
    dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
    precision=jax.lax.Precision.HIGHEST,  # It copies by multiplying with 1.
  )
  # The channel comes before the place in these patches, after it in kernels.
  channels = inputs.shape[-1]
  patches = patches.reshape(-1, channels, math.prod(size))
  return patches.swapaxes(1, 2).reshape(-1, channels * math.prod(size))


def _broadcast(value, dims):
  value = 1 if value is None else value
  return (value,) * dims if isinstance(value, int) else tuple(value)
