"""Beam search finds what trying all captions finds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.models import beam_search

_PAD, _START, _END, _VOCAB, _LENGTH = 0, 1, 2, 6, 3


def _tables(rng, rows):
  """log p(next | last, row) by table: [rows, V, V] of two models."""
  scores = rng.normal(0, 2, (2, rows, _VOCAB, _VOCAB))
  return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def _step(state, token):
  rows = jnp.arange(len(token))
  likelihood, prior = state
  return likelihood[rows, token], prior[rows, token], state


def _search(tables, width):
  return beam_search.search(
    _step,
    tuple(map(jnp.asarray, tables)),
    batch_size=tables.shape[1],
    width=width,
    length=_LENGTH,
    start_id=_START,
    end_id=_END,
  )


def _all_captions():
  words = range(_END + 1, _VOCAB)
  for count in range(_LENGTH):
    for said in itertools.product(words, repeat=count):
      yield (*said, _END)
  yield from itertools.product(words, repeat=_LENGTH)  # Cut off.


def _scores(tables, row):
  """Caption -> its two scores, one token after the other."""
  found = {}
  for caption in _all_captions():
    before = (_START, *caption[:-1])
    found[caption] = tables[:, row, before, caption].sum(1)
  return found


@pytest.fixture(scope='module')
def tables():
  return _tables(np.random.default_rng(0), rows=3)


@pytest.mark.parametrize('strength', [0.0, 0.2, 0.5, 1.0])
def test_a_wide_beam_is_brute_force(tables, strength):
  beams = jax.device_get(_search(tables, _VOCAB**_LENGTH))
  found = np.asarray(beam_search.pointwise(beams, strength))
  for row in range(tables.shape[1]):
    expected = _scores(tables, row)
    scores = {k: a - strength * b for k, (a, b) in expected.items()}
    best = max(scores, key=scores.get)
    place = found[row].argmax()
    padded = (*best, *[_PAD] * (_LENGTH - len(best)))
    assert tuple(beams.tokens[row, place]) == padded
    np.testing.assert_allclose(found[row, place], scores[best], rtol=1e-5)
    if not strength:  # The likelihood alone: the first beam.
      assert place == 0


def test_every_caption_is_found_once_with_both_of_its_scores(tables):
  beams = jax.device_get(_search(tables, _VOCAB**_LENGTH))
  for row in range(tables.shape[1]):
    expected = _scores(tables, row)
    real = np.isfinite(beams.likelihood[row])
    assert real.sum() == len(expected)
    for tokens, likelihood, prior in zip(
      beams.tokens[row][real],
      beams.likelihood[row][real],
      beams.prior[row][real],
      strict=True,
    ):
      caption = tuple(x for x in tokens if x != _PAD)
      np.testing.assert_allclose(
        (likelihood, prior), expected.pop(caption), rtol=1e-5, atol=1e-5
      )


def test_a_beam_of_one_is_greedy(tables):
  beams = jax.device_get(_search(tables, 1))
  for row in range(tables.shape[1]):
    token, said = _START, []
    while len(said) < _LENGTH and token != _END:
      token = int(tables[0, row, token, _END:].argmax()) + _END
      said.append(token)
    said += [_PAD] * (_LENGTH - len(said))
    assert beams.tokens[row, 0].tolist() == said


@pytest.mark.parametrize('width', [1, 4, 40])
def test_beams_fall(tables, width):
  likelihood = np.asarray(_search(tables, width).likelihood)
  with np.errstate(invalid='ignore'):
    assert not (np.diff(likelihood, axis=1) > 0).any()


def test_a_beam_has_room():
  with pytest.raises(types.InputError, match='width must be in'):
    _search(_tables(np.random.default_rng(0), 1), 0)
