"""Host side: names of sets that are files of one's own.

`config.data.name` says what kind of files `config.data.dir` holds, and, behind
a colon, how they are read: 'folder', 'csv:label=stars,test_share=0.1'.
"""

from collections.abc import Mapping
from typing import NamedTuple

from repjax import types
from repjax.data.reading import prepared

KINDS = prepared.OWN_KINDS
_OF_FOLDERS = ('unreadable', 'channels', 'test_share')


class Name(NamedTuple):
  """A name, taken apart.

  Attributes:
    kind: One of `KINDS`.
    renamed: Column -> what it is called in the files.
    test_share: Part of each class that is the test split where files give none.
    unreadable: What to do with images that cannot be read, 'refuse' or 'skip'.
    channels: Of images; 0 for those that they have.
  """

  kind: str
  renamed: Mapping[str, str]
  test_share: float = 0.2
  unreadable: str = 'refuse'
  channels: int = 0


def parse(name: str) -> Name:
  """Takes a name apart.

  >>> parse('csv:label=stars').renamed
  {'label': 'stars'}

  Raises:
    InputError: An option is unknown, or its value is out of range.
  """
  kind, _, text = name.partition(':')
  types.check_choice('config.data.name', kind, KINDS)
  said = {}
  for option in text.split(',') if text else ():
    key, equals, value = (x.strip() for x in option.partition('='))
    if not key or not equals or not value:
      raise types.InputError(
        f'--config.data.name={name}: {option!r} is no option such as '
        + ('unreadable=skip.' if kind == 'folder' else 'label=COLUMN.')
      )
    if key in said:
      raise types.InputError(f'--config.data.name={name} says {key} twice.')
    said[key] = value
  share = _number(name, said, 'test_share', 0.2, '(0, 1)')
  channels, unreadable = 0, 'refuse'
  if kind == 'folder':
    number = _number(name, said, 'channels', 0, '[0, 3]')
    types.check_choice(f'channels of --config.data.name={name}', number, _ANY)
    channels = int(number)
    unreadable = said.pop('unreadable', unreadable)
    types.check_choice(
      f'unreadable of --config.data.name={name}', unreadable, _WAYS
    )
    if said:
      raise types.InputError(
        f'--config.data.name={name}: a folder has no option '
        f'{next(iter(said))!r}; it has {", ".join(_OF_FOLDERS)}.'
      )
  return Name(kind, said, share, unreadable, channels)


_ANY, _WAYS = (0, 1, 3), ('refuse', 'skip')


def _number(name, said, key, default, interval):
  if key not in said:
    return default
  text = said.pop(key)
  try:
    value = float(text)
  except ValueError:
    value = text
  types.check_range(interval, **{f'{key} of --config.data.name={name}': value})
  return value


def refuse_files(split: str) -> None:
  """Raises InputError for files of one's own, where rows are made anew."""
  if split.partition(':')[0] in (prepared.INPUTS, prepared.LABELLED):
    raise types.InputError(
      'Runs of this recipe take no files of yours: they are of rows that are '
      'made on the spot.'
    )
