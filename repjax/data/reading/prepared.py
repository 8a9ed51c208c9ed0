"""Host side: finding the folder of a prepared TFDS set.

Nothing is ever downloaded here: a set that is not there is an error that says
how to prepare it. TFDS is imported when a set is opened.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import shlex
from typing import Any

from absl import logging

from repjax import types
from repjax.data.reading import cache

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_NAME = re.compile(
  r'(?P<set>[A-Za-z]\w*)(/(?P<config>[\w.+-]+))?'
  rf'(:(?P<version>{_VERSION.pattern}))?'
)

# Kinds of files of one's own, and splits that are such files (`data.own`).
OWN_KINDS = ('folder', 'csv', 'jsonl', 'npz')
INPUTS, LABELLED = 'inputs', 'labelled'


def is_own(name: str, split: str) -> bool:
  """Whether the rows of a split are files of one's own, not a prepared set."""
  return name.partition(':')[0] in OWN_KINDS or split.partition(':')[0] in (
    INPUTS,
    LABELLED,
  )


def embedded(name: str) -> Any:
  """The builder class of a set that comes with repjax, or None."""
  family = name.partition(':')[0]
  if family == 'digits':
    from repjax.data.sets import digits

    return digits.Digits
  if family == 'handwriting':
    from repjax.data.sets import handwriting

    return handwriting.Handwriting
  if family == 'python_topics':
    from repjax.data.sets import topics

    return topics.PythonTopics
  return None


def root(data_dir: str = '') -> pathlib.Path:
  """The folder of prepared sets; '' is TFDS's default."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(data_dir or default).expanduser()


def find(name: str, *, data_dir: str = '') -> Any:
  """The read-only TFDS builder of a prepared set.

  An embedded set is prepared first, into the cache folder.

  Raises:
    InputError: If the set is not there, or not with random access.
  """
  builder_class = embedded(name)
  if builder_class is not None:
    data_dir = str(prepare_embedded(builder_class))
  folder = root(data_dir)
  place = locate(name, data_dir=data_dir)
  command = (
    f'python -m launch.prepare --name={name} '
    f'--data_dir={shlex.quote(str(folder))}'
  )
  if place is None:
    family = re.split('[/:]', name)[0]
    present = sorted(
      str(file.parent.relative_to(folder))
      for file in (folder / family).glob('**/features.json')
    )
    there = f' (found there: {", ".join(present)})' if present else ''
    raise types.InputError(
      f'The data set {name} is not prepared in {folder}{there}. Prepare it '
      f'once with `{command}`, or use digits, which comes with repjax and '
      'needs nothing. (Files of your own: --config.data.name=folder, csv, '
      'jsonl or npz.)'
    )
  builder = open_folder(place)
  if 'array_record' not in formats(builder):
    raise types.InputError(
      f'{name} is in {place} as {", ".join(formats(builder))}, which has no '
      f'random access; convert it once with `{command}`.'
    )
  return builder


def locate(name: str, *, data_dir: str = '') -> pathlib.Path | None:
  """The folder of a prepared set's highest (or the named) version."""
  match = _NAME.fullmatch(name)
  if match is None:
    raise types.InputError(
      f"'{name}' is not the name of a data set; names look like mnist, "
      'glue/sst2 or mnist:3.0.1.'
    )
  parent = root(data_dir) / match['set'] / (match['config'] or '')
  versions = [
    file.parent
    for file in parent.glob(f'{match["version"] or "*"}/features.json')
    if _VERSION.fullmatch(file.parent.name)
  ]
  return max(
    versions,
    key=lambda folder: [int(x) for x in folder.name.split('.')],
    default=None,
  )


def open_folder(folder: pathlib.Path) -> Any:
  """The read-only TFDS builder of a prepared set's folder."""
  import tensorflow_datasets as tfds

  # TFDS raises what its parsers of JSON and of features raise.
  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:
    raise types.InputError(
      f'TFDS cannot read the description of the data set in {folder}: {error}'
    ) from error


def formats(builder: Any) -> list[str]:
  """The file formats in which a set lies in its folder."""
  return sorted(x.value for x in builder.info.available_file_formats())


def prepare_embedded(builder_class: Any) -> pathlib.Path:
  """Prepares an embedded set in the cache folder, once; returns the root.

  Several processes may do this at the same time: each writes a folder of its
  own, and the first to finish gives it its name.
  """
  folder = cache.folder() / 'tfds'
  place = folder / builder_class.name / str(builder_class.VERSION)
  if place.exists():
    return folder
  logging.info('Preparing %s in %s, once.', builder_class.name, folder)
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()  # Half a second, in lines of 230 characters.
  try:
    with (
      cache.workplace(folder) as work,
      open(os.devnull, 'w') as silence,
      contextlib.redirect_stdout(silence),
    ):
      builder = builder_class(data_dir=work)
      builder.download_and_prepare(file_format='array_record')
      place.parent.mkdir(exist_ok=True)
      os.rename(builder.data_dir, place)
  except OSError as error:
    if not place.exists():
      raise types.InputError(
        f'{builder_class.name} cannot be prepared in {folder}: {error}; set '
        '$REPJAX_CACHE to a folder that can be written.'
      ) from error
  finally:
    tfds.enable_progress_bar()
  return folder


def fingerprint(builder: Any, split: str) -> str:
  """Changes whenever the prepared files of a set do, and with the split."""
  folder = pathlib.Path(builder.data_dir)
  digest = hashlib.sha256(split.encode())
  for name in ('dataset_info.json', 'features.json'):
    digest.update((folder / name).read_bytes())
  for file in sorted(folder.glob('*.array_record*')):
    status = file.stat()
    digest.update(f'{file.name} {status.st_size} {status.st_mtime_ns}'.encode())
  return digest.hexdigest()[:16]
