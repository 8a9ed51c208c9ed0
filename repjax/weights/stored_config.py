"""Host code: a published model's config.json, with complaints about it."""

from collections.abc import Mapping
import os
from typing import Any

from repjax.types import InputError
from repjax.weights import torch_layout

# What files call the activations.
GELU: Mapping[str, Any] = {
  'gelu': 'exact',
  'gelu_new': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
}


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
