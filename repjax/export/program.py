"""Host side: what a method predicts, as a program that runs without repjax.

`jax.export` makes StableHLO of it, for a CPU, a GPU and a TPU at once, with
rows of any number. A folder has three files:

    predict.jax          the program, a function of (weights, inputs)
    weights.safetensors  name -> array, the first argument
    signature.json       names, types and shapes of inputs and outputs

    predict = program.load(folder)
    predict({'image': images})['logits']

`load` is short, and needs jax, flatbuffers and safetensors alone: whoever
serves the program need not have repjax. The program is guaranteed to run for as
long as JAX says: https://docs.jax.dev/en/latest/export/export.html
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import importlib
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from repjax import files
from repjax import trees
from repjax import types

PROGRAM, WEIGHTS, SIGNATURE = (
  'predict.jax',
  'weights.safetensors',
  'signature.json',
)
PLATFORMS = ('cpu', 'cuda', 'tpu')
# What says which rows are real; here all are.
_MASK = 'mask'


class Signature(NamedTuple):
  """What a program takes and gives.

  Attributes:
    inputs: Name -> type and shape, in which 'rows' stands for any number.
    outputs: Name -> type and shape.
  """

  inputs: dict[str, dict[str, Any]]
  outputs: dict[str, dict[str, Any]]


def write(
  folder: str | os.PathLike,
  method: types.Method | types.Predictor,
  state: types.TrainState | Mapping[str, Any],
  batch: types.Batch | types.HostBatch,
  *,
  rows: int = 0,
) -> Signature:
  """Writes what a method predicts as a program.

  Of the state and of the batch that is kept which the prediction reads: no
  moments of an optimizer, no keys of noise, no labels.

  Args:
    folder: That exists.
    method: Of any recipe.
    state: What it predicts with.
    batch: Any rows: the inputs have their columns and types.
    rows: Number of rows of each call; 0 for any.

  Raises:
    InputError: The program cannot be made; says why.
  """
  _check_installed()
  folder = pathlib.Path(folder)
  names = ['/'.join(p) for p in trees.flatten(state)]
  leaves, structure = jax.tree.flatten(state)
  count: Any = 0

  def predict(weights, inputs):
    # What is not read may be anything of its shape, which linen looks at in
    # every layer that is called, though nothing is made of it.
    blank = [jnp.zeros(x.shape, x.dtype) for x in leaves]
    own = {**dict(zip(names, blank, strict=True)), **weights}
    restored = jax.tree.unflatten(structure, [own[x] for x in names])
    others = {
      name: jnp.zeros((count, *x.shape[1:]), _dtype(x))
      for name, x in batch.items()
      if name not in inputs
    }
    mask = {_MASK: jnp.ones(count, jnp.float32)}
    return dict(method.predict(restored, {**others, **mask, **inputs}))

  weights = dict(zip(names, leaves, strict=True))
  inputs = {name: x for name, x in batch.items() if name != _MASK}
  # Of inputs with any number of rows none is left out, read or not.
  column: Any = next(iter(batch.values()))
  count = len(column)
  whole = _export(predict, weights, _rows(inputs, count))
  read = set(whole.module_kept_var_idx)
  count = rows or export.symbolic_shape('rows')[0]
  weights, inputs = jax.tree.unflatten(
    jax.tree.structure((weights, inputs)),
    [
      x if i in read else None
      for i, x in enumerate(jax.tree.leaves((weights, inputs)))
    ],
  )
  weights = {name: x for name, x in weights.items() if x is not None}
  inputs = {name: x for name, x in inputs.items() if x is not None}
  _check_arrays(weights)
  inputs = _rows(inputs, count)
  made = _export(predict, weights, inputs, any_rows=not rows)
  signature = Signature(
    _described(inputs),
    _described(jax.tree.unflatten(made.out_tree, made.out_avals)),
  )
  with files.replacing(folder / PROGRAM) as partial:
    partial.write_bytes(made.serialize())
  with files.replacing(folder / WEIGHTS) as partial:
    safetensors.numpy.save_file(
      # Written as it lies in memory. (`ascontiguousarray` gives 0-d an axis.)
      {name: np.asarray(x, order='C') for name, x in weights.items()},
      partial,
    )
  files.write_json(
    folder / SIGNATURE,
    {
      **signature._asdict(),
      'platforms': list(made.platforms),
      'calling_convention_version': made.calling_convention_version,
      'jax': jax.__version__,
    },
  )
  return signature


def _check_installed():
  try:
    importlib.import_module('flatbuffers')
  except ImportError as error:
    raise types.InputError(
      'JAX writes and reads programs (--format=jax) with flatbuffers, which is '
      'missing: pip install flatbuffers, or -e ".[serve]".'
    ) from error


def load(
  folder: str | os.PathLike,
) -> Callable[[Mapping[str, Any]], dict[str, jax.Array]]:
  """What `write` has written, as a function of inputs by name.

  Raises:
    InputError: A file is missing or damaged, or flatbuffers is not installed;
      by the function, inputs are not those that the program takes.
  """
  folder = pathlib.Path(folder).expanduser()
  _check_installed()
  try:
    made = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    weights = safetensors.numpy.load_file(folder / WEIGHTS)
    wanted = files.read_json(folder / SIGNATURE, 'inputs')['inputs']
  except Exception as error:  # A damaged file makes its reader raise anything.
    raise types.InputError(
      f'{folder} holds no whole program: {error or type(error).__name__}'
    ) from error
  weights = jax.device_put(weights)

  def call(inputs):
    _check_inputs(folder, wanted, inputs)
    return made.call(weights, dict(inputs))

  return call


def _check_inputs(folder, wanted, inputs):
  """Names the first input that a program does not take."""
  if wanted.keys() != inputs.keys():
    raise types.InputError(
      f'the program of {folder} takes {sorted(wanted)}, got {sorted(inputs)}'
    )
  counts = {len(x) if np.ndim(x) else 0 for x in inputs.values()}
  for name, said in wanted.items():
    given = inputs[name]
    shape, asked = list(np.shape(given)), said['shape']
    dtype = str(_dtype(given if hasattr(given, 'dtype') else np.asarray(given)))
    whole = len(counts) == 1 and min(counts) > 0
    same = shape[1:] == asked[1:] and asked[0] in ('rows', *shape[:1])
    if not (whole and same and dtype == said['dtype']):
      raise types.InputError(
        f'the program of {folder} takes {name} of {said["dtype"]} {asked}, got '
        f'{dtype} {shape}'
      )


def _rows(inputs, count):
  """The shapes of inputs with another number of rows."""
  return {
    name: jax.ShapeDtypeStruct((count, *x.shape[1:]), _dtype(x))
    for name, x in inputs.items()
  }


def _dtype(x):
  """The type that an array has on a device."""
  return jax.dtypes.canonicalize_dtype(x.dtype)


def _export(predict, weights, inputs, *, any_rows=False):
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (weights, inputs)
  )
  try:
    with _for_any_device():
      return export.export(jax.jit(predict), platforms=PLATFORMS)(*shapes)
  except Exception as error:  # Whatever the network does with its shapes.
    text = ' '.join(str(error).split())[:200]
    hint = ': where it is made for one number of rows, --rows=8' * any_rows
    raise types.InputError(
      f'--format=jax: {type(error).__name__}: {text}{hint}'
    ) from error


def _for_any_device():
  """Keeps out what fits the GPU at hand alone, such as fused attention."""
  try:
    return jax.default_device(jax.devices('cpu')[0])
  except RuntimeError:  # JAX_PLATFORMS may leave it out.
    return contextlib.nullcontext()


def _check_arrays(weights):
  keys = [
    name
    for name, x in weights.items()
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  ]
  if keys:
    raise types.InputError(
      f'--format=jax: the prediction draws random numbers by {keys}, and files '
      'of weights hold no keys.'
    )


def _described(tree) -> dict[str, dict[str, Any]]:
  return {
    name: {
      'dtype': str(x.dtype),
      'shape': [n if isinstance(n, int) else str(n) for n in x.shape],
    }
    for name, x in tree.items()
  }
