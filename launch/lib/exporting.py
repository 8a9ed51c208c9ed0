"""From a restored run to a folder of `launch.export`."""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil

from absl import logging
import flax.linen as nn
import jax

from launch.lib import restored
from repjax import files
from repjax import report
from repjax import run as runs
from repjax import types
from repjax.data.own import kept_classes
from repjax.data.reading import cache
from repjax.data.text import instruction_rows
from repjax.data.text import tokens
from repjax.experiments import private_keys
from repjax.export import card
from repjax.export import generators
from repjax.export import networks
from repjax.export import program
from repjax.export import published
from repjax.export import snippets
from repjax.models import t5
from repjax.weights import packaged
from repjax.weights import torch_layout

# What published weights have of their tokenizer.
_TOKENIZER = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.txt',
  'vocab.json',
  'merges.txt',
  'spiece.model',
  'sentencepiece.bpe.model',
  'generation_config.json',
)


def write(
  folder: pathlib.Path,
  made: restored.Restored,
  *,
  form: str,
  merge: bool,
  network: str,
  rows: int,
) -> None:
  """Writes a run's model, whole or not at all.

  Args:
    folder: To make.
    made: The run.
    form: 'transformers', 'npz', 'timm' or 'jax'.
    merge: Whether LoRA becomes a part of the weights.
    network: Class of the network, or '' for the only one.
    rows: Of a call of 'jax'; 0 for any number.
  """
  if jax.process_index():
    return
  experiment, state = made.experiment, made.state
  batch = restored.batch_of(experiment)
  with _whole(folder) as partial:
    if form == 'jax' and network:
      found = networks.of(experiment.method, state, batch, name=network)
      scale = generators.pixels(
        made.config.augment.mean, made.config.augment.std
      )
      signature = generators.write(partial, found, scale, rows=rows)
      use = snippets.of_generator(signature, scale)
    elif form == 'jax':
      signature = program.write(
        partial, experiment.method, state, batch, rows=rows
      )
      use = snippets.of_program(signature)
    else:
      found = networks.of(experiment.method, state, batch, name=network)
      found = found.merged if merge else found
      write_it = dict(transformers=_transformers, npz=_npz, timm=_timm)[form]
      use = write_it(partial, found, made)
    card.write(partial, _facts(made), use)


def _npz(folder, network, made) -> card.Use:
  del made
  published.write_npz(folder, network)
  return snippets.of_npz(network)


def _timm(folder, network, made) -> card.Use:
  del made
  published.write_timm(folder, network)
  return snippets.of_timm(network)


def _transformers(folder, network, made) -> card.Use:
  config = made.config
  weights = config.weights if 'weights' in config else ''
  scaling = None
  if 'augment' in config and 'mean' in config.augment:
    scaling = published.Scaling(config.augment.mean, config.augment.std)
  source, ids = None, own_ids(network.base)
  # Of a text model: with its own vocabulary.
  if weights and (place := _published_folder(weights)) is not None:
    source = place
    stored = torch_layout.read_json(source, 'config.json')
    ids = {k: x for k, x in stored.items() if k.endswith('_token_id')}
  written = published.write(
    folder,
    network,
    class_names=kept_classes.names_of(made.experiment),
    scaling=scaling,
    token_ids=ids,
    base=str(source) if source is not None else '',
  )
  copied = [] if source is None else _copy_tokenizer(source, folder)
  return snippets.of_published(
    written, has_tokenizer='tokenizer.json' in copied
  )


def own_ids(model: nn.Module) -> dict[str, int]:
  """Ids that say something in repjax's own vocabularies, as files name them.

  Args:
    model: What reads and writes them: T5 begins a target in its own way.
  """
  is_t5 = isinstance(model, t5.T5)
  return dict(
    pad_token_id=tokens.PAD,
    bos_token_id=tokens.START,
    eos_token_id=tokens.END,
    decoder_start_token_id=instruction_rows.START if is_t5 else tokens.START,
  )


def _published_folder(weights: str) -> pathlib.Path | None:
  """The folder of published weights, which may be named by a file in it."""
  place = files.path_of(packaged.folder(weights))
  place = place if place.is_dir() else place.parent
  return place if (place / 'config.json').is_file() else None


def _copy_tokenizer(source, folder):
  """Copies what published weights have of their tokenizer; gives its names."""
  names = [x for x in _TOKENIZER if (source / x).is_file()]
  for name in names:
    shutil.copyfile(source / name, folder / name)
  return names


def _facts(made: restored.Restored) -> card.Facts:
  step = int(made.state.step)
  said = files.read_json_if_whole(made.workdir / 'config.json', 'config') or {}
  named = {**made.said, **said.get('config', {})}
  directory = report.Run(made.workdir, read_only=True)
  finished = directory.result()
  if finished is not None and finished.get('steps') == step:
    results, privacy = finished['result'], finished.get('privacy')
  else:
    rows = [x for x in directory.history() if x['step'] == step]
    results = {k: x for row in rows for k, x in row.items() if '/' in k}
    privacy = _privacy(made, step)
  return card.Facts(
    recipe=f'{named["file"]}:{named["preset"]}'.rstrip(':'),
    step=step,
    config=runs.identity(made.config),
    class_names=kept_classes.names_of(made.experiment) or (),
    results=results,
    privacy=privacy,
    versions=said.get('versions', {}),
  )


def _privacy(made, step):
  """What a private run may claim at a step that is not its last; else None."""
  if not (made.workdir / private_keys.NAME).exists():
    return None  # Without the keys of the run nothing may be claimed.
  begun = made.experiment.guard.begin(
    made.experiment, made.workdir, runs.identity(made.config)
  )
  try:
    begun.guard.resumed(begun.guard.keyed(made.state), made.state, True)
  except types.InputError:
    logging.warning(
      'no privacy is claimed: the config, its training rows or the file %s are '
      'not those that the run was trained with, from which its noise follows',
      private_keys.NAME,
    )
    return None
  statement = begun.guard.statement(step).get('privacy')
  return None if statement is None else statement.to_dict()


@contextlib.contextmanager
def _whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to write to, which becomes `folder` when all went well."""
  with files.naming(folder), cache.workplace(folder.parent) as work:
    partial = work / folder.name
    partial.mkdir()
    yield partial
    if folder.exists():
      folder.rmdir()  # It is empty.
    partial.replace(folder)
