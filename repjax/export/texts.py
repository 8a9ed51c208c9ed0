"""Host side: networks of texts in the words of `transformers`.

Encoders are BERT, or RoBERTa where positions begin at two; a decoder is GPT-2,
an encoder-decoder BART or T5. `repjax.weights.text_config` reads what is
written here.
"""

from collections.abc import Sequence
import functools
from typing import Any

import numpy as np

from repjax import types
from repjax.export import form
from repjax.models import stack
from repjax.models import t5
from repjax.models import text_heads
from repjax.models import transformer
from repjax.weights import t5_weights
from repjax.weights import text_config
from repjax.weights import text_weights

# What all published stacks have, and those of each kind.
_ALL = dict(position='learned', scale_embedding=False)
_ENCODERS = dict(_ALL, norm='post', embedding_norm=True)
_GPT2 = dict(
  _ALL,
  norm='pre',
  embedding_norm=False,
  position_offset=0,
  num_token_types=0,
  activation_dropout_rate=0.0,
)
_BART = dict(
  position='learned',
  norm='post',
  embedding_norm=True,
  position_offset=2,
  num_token_types=0,
  layer_norm_epsilon=1e-5,
)


def of_encoder(
  model: transformer.Encoder, names: Sequence[str] | None
) -> form.Form:
  """BERT or RoBERTa: without a head, with that of masked tokens, of classes.

  Args:
    model: The network. One without types of tokens gets one, of zeros.
    names: Of the classes, or None.
  """
  family: text_config.Family = 'roberta' if model.position_offset else 'bert'
  prefix = 'Roberta' if model.position_offset else 'Bert'
  fields: dict[str, Any] = {}
  if isinstance(model, text_heads.Classifier):
    what, auto = 'ForSequenceClassification', 'ForSequenceClassification'
    task = 'text-classification'
    # For classes peft replaces the module `classifier`, which in RoBERTa is the
    # pooler, too; without a task it takes the layers that it is told.
    task_type = 'SEQ_CLS' if family == 'bert' else ''
    fields = form.labels(model.num_classes, names)
    wanted = dict(_ENCODERS, pool='first', pooler=True)
  else:
    masked = isinstance(model, text_heads.MaskedLM)
    what, auto = ('ForMaskedLM', 'ForMaskedLM') if masked else ('Model', '')
    task = 'fill-mask' if masked else 'feature-extraction'
    task_type, wanted = ('' if masked else 'FEATURE_EXTRACTION'), _ENCODERS
  what = f'{prefix}{what}'
  form.check_attention(what, model.attention_fn)
  if what == 'RobertaForMaskedLM':
    # Its head has this one whatever `hidden_act` says.
    form.check(what, model, activation='gelu_exact')
  offset = 2 if family == 'roberta' else 0
  form.check(
    what, model, **wanted, position_offset=offset, activation_dropout_rate=0.0
  )
  config = dict(
    architectures=[what],
    model_type=family,
    vocab_size=model.vocab_size,
    hidden_size=model.hidden_dim,
    intermediate_size=model.mlp_dim,
    num_attention_heads=model.num_heads,
    num_hidden_layers=model.num_layers,
    max_position_embeddings=_positions(what, model) + offset,
    type_vocab_size=max(model.num_token_types, 1),
    hidden_act=_activation(what, model),
    hidden_dropout_prob=model.dropout_rate,
    attention_probs_dropout_prob=model.attention_dropout_rate,
    layer_norm_eps=model.layer_norm_epsilon,
    pad_token_id=1 if family == 'roberta' else 0,
    **fields,
  )

  def save(path, params):
    if not model.num_token_types:
      params = _with_a_type(params, model.hidden_dim)
    text_weights.save(path, params, family=family)

  return form.Form(
    config,
    save,
    auto=f'AutoModel{auto}',
    task=task,
    names=functools.partial(text_weights.stored_name, family=family),
    task_type=task_type,
  )


def of_decoder(model: transformer.DecoderLM) -> form.Form:
  """GPT2LMHeadModel."""
  what = 'GPT2LMHeadModel'
  form.check_attention(what, model.attention_fn, causal=True)
  form.check(what, model, **_GPT2)
  config = dict(
    architectures=[what],
    model_type='gpt2',
    vocab_size=model.vocab_size,
    n_positions=_positions(what, model),
    n_embd=model.hidden_dim,
    n_inner=model.mlp_dim,
    n_head=model.num_heads,
    n_layer=model.num_layers,
    activation_function=_activation(what, model),
    resid_pdrop=model.dropout_rate,
    embd_pdrop=model.dropout_rate,
    attn_pdrop=model.attention_dropout_rate,
    layer_norm_epsilon=model.layer_norm_epsilon,
    tie_word_embeddings=model.tied,
    # Those of GPT-2 are of its own vocabulary.
    bos_token_id=None,
    eos_token_id=None,
  )
  return form.Form(
    config,
    functools.partial(text_weights.save, family='gpt2'),
    auto='AutoModelForCausalLM',
    task='text-generation',
    names=functools.partial(text_weights.stored_name, family='gpt2'),
    task_type='CAUSAL_LM',
  )


def of_encoder_decoder(model: transformer.EncoderDecoder) -> form.Form:
  """BartForConditionalGeneration."""
  what = 'BartForConditionalGeneration'
  form.check_attention(what, model.attention_fn, model.cross_attention_fn)
  form.check_attention(what, model.decoder_attention_fn, causal=True)
  form.check(what, model, **_BART)
  decoders = model.num_decoder_layers
  config = dict(
    architectures=[what],
    model_type='bart',
    vocab_size=model.vocab_size,
    max_position_embeddings=_positions(what, model),
    d_model=model.hidden_dim,
    encoder_ffn_dim=model.mlp_dim,
    decoder_ffn_dim=model.mlp_dim,
    encoder_attention_heads=model.num_heads,
    decoder_attention_heads=model.num_heads,
    encoder_layers=model.num_layers,
    decoder_layers=model.num_layers if decoders is None else decoders,
    scale_embedding=model.scale_embedding,
    activation_function=_activation(what, model),
    dropout=model.dropout_rate,
    attention_dropout=model.attention_dropout_rate,
    activation_dropout=model.activation_dropout_rate,
    tie_word_embeddings=True,
  )
  return form.Form(
    config,
    functools.partial(text_weights.save, family='bart'),
    auto='AutoModelForSeq2SeqLM',
    task='text2text-generation',
    names=functools.partial(text_weights.stored_name, family='bart'),
    task_type='SEQ_2_SEQ_LM',
  )


def of_t5(model: t5.T5) -> form.Form:
  """T5ForConditionalGeneration, of version 1.0 or 1.1."""
  what, layer = 'T5ForConditionalGeneration', model.config
  form.check_attention(what, layer.attention_fn)
  form.check(what, model, num_positions=0)
  if model.tied != model.scaled:
    form.refuse(
      what,
      'logits are tied to the embedding where they are scaled; got '
      f'{model.tied=}, {model.scaled=}',
    )
  kinds = {('relu', False): 'relu', ('gelu_tanh', True): 'gated-gelu'}
  kind = kinds.get((layer.activation, layer.gated))
  if kind is None:
    form.refuse(
      what,
      f'it has no activation={layer.activation!r} with gated={layer.gated}',
    )
  decoders = model.num_decoder_layers
  config = dict(
    architectures=[what],
    model_type='t5',
    vocab_size=model.vocab_size,
    d_model=layer.hidden_dim,
    d_kv=layer.head_dim,
    d_ff=layer.mlp_dim,
    num_heads=layer.num_heads,
    num_layers=model.num_layers,
    num_decoder_layers=model.num_layers if decoders is None else decoders,
    relative_attention_num_buckets=model.num_buckets,
    relative_attention_max_distance=model.max_distance,
    feed_forward_proj=kind,
    dropout_rate=layer.dropout_rate,
    layer_norm_epsilon=layer.layer_norm_epsilon,
    is_encoder_decoder=True,
    tie_word_embeddings=model.tied,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
  )
  return form.Form(
    config,
    t5_weights.save,
    auto='AutoModelForSeq2SeqLM',
    task='text2text-generation',
  )


def _positions(what: str, model: stack.TokenModel) -> int:
  if model.num_positions is None:
    form.refuse(what, 'it has learned positions, of a number')
  return model.num_positions


def _activation(what: str, model: stack.TokenModel) -> str:
  if model.activation not in form.ACTIVATIONS:
    form.refuse(what, f'it has no activation={model.activation!r}')
  return form.ACTIVATIONS[model.activation]


def _with_a_type(params: types.PyTree, width: int) -> types.PyTree:
  """Parameters with one type of tokens, which adds nothing."""
  nothing = {'embedding': np.zeros((1, width), np.float32)}
  return {**params, 'encoder': {**params['encoder'], 'type_embedding': nothing}}
