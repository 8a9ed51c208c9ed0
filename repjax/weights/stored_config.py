"""Host code: what stands beside published weights, with complaints about it.

That is the config.json of their model, and the preprocessor_config.json of the
pixels that they have learned from.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np

from repjax.types import InputError
from repjax.weights import torch_layout

# What files call the activations.
GELU: Mapping[str, Any] = {
  'gelu': 'exact',
  'gelu_new': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
}

_PROCESSOR = 'preprocessor_config.json'
# The field, and what it is of pixels that are not normalised.
_NAMES = {'mean': ('image_mean', 0.0), 'std': ('image_std', 1.0)}


class Stored:
  """Fields of a config.json. One that is null is one that is absent.

  Args:
    path: The folder of the model, or a file in it.
    fields: What stands in the file; None reads it.

  Raises:
    InputError: There is no config.json.
  """

  def __init__(
    self, path: str | os.PathLike, fields: Mapping[str, Any] | None = None
  ):
    self._path = path
    if fields is None:
      fields = torch_layout.read_json(path, 'config.json')
    self._fields = fields

  def part(self, *names: str) -> 'Stored':
    """The fields that stand in fields of these names; later ones count."""
    found: dict[str, Any] = {}
    for name in names:
      found |= self(name, {})
    return Stored(self._path, found)

  def __call__(self, name: str, default: Any) -> Any:
    """The value of a field; absent ones have the defaults of transformers.

    Raises:
      InputError: It is of another kind than the default, unless that is None.
    """
    value = self._fields.get(name, default)
    if value is None or default is None:
      return default if value is None else value
    # JSON writes 1.0 as 1, and nobody means a number by true.
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    if type(value) not in kinds:
      self.refuse(f'{name} must be like {default!r}, got {value!r}')
    return value

  def __contains__(self, name: str) -> bool:
    """Whether the file has a field, and not null in it."""
    return self._fields.get(name) is not None

  def check(self, name: str, choices: tuple[Any, ...]) -> Any:
    """The value of a field, one of `choices`, of which the first is default."""
    value = self(name, None)
    value = choices[0] if value is None else value
    if value not in choices:
      self.refuse(f'{name} must be one of {choices}, got {value!r}')
    return value

  def refuse(self, why: str) -> None:
    """Raises an InputError that names the file."""
    raise InputError(f'config.json of {self._path}: {why}')

  def patch_size(self, default: int = 16) -> int | tuple[int, int]:
    """Sides of the patches of a model of images."""
    size = self('patch_size', None)
    if isinstance(size, list) and len(size) == 2:
      return size[0], size[1]
    return self('patch_size', default)

  def num_classes(self) -> int:
    """Number of classes of a head."""
    # No dictionary is empty of classes.
    return len(self('id2label', {})) or self('num_labels', 2)


def check_gelu(
  path: str | os.PathLike, gelu: str, choices: tuple[str, ...]
) -> None:
  """Refuses weights whose config.json, where there is one, has another GELU.

  Args:
    path: The weights' file or folder.
    gelu: The network's, 'exact' or 'tanh'.
    choices: What model_type may be.

  Raises:
    InputError: It is of another model, or has another activation.
  """
  place = pathlib.Path(path).expanduser()
  beside = (place if place.is_dir() else place.parent) / 'config.json'
  if not beside.is_file() or 'model_type' not in Stored(path):
    return  # Of a run, or of another library.
  stored = Stored(path)
  stored.check('model_type', choices)
  if GELU[stored.check('hidden_act', tuple(GELU))] != gelu:
    stored.refuse(f'its form of GELU is not {gelu!r}, that of the network')


def warn_of_other_pixels(
  path: str | os.PathLike, augment: Mapping[str, Sequence[float]]
) -> str:
  """Warns of weights that have seen pixels of another mean or spread.

  They load, and begin from worse than they know. The preprocessor_config.json
  beside Hugging Face's weights says what they have seen; without it, or where
  it says nothing of a field, nothing is said.

  Args:
    path: The weights' file or folder.
    augment: With mean and std of value / 255, one number or one a channel.

  Returns:
    The warning, or ''.

  Raises:
    InputError: If there is such a file, and it cannot be read or compared.
  """
  place = pathlib.Path(path).expanduser()
  beside = (place if place.is_dir() else place.parent) / _PROCESSOR
  if place.suffix == '.npz' or not beside.is_file():
    return ''
  stored = torch_layout.read_json(beside, _PROCESSOR)
  wrong = []
  for name, (field, without) in _NAMES.items():
    seen = without if stored.get('do_normalize') is False else stored.get(field)
    if seen is None:
      continue
    own = tuple(augment[name])
    try:
      said = np.asarray(seen, np.float64) / _scale(stored)
      same = np.allclose(said, own, rtol=0, atol=0.005)
    except (TypeError, ValueError) as error:
      raise InputError(
        f'{beside}: {field}={seen!r} is nothing to compare with '
        f'config.augment.{name}={own}: mend or remove the file. ({error})'
      ) from error
    if not same:
      said = tuple(np.atleast_1d(said.round(4)).tolist())
      wrong.append(f'config.augment.{name}={own} where {field} is {said}')
  if not wrong:
    return ''
  line = (
    f'{beside}: weights have learned from other pixels: {"; ".join(wrong)}. '
    'Set --config.augment.mean and --config.augment.std to what they know.'
  )
  logging.warning('%s', line)
  return line


def _scale(stored):
  """What value / 255 is multiplied by before it is normalised."""
  if stored.get('do_rescale') is False:
    return 255.0
  factor = stored.get('rescale_factor')
  scale = 1.0 if factor is None else 255 * float(factor)
  if not scale > 0:
    raise ValueError(f'rescale_factor={factor}')
  return scale
