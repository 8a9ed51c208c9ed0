"""Scenes, planted units and what is said of them."""

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import letters
from repjax.data.sets import planted_units
from repjax.data.sets import scenes
from repjax.data.sets import seen_things


@pytest.fixture(scope='module')
def things():
  return scenes.draw(300, seed=0)


def test_things_are_where_their_masks_are_and_as_coloured_as_they_are(things):
  inks = np.array(list(scenes.INKS.values()))
  for row, mask, attribute in zip(
    things.row[:60], things.mask, things.attribute, strict=False
  ):
    shown = things.image[row][mask].mean(0) / 255
    ink = inks[attribute[0]]
    assert shown[ink == 1].min() > shown[ink == 0].max() + 0.2
  per_scene = np.add.reduceat(
    things.mask.astype(int), np.arange(0, 600, 2), axis=0
  )
  assert per_scene.max() == 1  # Things do not overlap.


def test_attributes_are_independent_and_letters_have_no_filling():
  attribute = scenes.draw(4000, seed=1, num_things=1).attribute
  table = np.zeros((6, 5))
  np.add.at(table, (attribute[:, 0], attribute[:, 2]), 1)
  assert abs(table / len(attribute) - 1 / 30).max() < 0.01
  is_letter = attribute[:, 2] == scenes.KINDS.index('letters')
  assert (attribute[is_letter, 1] == -1).all()
  assert (attribute[~is_letter, 1] >= 0).all()


def test_seeds_decide():
  first, again, other = (scenes.draw(5, seed=x) for x in (0, 0, 1))
  np.testing.assert_array_equal(first.image, again.image)
  assert (first.image != other.image).any()


def test_concepts_are_those_that_enough_images_show(things):
  found = planted_units.concepts(things, at_least=8)
  for concept in found:
    shown = np.ones(len(things.row), bool)
    for i, value in enumerate(concept):
      if value >= 0:
        shown &= things.attribute[:, i] == value
    assert len(set(things.row[shown])) >= 8
  assert not (found == -1).all(1).any()
  assert {tuple(x) for x in np.eye(3, dtype=int)[:1] * 2 - 1} <= {
    tuple(x) for x in found
  }


def test_exemplars_show_the_concept_in_images_of_their_own(things):
  concept = np.array([[0, -1, -1], [-1, -1, 1], [-1, 2, -1], [-1, -1, -1]])
  found = planted_units.exemplars(things, concept, k=6, seed=0)
  assert found.shape == (4, 6)
  for own, x in zip(found, concept, strict=True):
    assert planted_units.fits(things.attribute[own], x).all()
    assert len(set(things.row[own])) == 6
  other = planted_units.exemplars(things, concept, k=6, seed=1)
  assert (found != other).any(1).all()


def test_annotators_name_attributes_as_often_as_they_are_asked_to():
  concept = np.tile([2, 1, 3], (4000, 1))
  said = planted_units.captions(concept, scenes.NAMES, mention=0.6, seed=0)
  named = np.array([planted_units.named(x, scenes.NAMES) for x in said])
  assert set(map(tuple, np.unique(named, axis=0))) <= {
    (a, b, c) for a in (-1, 2) for b in (-1, 1) for c in (-1, 3)
  }
  np.testing.assert_allclose((named >= 0).mean(0), 0.6, atol=0.03)
  assert len(set(said)) > 30
  assert all(planted_units.is_grammatical(x, scenes.NAMES) for x in said)
  assert planted_units.said(concept[0], scenes.NAMES) == 'blue hollow crosses'


@pytest.mark.parametrize(
  'text',
  [
    '',
    'red',
    'red blue squares',
    'squares crosses',
    'squares red',
    'squares that are',
    'squares that are red and',
    'squares that are red blue',
    'red squares that are hollow',
    'squares some red',
    'squares that are red and blue',
  ],
)
def test_what_nobody_would_write_is_found(text):
  assert not planted_units.is_grammatical(text, scenes.NAMES)


def test_several_values_of_an_attribute_are_none():
  named = planted_units.named('red and blue squares', scenes.NAMES)
  assert named.tolist() == [-2, -1, 0]


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda x: planted_units.concepts(x, at_least=999), 'no attribute'),
    (
      lambda x: planted_units.exemplars(x, np.zeros((1, 3), int), k=99, seed=0),
      "images show 'red solid squares'",
    ),
    (lambda x: scenes.draw(0, seed=0), 'num_rows must be'),
    (lambda x: scenes.draw(1, seed=0, num_things=5), 'num_things must be'),
    (
      lambda x: planted_units.captions(x.attribute, x.names, mention=0, seed=0),
      'mention must be',
    ),
  ],
)
def test_bad_input_is_said_in_one_line(things, call, message):
  with pytest.raises(types.InputError, match=message):
    call(things)


def test_letters_are_written_where_they_should_be():
  image = np.zeros((3, 9, 8, 3), np.uint8)
  ink = np.full((3, 3), 200, np.uint8)
  found, inked = letters.write(
    image, np.array([0, -1, 4]), top=np.array([0, 0, 4]), left=3, ink=ink
  )
  np.testing.assert_array_equal(found.any(-1), inked)
  assert not inked[1].any()
  np.testing.assert_array_equal(inked[0, :5, 3:], letters.SHAPES[0])
  np.testing.assert_array_equal(inked[2, 4:, 3:], letters.SHAPES[4])
  assert not image.any()
  for wrong in (dict(letter=[99] * 3), dict(top=5), dict(left=4)):
    how = dict(letter=[0] * 3, top=0, left=0, ink=ink)
    with pytest.raises(types.InputError):
      letters.write(image, **{**how, **wrong})


def test_photographs_have_attributes_of_their_own():
  image = np.full((40, 8, 8, 3), 90, np.uint8)
  image[:10, ..., 2] = 200
  image[10:20] = 5
  source = sources.from_arrays(
    'photos',
    {'image': image, 'label': np.arange(40) % 2},
    num_classes=2,
    class_names=('cat', 'dog'),
  )
  found = seen_things.of_source(source, seed=0, letter_rate=0.25)
  is_letter = found.attribute[:, 2] == 2
  assert 2 < is_letter.sum() < 20
  assert found.names[2] == ('cats', 'dogs', 'letters')
  assert (found.mask.all((1, 2)) == ~is_letter).all()
  plain = np.flatnonzero(~is_letter)
  blue = seen_things.COLOURS.index('bluish')
  assert ((found.attribute[plain, 0] == blue) == (plain < 10)).all()
  dark = (plain >= 10) & (plain < 20)
  assert (found.attribute[plain[dark], 1] == 0).all()
  grey = source.with_columns(image=image[..., :1])
  with pytest.raises(types.InputError, match='colour images'):
    seen_things.of_source(grey, seed=0)
