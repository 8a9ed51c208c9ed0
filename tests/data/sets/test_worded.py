"""Worded images are what their attributes and captions say."""

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import worded

NAMES = ('zero', 'one', 'two')


def grey(num_rows=12, **changed):
  columns = dict(
    image=np.full((num_rows, 4, 6, 1), 255, np.uint8),
    label=np.arange(num_rows) % 3,
  )
  return sources.from_arrays(
    'grey', {**columns, **changed}, num_classes=3, class_names=NAMES
  )


def test_an_image_stands_in_its_place_in_its_ink():
  made = worded.draw(grey(), num_rows=100, seed=0)
  assert made.image_shape == (8, 10, 3)
  columns = made.read(np.arange(100))
  assert columns['image'].shape == (100, 8, 10, 3)
  inks = list(worded.INKS.values())
  corners = dict(top=(0, 2), bottom=(4, 2), left=(2, 0), right=(2, 4))
  for i in range(100):
    image = columns['image'][i].astype(int)
    top, left = corners[worded.PLACES[columns['place'][i]]]
    box = image[top : top + 4, left : left + 6]
    assert (box == inks[columns['ink'][i]]).all()
    assert image.sum() == box.sum()
    assert columns['label'][i] == columns['row'][i] % 3


def test_every_row_comes_as_often_as_any_other():
  made = worded.draw(grey(), num_rows=30, seed=0)
  counts = np.bincount(made.column('row'), minlength=12)
  assert set(counts) == {2, 3}
  assert counts.sum() == 30
  assert set(made.column('ink')) <= set(range(6))


def test_colours_are_seen_through_the_ink():
  image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  made = worded.draw(grey(2, image=image), num_rows=2, seed=3).read(
    np.arange(2)
  )
  for i in range(2):
    top, left = ((0, 2), (4, 2), (2, 0), (2, 4))[made['place'][i]]
    ink = np.array(list(worded.INKS.values())[made['ink'][i]])
    expected = np.rint(image[made['row'][i]] / np.float32(255) * ink)
    found = made['image'][i, top : top + 4, left : left + 4].astype(int)
    assert abs(found - expected).max() <= 1


def test_captions_say_what_is_seen_or_nothing_of_it():
  made = worded.draw(grey(), num_rows=200, seed=1)
  columns = {x: made.column(x) for x in ('label', 'ink', 'place')}
  texts = worded.captions(columns, NAMES, seed=0)
  words = worded.words(NAMES)
  said = {name: 0 for name in words}
  for i, text in enumerate(texts):
    there = text.split()
    for name, values in words.items():
      right = values[columns[name][i]]
      assert not {x for x in values if x in there} - {right, 'one'}
      said[name] += right in there
  assert all(100 < x < 200 for x in said.values())
  assert worded.captions(columns, NAMES, seed=0) == texts


def test_a_tokenizer_sees_all_words():
  text = ' '.join(worded.everything(NAMES)).split()
  for values in worded.words(NAMES).values():
    assert set(values) <= set(text)


def test_what_has_no_class_or_size_is_refused():
  bare = sources.from_arrays(
    'bare', {'image': np.zeros((2, 4, 4, 1), np.uint8)}
  )
  with pytest.raises(types.InputError, match='bare has None classes'):
    worded.draw(bare, num_rows=2, seed=0)
  with pytest.raises(types.InputError, match='num_rows must be in'):
    worded.draw(grey(), num_rows=0, seed=0)
  with pytest.raises(types.InputError, match='label 2 has none of the 2 names'):
    worded.captions(
      {x: np.full(1, 2) for x in ('label', 'ink', 'place')}, NAMES[:2], seed=0
    )


@pytest.mark.parametrize('split', ['inputs:photos', 'labelled:photos'])
def test_files_are_not_drawn_anew_under_their_names(split):
  with pytest.raises(types.InputError, match='take no files'):
    worded.draw(grey(), num_rows=12, seed=0, split=split)
