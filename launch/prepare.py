"""Prepares a data set once, so that all launchers can read it.

    python -m launch.prepare --name=mnist --data_dir=/data/tfds

Downloads the sources with TFDS and writes array_record files, which needs
TensorFlow (pip install -e ".[prepare]"); reading them does not. A set that
lies in --data_dir as TFRecord is converted instead, without TensorFlow and
without a download.
"""

import importlib.util
import os

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

  if importlib.util.find_spec('tensorflow') is None:
    raise types.InputError(
      f'Preparing {name} from its sources needs TensorFlow: pip install '
      '-e ".[prepare]". (Reading it afterwards does not.)'
    )
  root = prepared.root(data_dir)
  # One folder a set: TFDS tells extracted archives apart by file name only,
  # so that in a shared folder one set can be built from another's images.
  downloads = root / 'downloads' / name.replace('/', '_').replace(':', '_')
  # TFDS raises anything from AssertionError (manual download) to its own
  # errors for checksums, missing versions and lost connections.
  try:
    builder = tfds.builder(name, data_dir=str(root), try_gcs=False)
    builder.download_and_prepare(
      download_dir=str(downloads),
      download_config=tfds.download.DownloadConfig(
        manual_dir=manual_dir or str(downloads / 'manual'),
        try_download_gcs=False,
      ),
      file_format='array_record',
    )
  except tfds.core.DatasetNotFoundError as error:
    raise types.InputError(
      f'TFDS has no data set {name}: see '
      'https://www.tensorflow.org/datasets/catalog/overview for names.'
    ) from error
  except Exception as error:
    raise types.InputError(
      f'{name} could not be prepared in {root}: {type(error).__name__}: {error}'
    ) from error


if __name__ == '__main__':
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  app.run(main)
