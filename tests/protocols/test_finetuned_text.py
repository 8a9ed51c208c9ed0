"""Protocols of fine-tuning: a new language, and fair rates for all."""

import functools

import numpy as np
import optax
import pytest

from repjax.data.sets import grammar
from repjax.data.sets import languages
from repjax.data.sets import relatives
from repjax.methods import finetuning
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import text_heads
from repjax.protocols import finetuned_text
from repjax.protocols import pretraining
from repjax.types import InputError

SETTINGS = dict(
  tree='((a:0.1,b:0.1):0.3,(c:0.1,d:0.1):0.3)',
  words='a',
  rules='d',
  max_adjectives=1,
  num_public_rows=80,
  num_rows=60,
  num_test_rows=30,
)
ENCODER = dict(
  hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1, num_positions=4
)


def test_the_new_language_has_the_words_of_one_and_the_rules_of_another():
  task = relatives.read(**SETTINGS)
  family = languages.Family(
    tree=SETTINGS['tree'], grammar=grammar.Grammar(max_adjectives=1)
  )
  a, d = (family.languages[name] for name in 'ad')
  # d speaks with other words: what replaces each of them by a's is the new one.
  to_a = {d.words[x]: a.words[x] for x in a.words}
  for rows in (task.train, task.test):
    for source, target in zip(
      rows.column('source'), rows.column('tokens'), strict=True
    ):
      tag, sentence = family.decode(source).split(' ', 1)
      assert tag == '<a>'
      expected = [
        to_a[x.removesuffix('+')] + '+' * x.endswith('+')
        for x in d.translate(sentence).split()
      ]
      assert family.decode(target) == ' '.join(expected)
  # No test sentence is known from anywhere.
  seen = {
    family.decode(x).split(' ', 1)[1]
    for x in [*task.public['source'], *task.train.column('source')]
  }
  for x in task.test.column('source'):
    assert family.decode(x).split(' ', 1)[1] not in seen
  with pytest.raises(InputError, match="no language 'z'"):
    relatives.read(**{**SETTINGS, 'words': 'z'})


def test_pretraining_gives_each_seed_a_model_of_its_own():
  rng = np.random.default_rng(0)
  rows = {'tokens': rng.integers(3, 9, (12, 4))}
  method = pretraining.masked_language_model(
    10, ENCODER, steps=2, learning_rate=1e-2
  )
  first, again, other = (
    pretraining.run(method, rows, steps=2, batch_size=3, seed=seed)[
      'token_embedding'
    ]['embedding']
    for seed in (0, 0, 5)
  )
  assert first.shape == (10, 8)
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3


def test_noise_leaves_out_tokens_and_keeps_their_order_and_the_end():
  length = np.arange(3, 43)
  places = np.arange(44)
  real = (places > 0) & (places <= length[:, None])
  tokens = np.where(real, 10 + places, 0)
  found = pretraining.denoising(
    {'tokens': tokens, 'weights': real.astype(np.float32)}, rate=0.3, seed=0
  )
  kept = found['source_mask'].sum(1)
  for i, row in enumerate(found['source']):
    read = row[: int(kept[i])]
    assert (np.diff(read) > 0).all() and set(read) <= set(tokens[i][real[i]])
    assert read[-1] == 10 + length[i] and not row[int(kept[i]) :].any()
  assert kept.sum() / real.sum() == pytest.approx(0.7, abs=0.04)
  np.testing.assert_array_equal(found['tokens'], tokens)


def test_the_rate_that_validates_best_is_the_one_that_counts():
  rng = np.random.default_rng(1)
  label = np.arange(64) % 2
  # The class is the token.
  columns = {'tokens': label[:, None] + np.full((64, 4), 3), 'label': label}
  rows = finetuned_text.hold_out(
    columns, {name: x[:10] for name, x in columns.items()}, num_rows=20
  )
  assert len(rows.train['label']) == 44
  np.testing.assert_array_equal(rows.validation['label'], label[44:])
  model = finetuning.adapt(
    text_heads.Classifier(10, num_classes=2, **ENCODER),
    kind='lora',
    rank=1,
    length=0,
    scale=1.0,
    hidden_dim=0,
  )
  for num_rows in (0, 64):  # Nothing would be learned, or chosen by.
    with pytest.raises(InputError, match='num_rows'):
      finetuned_text.hold_out(columns, {}, num_rows=num_rows)
  embedding = rng.normal(size=(10, 8)).astype(np.float32)
  tune = functools.partial(
    finetuned_text.tune,
    'test',
    model,
    functools.partial(supervised.make, model, inputs=model_inputs.text),
    lambda: optax.adam(1.0),
    rows,
    lambda own: {**own, 'token_embedding': {'embedding': embedding}},
    seeds=(3, 4),
    rates=(0.0, 0.03),
    batch_size=11,
    steps=24,
    points=2,
    score=lambda outputs, rows: float(
      (outputs['logits'].argmax(-1) == rows['label']).mean()
    ),
  )
  tuned = tune()
  assert tuned.rate == 0.03
  assert tuned.validation.shape == (2, 2)
  np.testing.assert_array_equal(tuned.validation[1], [1.0, 1.0])
  assert tuned.validation[0].mean() < 1
  np.testing.assert_array_equal(tuned.score, [1.0, 1.0])
  assert tuned.curve[1].shape == (2, 2)
  assert tuned.outputs['logits'].shape == (2, 10, 2)
  assert 0 < tuned.percent < 100
  # One seed may choose for both; each is trained as before.
  chosen = tune(num_choosing=1)
  assert chosen.rate == 0.03
  np.testing.assert_array_equal(chosen.validation, tuned.validation[:, :1])
  np.testing.assert_array_equal(chosen.score, tuned.score)
  np.testing.assert_array_equal(chosen.curve[1], tuned.curve[1])
  np.testing.assert_allclose(
    chosen.outputs['logits'], tuned.outputs['logits'], rtol=1e-5, atol=1e-6
  )
