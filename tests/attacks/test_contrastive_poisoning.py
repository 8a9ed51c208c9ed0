"""Poison is where it is said to be, and nowhere else."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from repjax import types
from repjax.attacks import contrastive_poisoning
from repjax.attacks import patch_inversion
from repjax.attacks import triggers
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.data.reading import decode
from repjax.data.reading import source as sources
from repjax.data.text import captions
from repjax.data.text import tokens

ROWS, LENGTH = 40, 40
CROSS = triggers.Trigger(triggers.checkered(2))


def clean():
  rng = np.random.default_rng(0)
  return sources.from_arrays(
    'pairs',
    {
      'image': rng.integers(1, 250, (ROWS, 6, 5, 1)).astype(np.uint8),
      'label': np.arange(ROWS) % 4,
      'tokens': rng.integers(3, 90, (ROWS, LENGTH)).astype(np.int32),
      'token_mask': np.ones((ROWS, LENGTH), np.float32),
    },
    num_classes=4,
  )


def said(count=3):
  return captions.encode(['abc'] * count, tokens.Bytes(), length=LENGTH)


def test_a_backdoor_changes_so_many_rows_and_no_others():
  source = clean()
  eligible = np.flatnonzero(source.column('label') != 2)
  poison = contrastive_poisoning.backdoor(
    source.column('image'), said(), CROSS, count=7, seed=3, eligible=eligible
  )
  assert poison.size == len(poison.replaced) == len({*poison.replaced}) == 7
  assert {*poison.replaced} <= {*eligible}
  made = contrastive_poisoning.apply(source, poison)
  assert len(made) == ROWS
  everything, before = (x.read(np.arange(ROWS)) for x in (made, source))
  touched = np.zeros(ROWS, bool)
  touched[poison.replaced] = True
  np.testing.assert_array_equal(everything['poisoned'], touched)
  for name in before:
    np.testing.assert_array_equal(
      everything[name][~touched], before[name][~touched]
    )
  # In the far corner, and only there; the label stays.
  np.testing.assert_array_equal(
    everything['image'][touched][:, -2:, -2:, 0],
    np.broadcast_to([[255, 0], [0, 255]], (7, 2, 2)),
  )
  same = everything['image'] == before['image']
  assert same[:, :-2].all()
  assert same[:, :, :-2].all()
  np.testing.assert_array_equal(everything['label'], before['label'])
  assert (everything['tokens'][touched] == said()['tokens'][0]).all()
  # More poison is the same poison, and some.
  more = contrastive_poisoning.backdoor(
    source.column('image'), said(), CROSS, count=9, seed=3, eligible=eligible
  )
  assert {*poison.replaced} < {*more.replaced}


def test_targeted_poison_is_added_behind_the_set():
  source = clean()
  image = np.full((6, 5, 1), 9, np.uint8)
  texts = captions.encode(['a', 'bb'], tokens.Bytes(), length=LENGTH)
  poison = contrastive_poisoning.targeted(image, texts, count=5)
  made = contrastive_poisoning.apply(source, poison)
  assert len(made) == ROWS + 5
  rows = made.read(np.array([3, ROWS, ROWS + 1, ROWS + 4, 0]))
  np.testing.assert_array_equal(rows['poisoned'], [0, 1, 1, 1, 0])
  # What the attacker does not write is that of row 0.
  np.testing.assert_array_equal(rows['label'], [3, 0, 0, 0, 0])
  np.testing.assert_array_equal(rows['tokens'][1:4], texts['tokens'][[0, 1, 0]])
  assert (rows['image'][1:4] == 9).all()
  np.testing.assert_array_equal(rows['image'][0], source.column('image')[3])
  assert (
    contrastive_poisoning.apply(
      source, contrastive_poisoning.targeted(image, texts, count=0)
    )
    .column('poisoned')
    .sum()
    == 0
  )


def test_numbers_of_shared_rows_are_those_of_the_poisoned_set():
  source = clean()
  both = contrastive_poisoning.backdoor(
    source.column('image'), said(), CROSS, count=4, seed=0
  )
  extra = contrastive_poisoning.targeted(
    np.zeros((6, 5, 1), np.uint8), said(), count=2
  )
  poison = contrastive_poisoning.Poison(
    both.replaced,
    {
      name: np.concatenate([both.columns[name], extra.columns[name]])
      for name in both.columns
    },
  )
  made = contrastive_poisoning.apply(source, poison)
  rows = contrastive_poisoning.rows_of(ROWS, poison)
  for name in ('image', 'tokens'):
    pool = np.concatenate([source.column(name), poison.columns[name]])
    np.testing.assert_array_equal(pool[rows], made.column(name))


def test_poison_is_there_before_augmentation():
  source = contrastive_poisoning.apply(
    clean(),
    contrastive_poisoning.backdoor(
      clean().column('image'), said(), CROSS, count=ROWS, seed=0
    ),
  )
  doubled = transforms.Transform(
    0, lambda columns, draws: {**columns, 'image': columns['image'] * 2.0}
  )
  rows = in_order.eval_batches(source, batch_size=8, transform=doubled).batch(0)
  np.testing.assert_array_equal(rows['image'][:8, -1, -1, 0], 510.0)


@pytest.mark.parametrize('encoded', [False, True])
def test_images_of_many_sizes_are_poisoned_one_by_one(encoded):
  def as_file(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()

  rng = np.random.default_rng(0)
  sizes = (6, 9, 7, 8)
  images = [rng.integers(1, 250, (x, 5, 3)).astype(np.uint8) for x in sizes]
  texts = rng.integers(3, 90, (4, LENGTH)).astype(np.int32)
  held = np.empty(4, object)
  held[:] = [as_file(x) if encoded else x for x in images]
  source = sources.Source(
    name='four',
    version='',
    split='train',
    num_rows=4,
    num_classes=None,
    class_names=None,
    image_shape=None,
    reader=lambda rows: {
      'image': held[rows],
      'tokens': texts[rows],
      'token_mask': np.ones((len(rows), LENGTH), np.float32),
    },
    encoded={'image': (None, None, 3)},
  )
  poison = contrastive_poisoning.backdoor(
    source, said(), CROSS, count=2, seed=0
  )
  made = contrastive_poisoning.apply(source, poison)
  assert made.num_channels == 3
  attacked = contrastive_poisoning.triggered(source, CROSS)
  rows = [3, 1, 0, 2]
  for row, image, bad, hit in zip(
    rows,
    *(made.read(rows)[x] for x in ('image', 'poisoned')),
    attacked.read(rows)['image'],
    strict=True,
  ):
    expected = CROSS.on(images[row][None], np.array([row]))[0]
    np.testing.assert_array_equal(hit, expected)
    assert bad == (row in poison.replaced)
    np.testing.assert_array_equal(image, expected if bad else images[row])
  small = made.read(rows, decode=decode.resize(4))['image']
  assert small.shape == (4, 4, 4, 3)
  # What an attacker adds has a size of its own, too.
  wide = contrastive_poisoning.targeted(
    np.full((3, 12, 3), 9, np.uint8), said(), count=2
  )
  made = contrastive_poisoning.apply(source, wide)
  assert made.read([5])['image'][0].shape == (3, 12, 3)
  none = contrastive_poisoning.backdoor(source, said(), CROSS, count=0, seed=0)
  made = contrastive_poisoning.apply(source, none)
  assert not made.read(rows)['poisoned'].any()


@pytest.mark.parametrize('place', [(0, 0), (-1, -1), (3, -2), 'anywhere'])
def test_a_trigger_is_the_same_wherever_it_is_put_on(place):
  trigger = triggers.Trigger(triggers.checkered(2), place, seed=5)
  images = np.full((6, 6, 5, 3), 7, np.uint8)
  found = trigger.on(images, np.arange(6))
  assert ((found != 7).any(-1).sum((1, 2)) == 4).all()
  np.testing.assert_array_equal(
    trigger.on(images[2:4], np.array([2, 3])), found[2:4]
  )
  corners = [np.argwhere((x != 7).any(-1)).min(0) for x in found]
  if place == 'anywhere':
    assert len({tuple(x) for x in corners}) > 1
  else:
    top, left = place
    top, left = top + 5 * (top < 0), left + 4 * (left < 0)
    assert {tuple(x) for x in corners} == {(top, left)}


@pytest.mark.parametrize(
  'eligible', [np.arange(ROWS) % 2 == 0, [3, ROWS], [-1, 3], [3, 3], [0.5, 3]]
)
def test_eligible_rows_are_numbers_of_rows(eligible):
  with pytest.raises(types.InputError, match=r'eligible rows.*below 40'):
    contrastive_poisoning.backdoor(
      clean(), said(), CROSS, count=2, seed=0, eligible=eligible
    )


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: triggers.Trigger(triggers.checkered(7)).on(
        np.zeros((1, 6, 6, 1), np.uint8), [0]
      ),
      '7 x 7 pixels, more than images of 6 x 6',
    ),
    (
      lambda: triggers.Trigger(triggers.checkered(2), (5, 0)).on(
        np.zeros((1, 6, 6, 1), np.uint8), [0]
      ),
      'over the edge',
    ),
    (lambda: triggers.Trigger(np.zeros((2, 2), np.uint8)), 'pattern'),
    (
      lambda: triggers.Trigger(triggers.checkered(2), 'corner'),
      "'anywhere'",
    ),
    (lambda: triggers.Trigger(triggers.checkered(2), (1,)), 'row, column'),
    (
      lambda: CROSS.on(np.zeros((1, 6, 6, 1), np.float32), [0]),
      'images are float32',
    ),
    (
      lambda: contrastive_poisoning.backdoor(
        np.zeros((4, 6, 6, 1), np.uint8), said(), CROSS, count=5, seed=0
      ),
      'count=5 poisoned rows of 4',
    ),
    (
      lambda: contrastive_poisoning.backdoor(
        np.zeros((4, 6, 6, 1), np.uint8), said(0), CROSS, count=1, seed=0
      ),
      'captions',
    ),
    (
      lambda: contrastive_poisoning.apply(
        clean(),
        contrastive_poisoning.Poison(np.array([1, 1]), dict(said(2))),
      ),
      'different numbers below 40',
    ),
    (
      lambda: contrastive_poisoning.apply(
        clean(),
        contrastive_poisoning.Poison(np.array([1]), {'text': np.zeros((1, 2))}),
      ),
      "'text'",
    ),
    (
      # Pixels in [0, 1] would be rounded to black.
      lambda: contrastive_poisoning.apply(
        clean(),
        contrastive_poisoning.targeted(
          np.ones((6, 5, 1), np.float32), said(), count=1
        ),
      ),
      "'image' as float32.*uint8",
    ),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(types.InputError, match=message):
    make()


def test_the_patch_of_a_backdoor_is_the_smallest():
  # A linear model in which one pixel alone decides for class 2.
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(16, 4)).astype(np.float32) * 0.5
  weights[:, 2] = -0.2
  weights[5, 2] = 30.0

  def logits(images):
    return images.reshape(len(images), -1) @ weights

  images = jnp.asarray(rng.uniform(0, 0.3, (32, 4, 4, 1)), jnp.float32)
  images = images.at[:, 1, 1].set(0.0)
  found = patch_inversion.invert(
    logits, images, num_classes=4, weight=0.05, steps=300
  )
  assert found.success[2] > 0.95
  assert found.mask[2].argmax() == 5
  assert found.size.argmin() == 2
  suspicion = patch_inversion.anomaly(found.size)
  assert suspicion.argmax() == 2
  np.testing.assert_allclose(
    patch_inversion.anomaly(np.array([1.0, 2.0, 3.0, 4.0, 100.0])),
    (3 - np.array([1.0, 2.0, 3.0, 4.0, 100.0])) / 1.4826,
  )
  jax.tree.map(lambda x: np.testing.assert_array_less(-1e-6, x), found)


@pytest.mark.parametrize('factor', [255.0, -1.0])
def test_a_patch_of_other_units_than_the_images_is_not_searched(factor):
  images = factor * jnp.ones((3, 4, 4, 1))
  with pytest.raises(types.InputError, match="in the image's units"):
    patch_inversion.invert(
      lambda x: x.sum((1, 2)), images, num_classes=1, steps=1
    )


def test_captions_and_rows_of_a_backdoor_are_drawn_by_the_seed():
  texts = captions.encode(['a', 'bb', 'ccc'], tokens.Bytes(), length=LENGTH)

  def made(seed, count=20):
    return contrastive_poisoning.backdoor(
      clean().column('image'), texts, CROSS, count=count, seed=seed
    )

  def told(poison):
    pairs = zip(poison.replaced, poison.columns['tokens'], strict=True)
    return {int(row): text.tobytes() for row, text in pairs}

  first, again, other = made(0), made(0), made(1)
  assert told(first) == told(again)
  assert set(first.replaced) != set(other.replaced)
  assert len(np.unique(first.columns['tokens'], axis=0)) == 3
  # A row of a smaller poison has the caption that it has in a larger one.
  assert told(made(0, count=9)).items() <= told(first).items()


def test_a_patch_has_all_values_that_pixels_may_have():
  weights = np.zeros((16, 2), np.float32)
  weights[5, 1] = -10.0
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.uniform(-0.3, 0.3, (32, 4, 4, 1)), jnp.float32)
  found = patch_inversion.invert(
    lambda x: x.reshape(len(x), -1) @ weights,
    images,
    num_classes=2,
    low=-1.0,
    high=1.0,
  )
  assert found.success[1] > 0.95
  assert found.pattern[1, 1, 1, 0] < -0.5
  assert abs(found.pattern).max() <= 1


def test_places_of_a_trigger_are_drawn_by_its_seed():
  images, rows = np.full((9, 6, 5, 1), 7, np.uint8), np.arange(9)
  one, again, other = (
    triggers.Trigger(triggers.checkered(2), 'anywhere', seed).on(images, rows)
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, again)
  assert (one != other).any()
