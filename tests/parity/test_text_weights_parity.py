"""BERT, RoBERTa, GPT-2 and BART against Hugging Face's on the same weights."""

import functools

import jax
import numpy as np
import pytest

from repjax.models import text_heads
from repjax.models import transformer
from repjax.weights import text_config
from repjax.weights import text_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

VOCAB, LENGTH = 50, 9
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(4, VOCAB, (3, LENGTH))
SOURCE = RNG.integers(4, VOCAB, (3, 7))
TYPES = RNG.integers(0, 2, (3, LENGTH))
MASK = np.ones((3, LENGTH), np.int64)
MASK[1, 6:] = 0
TOKENS[MASK == 0] = 1  # RoBERTa's padding.

ENCODER = dict(
  vocab_size=VOCAB,
  hidden_size=32,
  intermediate_size=48,
  num_attention_heads=4,
  num_hidden_layers=2,
  max_position_embeddings=20,
  num_labels=3,
)
GPT2 = dict(vocab_size=VOCAB, n_embd=32, n_head=4, n_layer=2, n_positions=20)
BART = dict(
  vocab_size=VOCAB,
  d_model=32,
  encoder_layers=2,
  decoder_layers=1,
  encoder_attention_heads=4,
  decoder_attention_heads=4,
  encoder_ffn_dim=48,
  decoder_ffn_dim=48,
  max_position_embeddings=20,
  scale_embedding=True,
)
CASES = {
  'BertForMaskedLM': (
    transformers.BertConfig(**ENCODER),
    text_heads.MaskedLM,
    {},
    dict(token_types=TYPES),
  ),
  'BertForSequenceClassification': (
    transformers.BertConfig(**ENCODER, hidden_act='gelu_new'),
    text_heads.Classifier,
    dict(num_classes=3),
    dict(token_types=TYPES),
  ),
  'RobertaForMaskedLM': (
    transformers.RobertaConfig(**ENCODER, type_vocab_size=1),
    text_heads.MaskedLM,
    {},
    {},
  ),
  'RobertaForSequenceClassification': (
    transformers.RobertaConfig(**ENCODER, type_vocab_size=1),
    text_heads.Classifier,
    dict(num_classes=3),
    {},
  ),
  'GPT2LMHeadModel': (
    transformers.GPT2Config(**GPT2),
    transformer.DecoderLM,
    {},
    {},
  ),
  'BartForConditionalGeneration': (
    transformers.BartConfig(**BART),
    transformer.EncoderDecoder,
    {},
    dict(source=SOURCE),
  ),
}


def torch_model(name, config):
  """A model whose every leaf is drawn anew, so that none hides an error."""
  torch.manual_seed(0)
  model = getattr(transformers, name)(config).eval()
  with torch.no_grad():
    for leaf_name, leaf in model.named_parameters():
      is_norm = 'norm' in leaf_name.lower() or '.ln_' in leaf_name
      center = (
        1.0 if leaf.ndim == 1 and is_norm and 'weight' in leaf_name else 0
      )
      leaf.copy_(center + 0.2 * torch.randn_like(leaf))
  model.tie_weights()
  return model


def torch_logits(model, inputs):
  fields = {'input_ids': TOKENS, 'attention_mask': MASK}
  if 'token_types' in inputs:
    fields['token_type_ids'] = TYPES
  if 'source' in inputs:
    fields = {
      'input_ids': SOURCE,
      'decoder_input_ids': TOKENS,
      'decoder_attention_mask': MASK,
    }
  with torch.no_grad():
    fields = {name: torch.tensor(x) for name, x in fields.items()}
    return model(**fields).logits.numpy()


@pytest.mark.parametrize('name', CASES)
def test_logits_are_those_of_transformers_in_both_directions(name, tmp_path):
  config, kind, fields, inputs = CASES[name]
  theirs = torch_model(name, config)
  expected = torch_logits(theirs, inputs)
  theirs.save_pretrained(tmp_path)

  stored = text_config.read(tmp_path)
  model = kind(**stored.fields, **fields)
  init = functools.partial(model.init, train=False, **inputs)
  shapes = jax.eval_shape(init, jax.random.key(0), TOKENS)['params']
  params = text_weights.load(tmp_path, shapes, family=stored.family)
  apply = jax.jit(
    functools.partial(model.apply, train=False, mask=MASK, **inputs)
  )
  found = np.asarray(apply({'params': params}, TOKENS))
  if expected.ndim == 3:  # What stands at padding means nothing.
    found, expected = found[MASK > 0], expected[MASK > 0]
  assert np.abs(expected[0] - expected[1]).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

  text_weights.save(
    tmp_path / 'model.safetensors', params, family=stored.family
  )
  loaded, report = getattr(transformers, name).from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not report['missing_keys'] and not report['unexpected_keys']
  again = torch_logits(loaded.eval(), inputs)
  before = torch_logits(theirs, inputs)
  np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_several_files_of_half_precision(dtype, tmp_path):
  theirs = torch_model('BertForMaskedLM', CASES['BertForMaskedLM'][0])
  theirs = theirs.to(getattr(torch, dtype))
  theirs.save_pretrained(tmp_path, max_shard_size='20KB')
  assert not (tmp_path / 'model.safetensors').exists()
  expected = torch_logits(theirs.to(torch.float32), {})
  stored = text_config.read(tmp_path)
  model = text_heads.MaskedLM(**stored.fields)
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), TOKENS)['params']
  params = text_weights.load(tmp_path, shapes, family=stored.family)
  apply = jax.jit(functools.partial(model.apply, train=False, mask=MASK))
  found = np.asarray(apply({'params': params}, TOKENS))
  np.testing.assert_allclose(
    found[MASK > 0], expected[MASK > 0], rtol=1e-4, atol=1e-4
  )
