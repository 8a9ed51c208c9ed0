"""Hospitals share labels and differ in looks alone."""

import numpy as np
import pytest

from repjax import types
from repjax.benchmarks.wilds import hospitals
from repjax.data.reading import source as sources


@pytest.fixture(scope='module')
def pair():
  return hospitals.load(), hospitals.load(unlabelled=True)


def homes(data, split):
  return set(data.subset(split).metadata.column('hospital').tolist())


def test_each_split_has_its_hospitals(pair):
  labelled, unlabelled = pair
  for split in ('train', 'id_val', 'id_test'):
    assert homes(labelled, split) == {0, 3, 4}
  assert homes(labelled, 'val') == homes(unlabelled, 'val_unlabeled') == {1}
  assert homes(labelled, 'test') == homes(unlabelled, 'test_unlabeled') == {2}
  assert homes(unlabelled, 'extra_unlabeled') == {5, 6}
  assert homes(unlabelled, 'train_unlabeled') == {0, 3, 4}


def test_slides_belong_to_one_hospital(pair):
  for data in pair:
    slide = data.metadata.column('slide')
    hospital = data.metadata.column('hospital')
    for x in np.unique(slide):
      assert len(set(hospital[slide == x])) == 1
  both = [set(x.metadata.column('slide').tolist()) for x in pair]
  assert not both[0] & both[1]


def test_no_digit_is_in_two_splits_but_those_of_the_tests():
  plain = [hospitals.load(strength=0.0, unlabelled=x) for x in (False, True)]
  seen = {}
  for data in plain:
    for split in data.split_ids:
      image = data.inputs.read(data.subset(split).rows)['image']
      seen[split] = [x.tobytes() for x in image]
  digits = sources.load('digits', 'train+test').columns()['image']
  twins = len(digits) - len({x.tobytes() for x in digits})
  # At strength 0 all look alike: the tests are equal, and nothing else is.
  assert seen['test'] == seen['id_test']
  used = [x for split, rows in seen.items() if split != 'id_test' for x in rows]
  assert len(used) - len(set(used)) <= twins
  assert len(used) == len(digits)


def test_labels_are_halves_of_the_digits(pair):
  labelled, _ = pair
  image = hospitals.load(strength=0.0).inputs.columns()['image']
  grey = {x.tobytes(): y for x, y in zip(image, labelled.label, strict=True)}
  digits = sources.load('digits', 'train+test').columns()
  for x, digit in zip(digits['image'], digits['label'], strict=True):
    # Ink 0.25 on paper 0.75, as strength 0 has it.
    shown = np.rint((0.75 - 0.5 * (x / 255).astype(np.float32)) * 255)
    key = np.repeat(shown, 3, -1).astype(np.uint8).tobytes()
    if key in grey:
      assert grey[key] == (digit >= 5)


def test_a_seed_draws_looks_and_rows():
  first, again, other = (hospitals.load(seed=x) for x in (3, 3, 4))
  image = [x.inputs.columns()['image'] for x in (first, again, other)]
  np.testing.assert_array_equal(image[0], image[1])
  assert (first.label != other.label).any()
  assert (image[0] != image[2]).any()


def test_looks_are_affine_in_grey_without_contrast_and_blur():
  look = hospitals.Look(np.array([0.1, 0.2, 0.3]), np.full(3, 0.9), 1.0, 0.0)
  grey = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
  shown = hospitals.render(grey, look, np.zeros((1, 3)))
  g = grey[..., None]
  expected = 255 * (g * look.ink + (1 - g) * look.paper)
  np.testing.assert_allclose(shown, expected, atol=0.51)
  flat = look._replace(contrast=0.0, blur=0.1)
  assert len(np.unique(hospitals.render(grey, flat, np.zeros((1, 3))))) == 3


def test_sets_that_cannot_be_hospitals_are_refused():
  with pytest.raises(types.InputError, match='num_digits=9000: lower it'):
    hospitals.load(num_digits=9000)
  with pytest.raises(types.InputError, match='num_digits=20 leaves'):
    hospitals.load(num_digits=20)
  with pytest.raises(types.InputError, match='strength must be in'):
    hospitals.load(strength=-1.0)
  with pytest.raises(types.InputError, match='has no images'):
    hospitals.load('python_topics')
