"""Words of a slice are those that point from its class to it."""

import numpy as np
import pytest

from repjax import types
from repjax.analysis import slice_words

PHRASES = ('red', 'blue', 'seven', 'plain')
# What a perfect model would have: one direction a word.
TEXTS = np.eye(4)


def world():
  """Sevens, which are all of class 1, half red and half blue."""
  labels = np.repeat([0, 1], [10, 20])
  rows = np.full((30, 4), 0.1)
  rows[10:, 2] = 1.0
  rows[10:20, 0] = 1.0
  rows[20:, 1] = 1.0
  psi = np.zeros((30, 2))
  psi[10:20, 0] = 0.9
  return psi, rows, labels


def test_what_all_of_the_class_have_is_no_word_for_its_slice():
  psi, rows, labels = world()
  first, none = slice_words.describe(
    psi, rows, labels, PHRASES, TEXTS, num_words=2
  )
  assert first.phrases[0] == 'red'
  assert first.scores[0] > 0.3
  # All rows of the class are sevens, so that the word says nothing of a part.
  assert abs(first.scores[1]) < 1e-9
  assert none is None


def test_scores_are_what_the_paper_defines():
  psi, rows, labels = world()
  psi[:, 1] = np.linspace(0, 1, 30)
  unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  for reference, whole in (('class', unit[labels == 1]), ('all', unit)):
    found = slice_words.describe(
      psi, rows, labels, PHRASES, 3 * TEXTS, num_words=4, reference=reference
    )[1]
    mean = (psi[:, 1:] * unit).sum(0) / psi[:, 1].sum()
    away = mean - whole.mean(0)
    order = np.argsort(-away, kind='stable')
    assert found.phrases == tuple(PHRASES[i] for i in order)
    np.testing.assert_allclose(found.scores, away[order])


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (dict(phrases=PHRASES[:3]), '3 phrases have 4 embeddings'),
    (dict(phrases=(), phrase_embeddings=TEXTS[:0]), '0 phrases'),
    (dict(phrase_embeddings=0 * TEXTS), "phrase 'red' has no embedding"),
    (dict(phrase_embeddings=TEXTS * np.nan), 'and so 4 in all'),
    (dict(phrase_embeddings=TEXTS[:, :2] + 1), '4 numbers and phrases of 2'),
    (dict(embeddings=np.zeros((30, 4))), 'row 0 has no embedding'),
    (dict(labels=np.zeros(3, int)), '30, 30 and 3 rows'),
    (dict(labels=np.zeros(30)), 'labels are integers'),
    (dict(labels=np.full(30, -1)), 'classes from 0 on'),
    (dict(psi=np.full((30, 2), np.nan)), r'psi is .* in \[0, 1\]'),
    (dict(psi=np.full((30, 2), 4.0)), 'not `log_odds`'),
    (dict(num_words=5), 'num_words must be in'),
    (dict(reference='none'), 'reference must be one of'),
  ],
)
def test_what_cannot_be_described_is_said(changed, message):
  psi, rows, labels = world()
  given = dict(
    psi=psi,
    embeddings=rows,
    labels=labels,
    phrases=PHRASES,
    phrase_embeddings=TEXTS,
    num_words=2,
  )
  with pytest.raises(types.InputError, match=message):
    slice_words.describe(**{**given, **changed})


def test_half_precision_has_words():
  psi, rows, labels = world()
  expected = slice_words.describe(
    psi, rows, labels, PHRASES, TEXTS, num_words=2
  )[0]
  for scale in (1000.0, 1e-4):  # Squares of neither fit into 16 bits.
    found = slice_words.describe(
      psi.astype(np.float16),
      (scale * rows).astype(np.float16),
      labels,
      PHRASES,
      (scale * TEXTS).astype(np.float16),
      num_words=2,
    )[0]
    assert found.phrases[0] == expected.phrases[0]
    np.testing.assert_allclose(found.scores, expected.scores, atol=5e-3)


@pytest.mark.parametrize(
  ('cosines', 'message'),
  [
    (np.zeros((30, 3)), r'30 rows and 4 phrases have cosines of \[30, 3\]'),
    (np.full((30, 4), np.nan), 'cosines of row 0 are not finite'),
  ],
)
def test_cosines_that_name_no_phrase_are_refused(cosines, message):
  psi, _, labels = world()
  with pytest.raises(types.InputError, match=message):
    slice_words.of_cosines(psi, cosines, labels, PHRASES)
