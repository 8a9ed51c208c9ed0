"""Host code: arrays as PyTorch keeps them in safetensors files, and as ours."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from repjax import files
from repjax import trees
from repjax.types import InputError
from repjax.types import PyTree

# Regular expressions and what stands in for them, applied in turn.
Rules = tuple[tuple[str, str], ...]


def rename(name: str, rules: Rules) -> str:
  """A name after all rules."""
  for pattern, replacement in rules:
    name = re.sub(pattern, replacement, name)
  return name


def flatten(params: PyTree) -> dict[str, jax.Array]:
  """Leaves by path, joined by '/'."""
  return {'/'.join(p): leaf for p, leaf in trees.flatten(params).items()}


def unflatten(like: PyTree, leaves: dict[str, jax.Array]) -> PyTree:
  """A tree like another one with the leaves of these names."""
  names = flatten(like)
  return jax.tree.unflatten(
    jax.tree.structure(like), [leaves[name] for name in names]
  )


def merge_heads(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Our shape with heads and their width in one axis, as in PyTorch."""
  if not re.search('(^|[/_])attention/', name) or name.endswith('/out/bias'):
    return shape
  axis = 0 if name.endswith(('/out/kernel', '/bias')) else 1
  return (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def to_torch(array: np.ndarray, name: str) -> np.ndarray:
  """A leaf of ours as PyTorch has it."""
  array = array.reshape(merge_heads(name, array.shape))
  if array.ndim == 4:  # Convolution: [P, P', C, D] -> [D, C, P, P'].
    array = array.transpose(3, 2, 0, 1)
  elif array.ndim == 2 and name.endswith('kernel'):  # [in, out] -> [out, in].
    array = array.T
  return np.ascontiguousarray(array)


def from_torch(
  array: np.ndarray, name: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Inverse of `to_torch`; heads stay merged where sizes differ."""
  if array.ndim == 4:
    array = array.transpose(2, 3, 1, 0)
  elif array.ndim == 2 and name.endswith('kernel'):
    array = array.T
  fits = array.shape == merge_heads(name, shape)
  return array.reshape(shape) if fits else array


def check_names(
  path: str | os.PathLike,
  wanted: Collection[str],
  stored: Collection[str],
  *,
  hint: Callable[[set[str]], str] = lambda names: '',
) -> None:
  """Raises an `InputError` that names what is missing or left over.

  Args:
    path: For the message.
    wanted: Names that the file must have.
    stored: Names that it has.
    hint: Names that do not fit -> what to do about it.
  """
  missing, unexpected = {*wanted} - {*stored}, {*stored} - {*wanted}
  if missing or unexpected:
    raise InputError(
      f'{path} does not fit the model: missing {sorted(missing)}; unexpected '
      f'{sorted(unexpected)}{hint(missing | unexpected)}'
    )


def fill(
  path: str | os.PathLike,
  source: Mapping[str, np.ndarray],
  wanted: Mapping[str, str],
  params: PyTree,
  *,
  kept: Mapping[str, jax.Array] | None = None,
  convert: Callable[..., Any] = from_torch,
  hint: Callable[[list[str]], str] = lambda names: '',
) -> PyTree:
  """Puts arrays of a file in the place of leaves.

  Args:
    path: For the message.
    source: Name in the file -> array.
    wanted: Name in the file -> name of the leaf.
    params: What is wanted.
    kept: Leaves, by name, that the file does not give.
    convert: (array, name of the leaf, its shape) -> the array as ours.
    hint: Names of leaves whose shapes differ -> what to do about it.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: Shapes differ; names the leaves. Or an array holds no finite
      numbers, or whole ones, as quantized weights do.
  """
  target, leaves, misfits = flatten(params), dict(kept or {}), {}
  for stored, name in wanted.items():
    leaf = target[name]
    if not jnp.issubdtype(source[stored].dtype, jnp.floating):
      raise InputError(
        f'{path}: {stored} is {source[stored].dtype}: give weights that are '
        'not quantized.'
      )
    array = convert(source[stored], name, leaf.shape)
    if not np.isfinite(array).all():
      raise InputError(f'{path}: {stored} has NaN or infinite numbers.')
    if array.shape != leaf.shape:
      misfits[name] = f'{stored} {array.shape} for {name} {leaf.shape}'
    leaves[name] = jnp.array(array, leaf.dtype)
  if misfits:
    raise InputError(
      f'{path} does not fit the model, shapes differ: '
      f'{", ".join(misfits.values())}{hint(list(misfits))}'
    )
  return unflatten(params, leaves)


def read(
  path: str | os.PathLike, file: str = 'model.safetensors'
) -> dict[str, np.ndarray]:
  """Arrays of a safetensors file, or of `file` in a folder.

  Large ones come in several files, which `<file>.index.json` names; it may be
  given itself.

  Raises:
    InputError: They cannot be read.
  """
  path = pathlib.Path(path).expanduser()
  path = path / file if path.is_dir() else path
  index = path
  if path.suffix != '.json':
    index = path.with_name(f'{path.name}.index.json')
    if path.is_file() or not index.is_file():
      return _read_one(path)
  places = read_json(index, index.name).get('weight_map')
  if not isinstance(places, dict) or not all(
    isinstance(x, str) and pathlib.Path(x).name == x for x in places.values()
  ):
    raise InputError(f'{index} has no weight_map of arrays to files beside it')
  arrays: dict[str, np.ndarray] = {}
  for shard in sorted({*places.values()}):
    arrays |= _read_one(index.with_name(shard))
  missing = sorted(places.keys() - arrays.keys())
  if missing:
    raise InputError(f'the files of {index} lack {missing}')
  return arrays


def _read_one(path):
  try:
    return safetensors.numpy.load_file(path)
  except Exception as error:  # A damaged file makes its reader raise anything.
    raise InputError(
      f'cannot read weights from {path}: {error or type(error).__name__}'
    ) from error


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Writes a safetensors file, replaced in one step."""
  # Memory is written as it lies.
  arrays = {name: np.asarray(x, order='C') for name, x in arrays.items()}
  with files.replacing(path) as partial:
    # transformers refuses files that do not say for which framework they are.
    safetensors.numpy.save_file(arrays, partial, metadata={'format': 'pt'})


def read_json(path: str | os.PathLike, file: str) -> dict[str, Any]:
  """A JSON file in a folder, or beside a file.

  Raises:
    InputError: It cannot be read, or holds no object.
  """
  path = pathlib.Path(path).expanduser()
  # A folder that is not there must not stand for the one above it.
  is_file = path.is_file() or path.suffix in ('.json', '.npz', '.safetensors')
  path = (path.parent if is_file else path) / file
  try:
    stored = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'cannot read {path}: {error}') from error
  if not isinstance(stored, dict):
    raise InputError(f'{path} holds no JSON object')
  return stored
