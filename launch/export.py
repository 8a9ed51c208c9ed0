"""Writes a trained model as files that other programs load.

    python -m launch.export --workdir=/tmp/vit --to=/tmp/vit-hub

--format=transformers: a folder of Hugging Face with config.json, safetensors
and a model card; LoRA as the files of peft, or, with --merge, as a part of the
weights. --format=npz: a ViT under the names of its authors, which big_vision
and timm read. --format=timm: a Swin under the names of timm. --format=jax: the
prediction of any recipe as a program that runs without repjax; with
--network=VitGenerator, the averaged generator of a run of configs/vitgan.py, a
program from latents to images.
"""

from absl import flags
from absl import logging

from launch.lib import app
from launch.lib import places
from launch.lib import restored
from repjax import files
from repjax import types

_FLAGS = restored.define_flags()
_TO = flags.DEFINE_string(
  'to',
  None,
  'Folder to make; it must not be there, or be empty.',
  required=True,
)
_FORMAT = flags.DEFINE_enum(
  'format',
  'transformers',
  ['transformers', 'npz', 'timm', 'jax'],
  'What to write.',
)
_MERGE = flags.DEFINE_bool(
  'merge', False, 'Make LoRA a part of the weights: a plain model.'
)
_NETWORK = flags.DEFINE_string(
  'network', '', 'Class of the network, where a run predicts with several.'
)
_ROWS = flags.DEFINE_integer(
  'rows', 0, 'Rows of each call of --format=jax; 0 for any number.'
)


def main() -> None:
  """Restores a checkpoint and writes it."""
  types.check_range('[0, inf)', **{'--rows': _ROWS.value})
  if _ROWS.value and _FORMAT.value != 'jax':
    raise types.InputError(
      f'--rows={_ROWS.value} is of --format=jax alone: leave it out, or give '
      'that.'
    )
  if _MERGE.value and _FORMAT.value == 'jax':
    raise types.InputError(
      '--merge makes LoRA a part of the weights, and --format=jax writes the '
      'whole prediction in any case: leave it out.'
    )
  folder = files.path_of(_TO.value).resolve()  # A link's folder is meant.
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise types.InputError(
      f'--to={folder} is there already: give another folder, or an empty one.'
    )
  places.check(folder, f'--to={folder}')
  run = restored.restore(_FLAGS)

  from launch.lib import exporting

  exporting.write(
    folder,
    run,
    form=_FORMAT.value,
    merge=_MERGE.value,
    network=_NETWORK.value,
    rows=_ROWS.value,
  )
  logging.info('%s: %s', _FORMAT.value, folder)


if __name__ == '__main__':
  app.run(main)
