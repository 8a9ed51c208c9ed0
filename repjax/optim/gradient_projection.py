"""Gradient projection memory (GPM) as the last link of an `optax.chain`.

Saha, Garg and Roy, 'Gradient Projection Memory for Continual Learning', ICLR
2021, https://arxiv.org/abs/2103.09762. A layer's gradient lies in the span of
the inputs that the layer saw. GPM keeps a basis of the inputs of old tasks, one
a layer, and takes what lies in its span out of every step: on those inputs the
layer's outputs then stay.

    tx = optax.chain(optax.sgd(0.01), optim.project_gradients())
    ...                                            # Train on a task; then
    inputs = layer_inputs.representations(model, variables, batch)
    opt_state = optim.update_bases(opt_state, inputs, thresholds=0.97)

`project_gradients` runs on the devices, `update_bases` on the host.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import trees
from repjax import types
from repjax.optim import spans

# Columns that are taken out at once. A step goes through as many blocks as the
# rank needs: its cost follows the rank and not the room.
_BLOCK = 128


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['bases', 'ranks', 'num_tasks'],
  meta_fields=['with_bias'],
)
@dataclasses.dataclass(frozen=True)
class ProjectionState:
  """Bases of the inputs of all tasks so far.

  Attributes:
    bases: Layer -> M, [n, n] float32: orthonormal columns, then zeros. n is the
      number of the layer's inputs (with the constant one of its bias, if that
      is projected, too).
    ranks: Layer -> number of columns that are not zero, int32.
    num_tasks: How often the bases were updated, int32.
    with_bias: Layers whose last input is the constant one of a bias; no array,
      and in no checkpoint.
  """

  bases: dict[str, jax.Array]
  ranks: dict[str, jax.Array]
  num_tasks: jax.Array
  with_bias: tuple[str, ...] = ()


_ARRAYS = ('bases', 'ranks', 'num_tasks')

serialization.register_serialization_state(
  ProjectionState,
  lambda x: {k: serialization.to_state_dict(getattr(x, k)) for k in _ARRAYS},
  lambda x, given: dataclasses.replace(
    x,
    **{
      k: serialization.from_state_dict(getattr(x, k), given[k], name=k)
      for k in _ARRAYS
    },
  ),
)


def input_axes(path: trees.Path, shape: tuple[int, ...]) -> int:
  """How many leading axes of a kernel of flax are inputs.

  All but the last, which is right for `Dense`, `Conv` (HWIO), patch embeddings
  and the output layer of an attention; but one for the layers 'query', 'key'
  and 'value' of an attention, [D, H, D / H].

  >>> input_axes(('conv', 'kernel'), (3, 3, 16, 32))
  3
  >>> input_axes(('attention', 'query', 'kernel'), (64, 4, 16))
  1
  """
  heads = len(path) > 1 and path[-2] in ('query', 'key', 'value')
  return 1 if heads and len(shape) == 3 else len(shape) - 1


def project_gradients(
  *,
  free: Callable[[trees.Path], bool] | None = None,
  project: Callable[[trees.Path], bool] | None = None,
  biases: bool = False,
  freeze_others: bool = True,
  input_axes: Callable[[trees.Path, tuple[int, ...]], int] = input_axes,
) -> optax.GradientTransformation:
  """Takes the span of old inputs out of every update: G - M M' G.

  It projects the update and not the gradient: put it last. Momentum, Adam and
  weight decay before it would otherwise move the network along old inputs. (The
  authors project gradients and use plain SGD, where it is the same.)

  Until the first `update_bases` nothing changes. Directions are added without
  compiling again, because the room of a basis is fixed.

  Batch statistics are no parameters: where evaluation uses running means, they
  move on with the new task. The authors' networks have none.

  Args:
    free: Path of a parameter -> whether it is left alone: heads that belong to
      one task. None for none.
    project: Path of a kernel -> whether it is projected. None: every leaf named
      'kernel' that is not free.
    biases: Whether the biases of projected layers are projected with them, as
      weights of a constant input, so that they can still learn.
    freeze_others: Whether all remaining parameters (biases, norms, embeddings)
      stop after the first task, as norms do in the authors' code, where no
      layer has a bias. False lets them move, and old tasks suffer.
    input_axes: (path, shape) of a kernel -> number of its leading axes that are
      inputs; see `input_axes`.

  Returns:
    A transformation with a `ProjectionState`.

  Raises:
    ValueError: At `init`, if no kernel is projected, or two of one layer are,
      or a kernel has no axis that is an input or none that is an output.
  """

  def kernels(params):
    """Path -> number of input axes, of all kernels that are projected."""
    leaves = trees.flatten(params)

    def chosen(path):
      if free is not None and free(path):
        return False
      return path[-1] == 'kernel' if project is None else project(path)

    trees.mask(params, chosen)  # Error if none.
    if free is not None:
      trees.mask(params, free)
    found = {}
    for path, leaf in leaves.items():
      if chosen(path):
        found[path] = input_axes(path, leaf.shape)
        if not 0 < found[path] < leaf.ndim:
          raise ValueError(
            f'{"/".join(path)} {leaf.shape} cannot have {found[path]} input '
            'axes: leave it out by `project` or correct `input_axes`.'
          )
    return found

  def bias_of(path, leaves):
    path = (*path[:-1], 'bias')
    return path if biases and path in leaves else None

  def init_fn(params):
    leaves = trees.flatten(params)
    bases, ranks, with_bias = {}, {}, []
    for path, axes in kernels(params).items():
      if _layer(path) in bases:  # Their inputs may differ.
        raise types.InputError(f'{path} is second in its layer: project one')
      size = math.prod(leaves[path].shape[:axes])
      if bias_of(path, leaves) is not None:
        size += 1
        with_bias.append(_layer(path))
      bases[_layer(path)] = jnp.zeros((size, size), jnp.float32)
      ranks[_layer(path)] = jnp.zeros((), jnp.int32)
    none = jnp.zeros((), jnp.int32)
    return ProjectionState(bases, ranks, none, tuple(with_bias))

  def update_fn(updates, state, params=None):
    del params  # The update alone is projected.
    leaves = trees.flatten(updates)
    new = {}
    for path, axes in kernels(updates).items():
      basis, rank = state.bases[_layer(path)], state.ranks[_layer(path)]
      kernel = leaves[path]
      matrix = kernel.reshape(math.prod(kernel.shape[:axes]), -1)
      bias_path = bias_of(path, leaves)
      if bias_path is not None:
        bias = leaves[bias_path]
        matrix = jnp.concatenate([matrix, bias.reshape(1, -1)])
      matrix = _take_out(matrix.astype(jnp.float32), basis, rank)
      if bias_path is not None:
        matrix, last = matrix[:-1], matrix[-1]
        new[bias_path] = last.reshape(bias.shape).astype(bias.dtype)
      new[path] = matrix.reshape(kernel.shape).astype(kernel.dtype)
    for path, leaf in leaves.items():
      if path not in new:
        new[path] = leaf
        if freeze_others and not (free is not None and free(path)):
          new[path] = jnp.where(state.num_tasks > 0, jnp.zeros_like(leaf), leaf)
    structure = jax.tree.structure(updates)
    return jax.tree.unflatten(structure, [new[p] for p in leaves]), state

  return optax.GradientTransformation(init_fn, update_fn)


def _layer(path: trees.Path) -> str:
  return '/'.join(path[:-1])


def _take_out(matrix, basis, rank):
  """G - M M' G for the matrix G [n, out], in float32 on all devices."""
  block = min(_BLOCK, basis.shape[0])
  # On TPUs the default is bfloat16, with which 1e-3 of the old span would leak.
  exact = jax.lax.Precision.HIGHEST

  def body(index, rest):
    # The last block may begin earlier and take columns out twice: harmless.
    columns = jax.lax.dynamic_slice_in_dim(basis, index * block, block, axis=1)
    inside = jnp.matmul(columns.T, rest, precision=exact)
    return rest - jnp.matmul(columns, inside, precision=exact)

  return jax.lax.fori_loop(0, (rank + block - 1) // block, body, matrix)


def update_bases(
  opt_state: types.PyTree,
  representations: Mapping[str, np.ndarray],
  thresholds: float | Mapping[str, float],
  *,
  growth: float = 0.0,
  first_task_strict: bool = False,
) -> types.PyTree:
  """Adds the directions that a new task's inputs need (eq. 5, 8 and 9).

  With the inputs R of a layer and P = M M' from before, it adds the fewest left
  singular vectors of R - P R for which |P R|^2 + |(R - P R)_k|^2 >= threshold *
  |R|^2, up to n in all. Directions with less than 1e-6 of |R| are rounding and
  are never added, so that a threshold of 1 spans R and no more.

  A layer whose basis is full no longer learns; that is logged when it happens.

  Args:
    opt_state: A `ProjectionState`, or the state of a chain that holds one.
    representations: Layer -> its inputs, one a column, [n, s], after training
      on the task, as `layer_inputs.representations` gives it. All processes
      must pass the same.
    thresholds: Part of |R|^2 to keep, in (0, 1]; one for all layers, or one a
      layer.
    growth: Added to the thresholds once for every task before this one.
    first_task_strict: Whether the first task takes one direction fewer than eq.
      5 asks for, as in the authors' code.

  Returns:
    The state with new bases, ranks and number of tasks.

  Raises:
    InputError: If a layer has no representation, or one of another size or
      without a column, or a threshold is out of range.
    ValueError: If there is no `ProjectionState` in the state, or several.
  """
  is_ours = lambda x: isinstance(x, ProjectionState)  # noqa: E731
  found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(x)]
  if len(found) != 1:
    raise ValueError(
      'update_bases needs an optimizer state with one ProjectionState, of '
      f'optim.project_gradients; it has {len(found)}.'
    )
  (state,) = found
  task = int(state.num_tasks)
  bases, ranks = {}, {}
  for layer, basis in state.bases.items():
    basis, rank = np.asarray(basis), int(state.ranks[layer])
    inputs = _inputs(
      layer, representations, basis.shape[0], layer in state.with_bias
    )
    threshold = _threshold(layer, thresholds) + growth * task
    if not 0 < threshold <= 1:
      raise types.InputError(
        f'The threshold of layer {layer!r} for task {task} must be in (0, 1]; '
        f'got {threshold:g}: change thresholds or growth.'
      )
    columns = spans.extended(
      basis[:, :rank].astype(np.float64),
      inputs,
      threshold,
      one_fewer=first_task_strict and task == 0,
    )
    new_rank = columns.shape[1]
    if new_rank == basis.shape[0] > rank:
      _log_full(layer, new_rank, task)
    padded = np.zeros_like(basis)
    padded[:, :new_rank] = columns
    bases[layer] = jnp.asarray(padded)
    ranks[layer] = jnp.asarray(new_rank, jnp.int32)
  new = dataclasses.replace(
    state,
    bases=bases,
    ranks=ranks,
    num_tasks=jnp.asarray(task + 1, jnp.int32),
  )
  return jax.tree.map(
    lambda x: new if is_ours(x) else x, opt_state, is_leaf=is_ours
  )


def _inputs(layer, representations, size, with_bias):
  """A layer's inputs in float64, [size, s], with a row of ones for a bias."""
  size -= with_bias
  if layer not in representations:
    raise types.InputError(
      f'There is no representation of layer {layer!r}, whose kernel is '
      f'projected; there are {sorted(representations)}. Leave it out by '
      '`project` of project_gradients, or pass its inputs.'
    )
  inputs = np.asarray(representations[layer], np.float64)
  if inputs.ndim != 2 or inputs.shape[0] != size or not inputs.shape[1]:
    raise types.InputError(
      f'The representation of layer {layer!r} must be [{size}, s], one column '
      f'an input, and s > 0; got {inputs.shape}. See `input_axes` of '
      'project_gradients.'
    )
  if not np.isfinite(inputs).all():
    raise types.InputError(
      f'The representation of layer {layer!r} holds NaN or infinity.'
    )
  if with_bias:
    inputs = np.concatenate([inputs, np.ones((1, inputs.shape[1]))])
  return inputs


def _threshold(layer, thresholds):
  if not isinstance(thresholds, Mapping):
    return float(thresholds)
  if layer not in thresholds:
    raise types.InputError(
      f'thresholds has none for layer {layer!r}; it has {sorted(thresholds)}.'
    )
  return float(thresholds[layer])


def _log_full(layer, size, task):
  from absl import logging

  logging.warning(
    'The basis of layer %r is full after task %d (%d directions): the layer '
    'stops to learn. Lower its threshold to leave it room.',
    layer,
    task,
    size,
  )
