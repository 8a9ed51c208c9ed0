"""Prepares a data set once, so that all launchers can read it.

    python -m launch.prepare --name=mnist --data_dir=/data/tfds

Downloads the sources with TFDS and writes array_record files. For most sets
TFDS needs TensorFlow to do so (pip install -e ".[prepare]"): to unpack archives
or to read what they hold. Sets that need it for neither are prepared without,
and reading needs it for none. A set that lies in --data_dir as TFRecord is
converted instead, without TensorFlow and without a download.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import io
import os
import sys

from absl import flags

from launch.lib import app
from repjax import types
from repjax.data.reading import prepared
from repjax.data.reading import tfrecord

_NAME = flags.DEFINE_string(
  'name',
  None,
  'Set as TFDS names it: mnist, glue/sst2, mnist:3.0.1.',
  required=True,
)
_DATA_DIR = app.define_data_dir()
_MANUAL_DIR = flags.DEFINE_string(
  'manual_dir',
  '',
  'Folder of files that you downloaded yourself, for sets that ask for it '
  "(imagenet2012). '' means <data_dir>/downloads/<name>/manual.",
)


def main() -> None:
  """Prepares the set of the flags and says where it is."""
  builder = prepare(
    _NAME.value, data_dir=_DATA_DIR.value, manual_dir=_MANUAL_DIR.value
  )
  splits = ', '.join(
    f'{name} {split.num_examples:,}'
    for name, split in builder.info.splits.items()
  )
  print(f'{builder.info.full_name} is in {builder.data_dir}: {splits}')


def prepare(name: str, *, data_dir: str = '', manual_dir: str = ''):
  """Prepares a set unless it is there; returns its read-only TFDS builder.

  Raises:
    InputError: If TFDS does not know the set, TensorFlow is missing, or the
      sources cannot be had.
  """
  if prepared.embedded(name) is not None:
    return prepared.find(name)
  folder = prepared.locate(name, data_dir=data_dir)
  if folder is None:
    _download(name, data_dir=data_dir, manual_dir=manual_dir)
    return prepared.find(name, data_dir=data_dir)
  builder = prepared.open_folder(folder)
  formats = prepared.formats(builder)
  if 'array_record' not in formats:
    if 'tfrecord' not in formats:
      raise types.InputError(
        f'{name} is in {folder} as {", ".join(formats)}, which cannot be '
        'converted: delete that folder, or give another --data_dir.'
      )
    tfrecord.add_array_record(builder)
  return prepared.find(name, data_dir=data_dir)


def _download(name, *, data_dir, manual_dir):
  import tensorflow_datasets as tfds

  without = importlib.util.find_spec('tensorflow') is None
  root = prepared.root(data_dir)
  # One folder a set: TFDS tells extracted archives apart by file name only,
  # so that in a shared folder one set can be built from another's images.
  downloads = root / 'downloads' / name.replace('/', '_').replace(':', '_')
  # TFDS raises anything from AssertionError (manual download) to its own
  # errors for checksums, missing versions and lost connections.
  builder = None
  try:
    # TFDS prints a banner whenever it misses TensorFlow.
    with contextlib.redirect_stdout(io.StringIO() if without else sys.stdout):
      builder = tfds.builder(name, data_dir=str(root), try_gcs=False)
      if without:
        _check_needs_none(name, builder)
      builder.download_and_prepare(
        download_dir=str(downloads),
        download_config=tfds.download.DownloadConfig(
          manual_dir=manual_dir or str(downloads / 'manual'),
          try_download_gcs=False,
        ),
        file_format='array_record',
      )
  except types.InputError:
    raise
  except Exception as error:
    absent = isinstance(error, tfds.core.DatasetNotFoundError)
    lacking = without and any(map(_lacks_tensorflow, _causes(error)))
    # Of a set whose module could not be imported a later look may find half.
    if without and builder is None and (absent or not lacking):
      raise types.InputError(
        f'Without TensorFlow TFDS has no data set {name}: check the name at '
        'https://www.tensorflow.org/datasets/catalog/overview; if it is there, '
        f'{_REMEDY}'
      ) from error
    if absent:
      raise types.InputError(
        f'TFDS has no data set {name}: see '
        'https://www.tensorflow.org/datasets/catalog/overview for names.'
      ) from error
    if lacking:
      kept = f'What was downloaded is kept in {downloads}; '
      raise types.InputError(
        f'TFDS cannot prepare {name} without TensorFlow, by which it unpacks '
        f'archives and reads many files. {kept * downloads.exists()}{_REMEDY}'
      ) from error
    raise types.InputError(
      f'{name} could not be prepared in {root}: {type(error).__name__}: {error}'
    ) from error


_REMEDY = (
  'pip install -e ".[prepare]" and repeat the command. (Reading a set '
  'afterwards needs no TensorFlow.)'
)


def _check_needs_none(name: str, builder) -> None:
  """Refuses a set before its download, if its own code is of TensorFlow."""
  for kind in type(builder).__mro__:
    # By TFDS's convention, as a module that is imported at its first use.
    if not kind.__module__.startswith('tensorflow_datasets.core.') and hasattr(
      sys.modules[kind.__module__], 'tf'
    ):
      raise types.InputError(
        f'TFDS reads the sources of {name} by TensorFlow: {_REMEDY}'
      )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """An error and those that it was raised from or beside."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _lacks_tensorflow(error: BaseException) -> bool:
  return isinstance(error, ImportError) and 'tensorflow' in (
    error.name or str(error).lower()
  )


if __name__ == '__main__':
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  app.run(main)
