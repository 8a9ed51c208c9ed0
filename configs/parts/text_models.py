"""What configs of fine-tuned text models share: weights, tokens, rows."""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn

from configs import presets
from repjax import start
from repjax import types
from repjax.data.reading import source
from repjax.data.text import labelled_text
from repjax.data.text import published_tokens
from repjax.data.text import tokens
from repjax.layers import adapters
from repjax.models import text_heads

# config.data.kind -> the families of published weights that it is learned by.
_FAMILIES = dict(
  sentences=('bert', 'roberta'), completions=('gpt2',), pairs=('bart',)
)

# Of `config.model`, and no geometry: nothing learned depends on them.
_FORM = ('remat', 'scan_layers')

Load = Callable[[str], source.Source]


def tokenizer(config, learn=None) -> tokens.Tokenizer:
  """What makes ids of texts.

  Published weights have theirs in their folder (which may be that of a package,
  see `packaged`); `config.data.tokenizer` stands in for one that is not there.
  Without weights that names a file that `tokens.Subwords` wrote; '' calls
  `learn` if it is given, and else reads bytes.

  Raises:
    InputError: The tokenizer is not that of the weights, or they are not what
      `config.data.kind` needs.
  """
  path = config.data.tokenizer
  if config.weights:
    return _of_weights(config, path)
  if path:
    return tokens.Subwords.load(path)
  return tokens.Bytes() if learn is None else learn()


def _stored(config):
  """(folder of the published weights, what their config.json says)."""
  # Who trains from scratch loads no reader of weights.
  from repjax.weights import packaged
  from repjax.weights import text_config

  folder = packaged.folder(config.weights)
  return folder, text_config.read(folder)


def _of_weights(config, path):
  weights, stored = _stored(config)
  families = presets.choose('data.kind', config.data.kind, _FAMILIES)
  if stored.family not in families:
    raise types.InputError(
      f'config.weights={weights} is {stored.family}; '
      f'config.data.kind={config.data.kind!r} needs '
      f'{" or ".join(families)}.'
    )
  read, own = published_tokens.Published.load, published_tokens.file(weights)
  found = read(path or weights)
  if path and own.is_file() and found.vocabulary != read(own).vocabulary:
    raise types.InputError(
      f'config.data.tokenizer={path} has other words or ids than {own}, with '
      "which the weights were trained: leave it ''."
    )
  size = stored.fields['vocab_size']
  if found.vocab_size > size:
    raise types.InputError(
      f'{published_tokens.file(path or weights)} has {found.vocab_size} ids, '
      f'and the model of {weights} embeds {size} (vocab_size of its '
      'config.json): they do not belong together.'
    )
  return found


def frame(tokenizer: tokens.Tokenizer) -> labelled_text.Frame:
  """What stands around texts."""
  if isinstance(tokenizer, published_tokens.Published):
    return tokenizer.frame
  return None


def end_id(tokenizer: tokens.Tokenizer) -> int:
  """What ends a text."""
  return (frame(tokenizer) or (tokens.START, tokens.END))[1]


def model(
  config, kind: type[nn.Module], vocab_size: int, **fields: Any
) -> nn.Module:
  """A model of the published weights' geometry, or of `config.model`'s.

  Args:
    config: With `weights`, `model` and `data.length`. With weights `model` is
      set to their geometry, so that a run's config.json tells what was trained;
      how blocks are computed stays as it is.
    kind: What `config.data.kind` is learned by.
    vocab_size: Without published weights.
    **fields: Over those of the geometry.
  """
  if not config.weights:
    return kind(**{'vocab_size': vocab_size, **config.model, **fields})
  _, stored = _stored(config)
  form = {name: config.model[name] for name in _FORM}
  made = kind(**{**stored.fields, **form, **fields})
  config.model.update({name: vars(made)[name] for name in config.model})
  return made


def load(config, model: nn.Module) -> Callable[[types.PyTree], types.PyTree]:
  """Parameters of `model` -> with published ones for all but a new head."""
  from repjax.weights import text_weights

  folder, stored = _stored(config)
  return functools.partial(
    text_weights.load,
    folder,
    family=stored.family,
    head='replace' if isinstance(model, text_heads.Classifier) else 'keep',
  )


def warm_start(config, model: nn.Module, adapted: nn.Module):
  """The `warm_start` of an experiment: published weights, where there are any.

  Args:
    config: With `weights`.
    model: Without adapters.
    adapted: What is trained, `finetuning.adapt` of it.
  """
  if not config.weights:
    return lambda state: state
  published = load(config, model)
  return lambda state: start.fill(
    state, published, keep=adapters.added(adapted)
  )


def sentences(config, tokenizer: tokens.Tokenizer) -> Load:
  """Split -> texts, or pairs of them, with a class of a TFDS set."""
  fields = config.model
  if config.weights:
    _, stored = _stored(config)
    fields = stored.fields
  return functools.partial(
    labelled_text.load,
    config.data.name,
    column=config.data.column,
    tokenizer=tokenizer,
    length=config.data.length,
    data_dir=config.data.dir,
    frame=frame(tokenizer),
    num_types={'num_token_types': 0, **fields}['num_token_types'],
  )


def completions(config, tokenizer: tokens.Tokenizer) -> Load:
  """Split -> prompts with what follows them, of a TFDS set."""
  data = config.data

  def load(split):
    return labelled_text.completions(
      *columns(config, split),
      tokenizer=tokenizer,
      length=data.length,
      name=data.name,
      split=split,
      frame=frame(tokenizer),
    )

  return load


def columns(config, split: str):
  """(texts, targets) of a TFDS set."""
  data = config.data
  if not data.target:
    raise types.InputError(
      f'config.data.kind={data.kind} needs --config.data.target=COLUMN: what '
      'is made of each text.'
    )
  read = source.load(data.name, split, data_dir=data.dir)
  return read.column(data.column), read.column(data.target)
