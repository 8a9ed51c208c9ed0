"""Captions say the class, by (seed, row); texts that lose tokens keep order."""

import jax
import numpy as np
import pytest

from repjax import types
from repjax.data.text import captions
from repjax.data.text import tokens
from repjax.data.text import word_loss


def test_a_caption_says_its_class_and_no_other():
  labels = np.arange(50) % 10
  found = captions.draw(labels, captions.DIGITS, seed=0)
  assert found == captions.draw(labels, captions.DIGITS, seed=0)
  assert found != captions.draw(labels, captions.DIGITS, seed=1)
  # 'one' is also what a template says.
  templates = [x for x in captions.TEMPLATES if not x.startswith('one')]
  found = captions.draw(labels, captions.DIGITS, seed=0, templates=templates)
  for label, text in zip(labels, found, strict=True):
    said = {*text.replace(',', '').split()} & {*captions.DIGITS}
    assert said == {captions.DIGITS[label]}
  assert len(set(found)) > 40


def test_digits_are_called_by_their_value():
  assert captions.spoken(None, 3) == ('zero', 'one', 'two')
  assert captions.spoken(('1', '7'), 2) == ('one', 'seven')
  assert captions.spoken(('7', '10', 'fig_leaf'), 3) == ('7', '10', 'fig leaf')


def test_prompts_are_all_templates_of_each_class():
  found = captions.prompts(captions.DIGITS)
  assert [len(x) for x in found] == [len(captions.TEMPLATES)] * 10
  assert all('seven' in x for x in found[7])


def test_columns_begin_and_end_each_text():
  found = captions.encode(['ab', 'c'], tokens.Bytes(), length=5)
  assert found['tokens'][1, 0] == tokens.START
  assert found['tokens'][1, 2] == tokens.END
  np.testing.assert_array_equal(
    found['token_mask'], [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
  )


@pytest.mark.parametrize(
  ('templates', 'message'),
  [(('a {x}',), 'others'), (('a {word}',), 'class'), ((), 'no templates')],
)
def test_templates_that_are_none_are_refused(templates, message):
  with pytest.raises(types.InputError, match=message):
    captions.draw(np.zeros(1, int), ('a',), seed=0, templates=templates)


def test_labels_without_a_name_are_refused():
  with pytest.raises(types.InputError, match='2 names'):
    captions.draw(np.array([2]), ('a', 'b'), seed=0)


def test_texts_lose_tokens_between_their_ends_and_keep_the_order():
  rng = np.random.default_rng(0)
  ids = rng.integers(5, 99, (200, 12)).astype(np.int32)
  lengths = rng.integers(3, 13, 200)
  mask = (np.arange(12)[None] < lengths[:, None]).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 200)
  found, left = (
    np.asarray(x) for x in word_loss.lose(ids, mask, keys, rate=0.4)
  )
  for row, length in enumerate(lengths):
    kept = found[row][left[row] > 0]
    rest = iter(ids[row, :length])
    assert all(x in rest for x in kept)  # A subsequence.
    assert (kept[0], kept[-1]) == (ids[row, 0], ids[row, length - 1])
    assert (found[row][left[row] == 0] == tokens.PAD).all()
  lost = 1 - (left.sum() - 400) / (mask.sum() - 400)
  np.testing.assert_allclose(lost, 0.4, atol=0.05)
  same, _ = word_loss.lose(ids * mask.astype(int), mask, keys, rate=0.0)
  np.testing.assert_array_equal(same, ids * mask.astype(int))
