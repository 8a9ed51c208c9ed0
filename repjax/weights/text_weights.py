"""Host code: published BERT, RoBERTa, GPT-2 and BART weights, read and written.

The files are Hugging Face `model.safetensors` with their config.json:

    stored = text_config.read(folder)
    model = text_heads.MaskedLM(**stored.fields)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), ...)
    params = text_weights.load(folder, shapes['params'], family=stored.family)

BERT and RoBERTa fit `transformer.Encoder`, `text_heads.MaskedLM` and
`text_heads.Classifier`, GPT-2 fits `transformer.DecoderLM`, BART fits
`transformer.EncoderDecoder`. Nothing is loaded in part: a leaf that is missing,
left over or of another shape is an error, and is named.
"""

from collections.abc import Mapping
import os
import re
from typing import Literal
from typing import NamedTuple

from absl import logging
import numpy as np

from repjax.types import InputError
from repjax.types import PyTree
from repjax.types import check_choice
from repjax.weights import text_config
from repjax.weights import torch_layout


class Layout(NamedTuple):
  """How the files of one family name their arrays.

  Attributes:
    prefix: What begins the names of all arrays but those of heads; files of the
      network without heads leave it out.
    rules: What the files call our leaves.
    copies: Arrays that files may hold twice -> the one that counts.
    ignored: Arrays that are no parameters.
    heads: Arrays of heads.
  """

  prefix: str
  rules: torch_layout.Rules
  copies: Mapping[str, str]
  ignored: str
  heads: str


_LEAVES = ((r'/(kernel|scale|embedding)$', '/weight'), (r'/', '.'))


def _encoder_rules(prefix):
  return (
    (r'^token_embedding/', f'{prefix}embeddings.word_embeddings/'),
    (
      r'^encoder/position_embedding/',
      f'{prefix}embeddings.position_embeddings/',
    ),
    (
      r'^encoder/type_embedding/',
      f'{prefix}embeddings.token_type_embeddings/',
    ),
    (r'^encoder/embedding_norm/', f'{prefix}embeddings.LayerNorm/'),
    (r'^encoder/block_(\d+)/', rf'{prefix}encoder.layer.\1/'),
    (r'/attention/(query|key|value)/', r'/attention.self.\1/'),
    (r'/attention/out/', '/attention.output.dense/'),
    (r'/attention_norm/', '/attention.output.LayerNorm/'),
    (r'/mlp/hidden/', '/intermediate.dense/'),
    (r'/mlp/out/', '/output.dense/'),
    (r'/mlp_norm/', '/output.LayerNorm/'),
  )


LAYOUTS: Mapping[str, Layout] = {
  'bert': Layout(
    'bert.',
    (
      *_encoder_rules('bert.'),
      (r'^pooling/', 'bert.pooler.dense/'),
      (r'^head/', 'classifier/'),
      (r'^transform/', 'cls.predictions.transform.dense/'),
      (r'^transform_norm/', 'cls.predictions.transform.LayerNorm/'),
      (r'^head_bias$', 'cls.predictions.bias'),
      *_LEAVES,
    ),
    {
      'cls.predictions.decoder.weight': (
        'bert.embeddings.word_embeddings.weight'
      ),
      'cls.predictions.decoder.bias': 'cls.predictions.bias',
    },
    r'.*\.(position_ids|token_type_ids)',
    r'cls\..*|classifier\..*|qa_outputs\..*|bert\.pooler\..*',
  ),
  'roberta': Layout(
    'roberta.',
    (
      *_encoder_rules('roberta.'),
      (r'^pooling/', 'classifier.dense/'),
      (r'^head/', 'classifier.out_proj/'),
      (r'^transform/', 'lm_head.dense/'),
      (r'^transform_norm/', 'lm_head.layer_norm/'),
      (r'^head_bias$', 'lm_head.bias'),
      *_LEAVES,
    ),
    {
      'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
      'lm_head.decoder.bias': 'lm_head.bias',
    },
    r'.*\.(position_ids|token_type_ids)',
    r'lm_head\..*|classifier\..*|qa_outputs\..*|roberta\.pooler\..*',
  ),
  'gpt2': Layout(
    'transformer.',
    (
      (r'^token_embedding/', 'transformer.wte/'),
      (r'^decoder/position_embedding/', 'transformer.wpe/'),
      (r'^decoder/block_(\d+)/', r'transformer.h.\1/'),
      (r'^decoder/norm/', 'transformer.ln_f/'),
      (r'/attention_norm/', '/ln_1/'),
      (r'/attention/(query|key|value)/', r'/attn.\1/'),
      (r'/attention/out/', '/attn.c_proj/'),
      (r'/mlp_norm/', '/ln_2/'),
      (r'/mlp/hidden/', '/mlp.c_fc/'),
      (r'/mlp/out/', '/mlp.c_proj/'),
      (r'^head/', 'lm_head/'),
      *_LEAVES,
    ),
    {'lm_head.weight': 'transformer.wte.weight'},
    r'.*\.attn\.(bias|masked_bias)',
    r'lm_head\..*|score\..*',
  ),
  'bart': Layout(
    'model.',
    (
      (r'^token_embedding/', 'model.shared/'),
      (r'^(encoder|decoder)/position_embedding/', r'model.\1.embed_positions/'),
      (
        r'^(encoder|decoder)/embedding_norm/',
        r'model.\1.layernorm_embedding/',
      ),
      (r'^(encoder|decoder)/block_(\d+)/', r'model.\1.layers.\2/'),
      (r'/attention/', '/self_attn/'),
      (r'/cross_attention/', '/encoder_attn/'),
      (r'_attn/query/', '_attn/q_proj/'),
      (r'_attn/key/', '_attn/k_proj/'),
      (r'_attn/value/', '_attn/v_proj/'),
      (r'_attn/out/', '_attn/out_proj/'),
      (r'/attention_norm/', '/self_attn_layer_norm/'),
      (r'/cross_attention_norm/', '/encoder_attn_layer_norm/'),
      (r'/mlp/hidden/', '/fc1/'),
      (r'/mlp/out/', '/fc2/'),
      (r'/mlp_norm/', '/final_layer_norm/'),
      *_LEAVES,
    ),
    {
      'lm_head.weight': 'model.shared.weight',
      'model.encoder.embed_tokens.weight': 'model.shared.weight',
      'model.decoder.embed_tokens.weight': 'model.shared.weight',
    },
    r'.*\.version',
    r'lm_head\..*|classification_head\..*|qa_outputs\..*',
  ),
}
# Our leaves of heads. A new task always begins with a head/ of its own.
_HEAD = r'(head|pooling|transform|transform_norm)/.*|head_bias'


def stored_name(name: str, family: text_config.Family) -> str:
  """What the files of a family call one of our leaves, or one of our layers.

  Layers are named with a slash at the end: 'encoder/block_0/mlp/out/'.
  """
  return torch_layout.rename(name, _layout(family).rules)


def load(
  path: str | os.PathLike,
  params: PyTree,
  *,
  family: text_config.Family,
  head: Literal['keep', 'replace'] = 'keep',
) -> PyTree:
  """Fills the parameters of a model over text from a file.

  Args:
    path: A `.safetensors` file, or a folder that holds `model.safetensors`, in
      one or several files.
    params: `model.init(...)['params']`: what is wanted. With head='keep' the
      shapes, `jax.eval_shape(model.init, ...)['params']`, are enough.
    family: Key of `LAYOUTS`; `text_config.read` knows it from config.json.
    head: 'keep' takes all heads of the file, and has no use for others.
      'replace' keeps the head/ of `params`, for another task, takes the rest of
      the head (pooler, transform) where the file has it, and leaves out what
      the model does not have.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: The file cannot be read, or does not fit.
  """
  if head not in ('keep', 'replace'):
    raise InputError(f"head must be 'keep' or 'replace', got {head!r}")
  target = torch_layout.flatten(params)
  wanted = {stored_name(name, family): name for name in target}
  source = _read(path, family, wanted)
  loaded = {}
  if head == 'replace':
    for stored, name in list(wanted.items()):
      absent = re.fullmatch(_HEAD, name) and stored not in source
      if absent or name.startswith('head/'):
        loaded[name] = target[wanted.pop(stored)]
    rest = [
      name
      for name in source.keys() - wanted.keys()
      if re.fullmatch(LAYOUTS[family].heads, name)
    ]
    logging.info('%s: kept %s, left out %s', path, sorted(loaded), rest)
    source = {name: x for name, x in source.items() if name not in rest}

  def hint(names):
    some = any(re.fullmatch(LAYOUTS[family].heads, x) for x in names)
    return (
      "; head='replace' leaves out heads that the model does not have" * some
    )

  torch_layout.check_names(path, wanted, source, hint=hint)
  return torch_layout.fill(path, source, wanted, params, kept=loaded)


def save(
  path: str | os.PathLike, params: PyTree, *, family: text_config.Family
) -> None:
  """Writes parameters under the names of the family's files.

  `load` gives back the same bits, and `transformers` loads the file with the
  config.json of its model beside it.

  Args:
    path: File to write, usually `model.safetensors`. Replaced in one step.
    params: Parameters, of any floating type.
    family: Key of `LAYOUTS`.
  """
  arrays = {
    stored_name(name, family): torch_layout.to_torch(np.asarray(leaf), name)
    for name, leaf in torch_layout.flatten(params).items()
  }
  if family == 'gpt2':
    arrays = _join_projections(arrays)
  torch_layout.save(path, arrays)


def _layout(name):
  check_choice('family', name, tuple(LAYOUTS))
  return LAYOUTS[name]


def _read(path, name, wanted):
  """Arrays of a file, each of them once, under the names of the family."""
  layout = _layout(name)
  arrays = torch_layout.read(path)
  if not any(array.startswith(layout.prefix) for array in arrays):
    arrays = {f'{layout.prefix}{key}': x for key, x in arrays.items()}
  for old, new in (('gamma', 'weight'), ('beta', 'bias')):  # Of TensorFlow.
    arrays = {re.sub(rf'\.{old}$', f'.{new}', k): x for k, x in arrays.items()}
  ignored = [key for key in arrays if re.fullmatch(layout.ignored, key)]
  if ignored:
    logging.info('%s: left out %s', path, sorted(ignored))
  arrays = {key: x for key, x in arrays.items() if key not in ignored}
  for copy, original in layout.copies.items():
    if copy not in arrays or copy in wanted:
      continue
    # A head's bias under its other name only.
    other = arrays.setdefault(original, arrays[copy])
    if not np.array_equal(arrays.pop(copy), other):
      raise InputError(
        f'{path}: {copy} is not {original}, with which the model shares it'
        + '; build it with tied=False' * (name == 'gpt2')
      )
  bias = arrays.pop('final_logits_bias', None)
  bias = arrays.pop('model.final_logits_bias', bias)
  if bias is not None and np.any(bias):
    raise InputError(
      f'{path}: final_logits_bias is not 0, and the model has no such bias'
    )
  return _split_projections(arrays) if name == 'gpt2' else arrays


_FUSED = r'(.*\.attn\.)c_attn(\..*)'
_CONV1D = r'.*\.(c_attn|c_proj|c_fc)\.weight'


def _split_projections(arrays):
  """GPT-2 has one matrix for queries, keys and values, and [in, out] order."""
  split = {}
  for name, array in arrays.items():
    if re.fullmatch(_CONV1D, name):
      array = array.T
    fused = re.fullmatch(_FUSED, name)
    if fused is None or array.shape[0] % 3:
      split[name] = array
      continue
    parts = np.split(array, 3)
    for part, which in zip(parts, ('query', 'key', 'value'), strict=True):
      split[f'{fused[1]}{which}{fused[2]}'] = part
  return split


def _join_projections(arrays):
  """Inverse of `_split_projections`."""
  joined = {}
  for name, array in arrays.items():
    which = re.fullmatch(r'(.*\.attn\.)(query|key|value)(\..*)', name)
    if which is not None:
      parts = [
        arrays[f'{which[1]}{part}{which[3]}']
        for part in ('query', 'key', 'value')
      ]
      name, array = f'{which[1]}c_attn{which[3]}', np.concatenate(parts)
    if re.fullmatch(_CONV1D, name):
      array = np.ascontiguousarray(array.T)
    joined[name] = array
  return joined
