"""T5 against Hugging Face's PyTorch T5 on the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.data.text import instruction_rows
from repjax.data.text import tokens
from repjax.models import decoding
from repjax.protocols import rank_classification
from repjax.weights import t5_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

_FIELDS = dict(
  vocab_size=50,
  d_model=16,
  d_kv=6,
  d_ff=24,
  num_layers=3,
  num_decoder_layers=2,
  num_heads=3,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=20,
)


def torch_model(**fields):
  """A T5 whose every leaf is drawn anew, so that none hides an error."""
  torch.manual_seed(0)
  config = transformers.T5Config(**{**_FIELDS, **fields})
  model = transformers.T5ForConditionalGeneration(config).eval()
  if not config.scale_decoder_outputs:
    # Version 1.1 has a matrix of its own.
    model.lm_head.weight = torch.nn.Parameter(
      torch.zeros(config.vocab_size, 16)
    )
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      center = 1.0 if 'layer_norm' in name else 0.0
      spread = leaf[0].numel() ** -0.5 if leaf.ndim > 1 else 0.1
      leaf.copy_(center + spread * torch.randn_like(leaf))
  return model


def texts():
  rng = np.random.default_rng(0)
  source, target = rng.integers(2, 50, (2, 3, 31))
  mask = np.ones((3, 31), int)
  mask[1, 20:] = 0
  mask[2, 5:] = 0
  return source, mask, target[:, :28]


@pytest.mark.parametrize(
  'fields',
  [
    dict(feed_forward_proj='relu'),
    dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
  ],
)
def test_logits_are_those_of_pytorch_in_both_directions(fields, tmp_path):
  theirs = torch_model(**fields)
  source, mask, target = texts()
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(source),
      attention_mask=torch.tensor(mask),
      decoder_input_ids=torch.tensor(target),
    ).logits.numpy()
  theirs.save_pretrained(tmp_path)

  ours = t5_weights.model(tmp_path)
  assert ours.tied == ours.scaled == (fields['feed_forward_proj'] == 'relu')
  shapes = jax.eval_shape(
    functools.partial(ours.init, train=False),
    jax.random.key(0),
    target,
    source=source,
  )
  params = t5_weights.load(tmp_path, shapes['params'])
  found = jax.jit(functools.partial(ours.apply, train=False))(
    {'params': params}, target, source=source, source_mask=mask
  )
  assert np.ptp(expected) > 1
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

  t5_weights.save(tmp_path / 'model.safetensors', params)
  again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
  with torch.no_grad():
    logits = again(
      input_ids=torch.tensor(source),
      attention_mask=torch.tensor(mask),
      decoder_input_ids=torch.tensor(target),
    ).logits.numpy()
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_what_is_written_is_what_pytorch_writes(tmp_path):
  theirs = torch_model(
    feed_forward_proj='gated-gelu', tie_word_embeddings=False
  )
  theirs.save_pretrained(tmp_path)
  source, mask, _ = texts()
  expected = theirs.generate(
    input_ids=torch.tensor(source),
    attention_mask=torch.tensor(mask),
    max_new_tokens=15,
    do_sample=False,
    eos_token_id=None,
    decoder_start_token_id=0,
  ).numpy()[:, 1:]
  ours = t5_weights.model(tmp_path)
  begin = jnp.zeros((3, 1), jnp.int32)
  shapes = jax.eval_shape(
    functools.partial(ours.init, train=False),
    jax.random.key(0),
    begin,
    source=source,
  )
  params = t5_weights.load(tmp_path, shapes['params'])
  found = decoding.generate(
    ours,
    {'params': params},
    begin,
    max_new_tokens=15,
    source=jnp.asarray(source),
    source_mask=jnp.asarray(mask),
  )
  np.testing.assert_array_equal(found.tokens, expected[:, :15])


@pytest.mark.parametrize(
  'fields',
  [
    dict(feed_forward_proj='relu'),
    dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
  ],
)
def test_scores_of_options_are_sums_of_log_likelihoods_of_pytorch(
  fields, tmp_path
):
  tokenizer = tokens.Bytes()
  theirs = torch_model(**fields, vocab_size=tokenizer.vocab_size)
  theirs.save_pretrained(tmp_path)
  ours = t5_weights.model(tmp_path)
  prompts = ['Is it good?', 'Why', 'A longer question than these.']
  options = [('yes', 'no'), ('so', 'because of it', 'n'), ('maybe', 'never')]
  blank = jnp.zeros((1, 3), jnp.int32)
  shapes = jax.eval_shape(
    functools.partial(ours.init, train=False),
    jax.random.key(0),
    blank,
    source=blank,
  )
  ranker = rank_classification.Ranker(
    ours, tokenizer, source_length=32, target_length=16, batch_size=2
  )
  found = ranker.scores(
    {'params': t5_weights.load(tmp_path, shapes['params'])}, prompts, options
  )
  for prompt, written, scores in zip(prompts, options, found, strict=True):
    source = instruction_rows.source_ids(prompt, tokenizer, length=32)
    # One at a time, without padding and with nothing beside it.
    for text, score in zip(written, scores, strict=True):
      ids = instruction_rows.target_ids(text, tokenizer)
      with torch.no_grad():
        logits = theirs(
          input_ids=torch.tensor(source)[None].long(),
          decoder_input_ids=torch.tensor(ids)[None, :-1].long(),
        ).logits[0]
      log_probs = torch.log_softmax(logits, -1).numpy()
      expected = log_probs[np.arange(len(ids) - 1), ids[1:]].sum()
      np.testing.assert_allclose(score, expected, rtol=0, atol=1e-4)
  assert np.ptp(np.concatenate(found)) > 1
