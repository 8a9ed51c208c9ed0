"""Named paths in trees, masks that fail at no match, and tables of all rows.

A predicate takes the path of a leaf as a tuple of names, for example
`('encoder', 'block_0', 'mlp', 'kernel')`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
from typing import Any
import zlib

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np

from repjax import types

Path = tuple[str, ...]


def _name(entry) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  return str(entry)


def _names(path) -> Path:
  """Without the name of what `PerRow` wraps, which has none."""
  return tuple(name for name in map(_name, path) if name)


def flatten(tree: types.PyTree) -> dict[Path, jax.Array]:
  """Leaves by path, in tree order.

  >>> list(flatten({'head': {'kernel': 1, 'bias': 2}}))
  [('head', 'bias'), ('head', 'kernel')]
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_names(path): leaf for path, leaf in leaves}


# Single numbers, which half precision would move too far.
SINGLE = {'strides', 'logit_scale', 'logit_bias'}


def cast(tree: types.PyTree, dtype: jax.typing.DTypeLike) -> types.PyTree:
  """Floating-point leaves in a type; float32 leaves them as they are."""

  def one(path, x):
    kept = SINGLE.intersection(_names(path)[-1:])
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if floating and not kept else x

  if dtype == jnp.float32:
    return tree
  return jax.tree_util.tree_map_with_path(one, tree)


def stack(trees: Sequence[types.PyTree]) -> types.PyTree:
  """Trees of one structure as one, with a leading axis."""
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def unstack(tree: types.PyTree) -> list[types.PyTree]:
  """A tree whose leaves have a leading axis as a list of trees."""
  count = len(jax.tree.leaves(tree)[0])
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


def map_with_path(
  fn: Callable[..., Any], tree: types.PyTree, *others: types.PyTree
) -> types.PyTree:
  """`jax.tree.map` of trees of one structure, with a leaf's path in front.

  >>> map_with_path(lambda path, x: (*path, x), {'head': {'bias': 2}})
  {'head': {'bias': ('head', 'bias', 2)}}
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: fn(_names(path), *leaves), tree, *others
  )


def mask(tree: types.PyTree, predicate: Callable[[Path], bool]) -> types.PyTree:
  """A tree of booleans: True where the predicate holds for the leaf's path.

  Args:
    tree: Parameters.
    predicate: Path of a leaf -> whether it is selected.

  Returns:
    A tree of the same structure, as `optax.masked` wants it.

  Raises:
    ValueError: If no leaf is selected; the message lists the paths.

  >>> mask({'head': 1, 'body': 2}, lambda path: path[0] == 'head')
  {'body': False, 'head': True}
  """
  paths = list(flatten(tree))
  selected = [bool(predicate(path)) for path in paths]
  if not any(selected):
    names = ['/'.join(path) for path in paths]
    shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
    raise ValueError(f'The predicate selects no leaf of: {shown}')
  return jax.tree.unflatten(jax.tree.structure(tree), selected)


def under(tree: types.PyTree, module: str) -> list[Path]:
  """Paths of all leaves of one module, in tree order.

  Args:
    tree: Parameters.
    module: Names joined by '/', for example 'head'.

  Raises:
    InputError: If it has none; names the nearest module.
  """
  names, paths = tuple(module.split('/')), list(flatten(tree))
  found = [path for path in paths if path[: len(names)] == names]
  if not found:
    modules = sorted({'/'.join(path[:-1]) for path in paths})
    raise types.InputError(
      f'The network has no parameters under {module!r}.'
      f'{nearest(module, modules)} It has: {", ".join(modules)}'
    )
  return found


def check_leaves(
  found: Mapping[Path, Any], wanted: Mapping[Path, Any], *, what: str
) -> None:
  """Raises an InputError that names missing, extra and misshapen leaves."""

  def names(paths):
    return sorted('/'.join(path) for path in paths)

  missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
  shapes = [
    f'{"/".join(path)} {np.shape(found[path])}, not {np.shape(wanted[path])}'
    for path in wanted.keys() & found.keys()
    if np.shape(found[path]) != np.shape(wanted[path])
  ]
  if missing or extra or shapes:
    raise types.InputError(
      f'{what} do not fit: missing {names(missing)}; unexpected '
      f'{names(extra)}; other shapes {sorted(shapes)}'
    )


def size(tree: types.PyTree) -> int:
  """Number of elements of all leaves."""
  return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def crc32(tree: types.PyTree) -> str:
  """Checksum of all leaves with their paths: equal trees, bit for bit."""
  crc = 0
  for path, leaf in flatten(tree).items():
    crc = zlib.crc32('/'.join(path).encode(), crc)
    crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
  return f'{crc:08x}'


def first_nonfinite(tree: types.PyTree) -> str | None:
  """Path of the first leaf that holds NaN or infinity, or None."""
  for path, leaf in flatten(tree).items():
    value = np.asarray(leaf)
    inexact = jax.dtypes.issubdtype(value.dtype, np.inexact)
    if inexact and not np.isfinite(value).all():
      return '/'.join(path)
  return None


def check_own_keys(tree: types.PyTree) -> None:
  """Refuses states side by side, [S, ...], that would draw the same numbers.

  A state that draws has a field `key`, the data of a key. Where the numbers
  make gradients private, the difference of two models with one key tells all.

  Raises:
    InputError: If a key is that of several.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    is_key = path[-1:] == (jax.tree_util.GetAttrKey('key'),)
    if is_key and len(np.unique(x, axis=0)) < len(x):
      raise types.InputError(
        'Models that train side by side have one key in the states of their '
        'optimizers, and would draw the same noise: give each its own '
        '(repjax.experiments.private.Plan.with_keys).'
      )


def nearest(name: str, names) -> str:
  """' Did you mean ...?' for a misspelt name, or ''."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f' Did you mean {close[0]!r}?' if close else ''


def _is_key(x) -> bool:
  return isinstance(x, jax.Array) and jax.dtypes.issubdtype(
    x.dtype, jax.dtypes.prng_key
  )


def to_arrays(state: types.TrainState) -> dict[str, np.ndarray]:
  """Path, joined by '/', -> host array; keys become their words."""
  state = jax.tree.map(
    lambda x: jax.random.key_data(x) if _is_key(x) else x, state
  )
  state = jax.device_get(state)
  return {
    '/'.join(path): np.asarray(leaf) for path, leaf in flatten(state).items()
  }


def from_arrays(
  arrays: dict[str, np.ndarray], like: types.TrainState, *, where: Any
) -> types.TrainState:
  """What `to_arrays` gave, as a state of the structure of another.

  Args:
    arrays: Path -> array; those without elements may be missing.
    like: A state of the wanted structure, shapes and dtypes.
    where: The checkpoint that they are of, for the error.

  Raises:
    InputError: If they are of another network; lists missing, unexpected and
      differently shaped arrays.
  """
  wanted = _shapes(like)
  present = {name: (x.shape, x.dtype) for name, x in arrays.items()}
  present.update(
    {name: s for name, s in wanted.items() if not np.prod(s[0], dtype=int)}
  )
  missing = sorted(wanted.keys() - present.keys())
  unexpected = sorted(present.keys() - wanted.keys())
  other = sorted(
    f'{name} {present[name][0]} {present[name][1]} (wanted '
    f'{wanted[name][0]} {wanted[name][1]})'
    for name in wanted.keys() & present.keys()
    if present[name] != wanted[name]
  )
  if missing or unexpected or other:
    raise types.InputError(
      f'{where} is a checkpoint of another network or optimizer: '
      f'missing {missing}; unexpected {unexpected}; different {other}. '
      'Give the config it was made with, or another --workdir.'
    )
  leaves = []
  for path, leaf in flatten(like).items():
    name = '/'.join(path)
    shape, dtype = wanted[name]
    value: Any = arrays.get(name, np.zeros(shape, dtype))
    if _is_key(leaf):
      value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    leaves.append(value)
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _shapes(state):
  return {name: (x.shape, x.dtype) for name, x in to_arrays(state).items()}


# A part of a state that has something of every row of training.


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class PerRow:
  """A table of all rows of training, which several devices keep in parts.

  `parallel.replicate` spreads it, the first rows to the first device, and
  `parallel.whole` brings it together; checkpoints have it whole. In a path of
  leaves it has no name of its own.

  Attributes:
    values: [N, ...]; where it is spread, this device's [ceil(N / n), ...] in a
      step of n devices, and [devices, ceil(N / n), ...] between two steps.
    num_rows: N.
    spread: Whether each device has its part alone.
  """

  values: Any
  num_rows: int
  spread: bool = False

  def tree_flatten_with_keys(self):
    """Its one leaf, whose path is that of the table."""
    key = jax.tree_util.GetAttrKey('')
    return ((key, self.values),), (self.num_rows, self.spread)

  @classmethod
  def tree_unflatten(cls, fixed, leaves):
    """What `tree_flatten_with_keys` took apart."""
    return cls(*leaves, *fixed)


serialization.register_serialization_state(
  PerRow,
  lambda x: {'values': serialization.to_state_dict(x.values)},
  lambda x, given: dataclasses.replace(x, values=given['values']),
)


def map_tables(
  fn: Callable[[PerRow], PerRow], tree: types.PyTree
) -> types.PyTree:
  """`jax.tree.map` of the tables of a tree alone."""
  is_table = lambda x: isinstance(x, PerRow)  # noqa: E731
  return jax.tree.map(
    lambda x: fn(x) if is_table(x) else x, tree, is_leaf=is_table
  )


def apart(tree: types.PyTree) -> tuple[types.PyTree, list[jax.Array]]:
  """A tree without what is spread by row, and that."""
  parts = []

  def without(table):
    if not table.spread:
      return table
    parts.append(table.values)
    return dataclasses.replace(table, values=None)

  return map_tables(without, tree), parts


def joined(tree: types.PyTree, parts: Sequence[jax.Array]) -> types.PyTree:
  """What was taken `apart`."""
  left = iter(parts)
  return map_tables(
    lambda x: dataclasses.replace(x, values=next(left)) if x.spread else x, tree
  )
