"""Measures of text: what the libraries say of cases that are known."""

import numpy as np
import pytest

from repjax import types
from repjax.metrics import written_text

pytest.importorskip('sacrebleu')
pytest.importorskip('rouge_score')


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
  labels = np.array([1, 1, 1, 0, 0, 0])
  predicted = np.array([1, 0, 0, 1, 0, 0])
  found = written_text.classification(predicted, labels, num_classes=2)
  precision, recall = 1 / 2, 1 / 3
  f1 = 2 * precision * recall / (precision + recall)
  assert found == pytest.approx({'accuracy': 0.5, 'f1': f1})
  # A class that nobody has counts with 0.
  both = written_text.classification(labels, labels, num_classes=3)
  assert both == pytest.approx({'accuracy': 1.0, 'f1': 2 / 3})


def test_bleu_is_the_mean_of_four_precisions_with_a_penalty():
  # Precisions of 1 to 4 words: 5/6, 4/5, 3/4, 2/3; as long as the reference.
  written, reference = 'a b c d e f', 'a b c d e g'
  expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
  assert written_text.bleu(
    [written], [[reference]], tokenize='none'
  ) == pytest.approx(expected)
  # The nearer of two references counts, also where others have one alone.
  found = written_text.bleu(
    [written, written], [[reference, written], [written]], tokenize='none'
  )
  assert found == pytest.approx(100)
  # A shorter text pays exp(1 - r / c).
  short = written_text.bleu(['a b c d'], [['a b c d e']], tokenize='none')
  assert short == pytest.approx(100 * np.exp(1 - 5 / 4))


def test_rouge_is_the_f_measure_of_common_words(caplog):
  found = written_text.rouge(['the cat sat'], [['the cat ran', 'no']])
  assert found == pytest.approx(
    {'rouge1': 100 * 2 / 3, 'rouge2': 50.0, 'rougeL': 100 * 2 / 3}
  )
  # Not in order: one word is the longest common subsequence of 'b a'.
  with caplog.at_level('WARNING'):
    written_text.rouge(['привет мир', 'a'], [['привет мир'], ['a']])
  assert '1 reference(s) have none' in caplog.text
  found = written_text.rouge(['alpha beta'], [['beta alpha']])
  assert found == pytest.approx({'rouge1': 100, 'rouge2': 0, 'rougeL': 50})


def test_texts_end_where_they_end_and_prompts_share_references():
  outputs = {
    'prompt': np.array([[5, 6], [7, 8], [5, 6]]),
    'written': np.array([[3, 4, 2, 9], [9, 9, 9, 9], [3, 4, 2, 9]]),
    'target': np.array([[-1, 3, 2], [-1, 4, 4], [-1, 9, 2]]),
  }
  written, references = written_text.texts(
    outputs, decode=lambda ids: ' '.join(map(str, ids)), end_id=2
  )
  assert written == ['3 4', '9 9 9 9']
  assert references == [['3', '9'], ['4 4']]


@pytest.mark.parametrize('measure', [written_text.bleu, written_text.rouge])
def test_texts_without_references_are_refused(measure):
  with pytest.raises(types.InputError, match='as many references'):
    measure(['a'], [])


def test_the_text_of_ids_ends_at_the_end():
  row = np.array([1, 2, 9, 3, -1])
  show = lambda ids: ''.join('abcd'[i] for i in ids)  # noqa: E731
  assert written_text.text_of(row, decode=show, end_id=9) == 'bc'
  assert written_text.text_of(row[3:], decode=show, end_id=9) == 'd'


def test_defaults_are_those_of_published_figures():
  found = written_text.rouge(['dogs'], [['dog']])  # By Porter's stems.
  assert found['rouge1'] == pytest.approx(100)
  apart = written_text.bleu(['one two three four.'], [['one two three four .']])
  assert apart == pytest.approx(100)
