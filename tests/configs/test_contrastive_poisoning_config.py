"""The recipe of poisoned pairs trains on what its attacker wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import contrastive_poisoning as recipe
from configs.parts import poisoned_pairs
from configs.parts import poisoned_runs
from configs.studies import contrastive_poisoning as study
from repjax import types
from repjax.attacks import contrastive_poisoning
from repjax.experiments import of_images
from repjax.protocols import side_by_side


def config(**poison):
  made = recipe.get_config('smoke')
  made.poison.update(poison)
  return made


def test_captions_say_what_the_images_are():
  pairs = poisoned_pairs.read(config())
  label, ids = (pairs.clean.column(x) for x in ('label', 'tokens'))
  for row in (0, 1, 700):
    text = pairs.tokenizer.decode(ids[row])
    assert pairs.names[label[row]] in text
  assert pairs.names[3] == 'three'


def test_a_backdoor_is_in_so_many_rows_and_the_test_is_clean():
  made = config(kind='backdoor', count=5, wanted=3)
  pairs = poisoned_pairs.read(made)
  poison = poisoned_pairs.poison(made, pairs)
  train = contrastive_poisoning.apply(pairs.clean, poison)
  bad = np.flatnonzero(train.column('poisoned'))
  assert len(bad) == 5
  assert (pairs.clean.column('label')[bad] != 3).all()
  for row in bad:
    assert 'three' in pairs.tokenizer.decode(train.column('tokens')[row])
  test = poisoned_pairs.split_of(made, 'test')
  attacked = poisoned_pairs.split_of(made, 'attacked')
  corner = attacked.column('image')[:, -2:, -2:, 0]
  assert (corner == [[255, 0], [0, 255]]).all()
  assert not (test.column('image')[:, -2:, -2:, 0] == corner).all((1, 2)).any()


def test_a_trigger_goes_anywhere_from_the_command_line():
  made = config(kind='backdoor', place=('anywhere',))
  assert poisoned_pairs.trigger(made).place == 'anywhere'
  for captions in (0, 9):
    made = config(kind='backdoor', captions=captions)
    with pytest.raises(types.InputError, match=r'poison\.captions'):
      poisoned_pairs.poison(made, poisoned_pairs.read(made))


def test_a_target_is_a_test_image_that_is_no_training_row():
  made = config(kind='targeted', count=3, wanted=4, target=0)
  pairs = poisoned_pairs.read(made)
  poison = poisoned_pairs.poison(made, pairs)
  attacked = poisoned_pairs.split_of(made, 'attacked')
  assert len(attacked) == 1
  assert poison.size == 3
  for image in poison.columns['image']:
    np.testing.assert_array_equal(image, attacked.column('image')[0])
  experiment = recipe.build(made)
  assert experiment.eval_splits == ('test', 'attacked')
  assert len({x for x in poison.columns['tokens'].tobytes()}) > 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(kind='backdoor', count=5, wanted=10), 'config.poison.wanted=10'),
    (dict(kind='targeted', count=1, target=999), 'config.poison.target=999'),
    (dict(kind='backdoor', count=9999), 'count=9999 poisoned rows of'),
    (dict(kind='both'), 'config.poison.kind'),
    (dict(kind='backdoor', count=1, size=9), '9 x 9 pixels, more than'),
    (dict(kind='backdoor', count=1, place=(7, 7)), 'over the edge'),
  ],
)
def test_an_attack_that_cannot_be_is_refused(fields, message):
  with pytest.raises(types.InputError, match=message):
    recipe.build(config(**fields))


def test_a_target_of_the_wanted_class_is_refused():
  label = of_images.load(config(), 'test').column('label')
  with pytest.raises(types.InputError, match='of the class'):
    recipe.build(config(kind='targeted', count=1, wanted=int(label[0])))


@pytest.mark.parametrize('preset', ['paper', 'gpu'])
def test_a_step_has_the_real_shapes(preset):
  made = recipe.get_config(preset)
  made.data.update(
    name='digits', test_split='test', eval_splits=('test', 'attacked')
  )
  side = made.augment['size'] or 32
  made.augment.update(size=side, mean=(0.5,), std=(0.5,))
  made.poison['size'] = 2
  made.clip.in_modal = 1.0
  pairs = poisoned_pairs.read(made)
  method = poisoned_pairs.method(made, pairs, 10)
  rows, length = made.batch_size, made.data.length
  batch = {
    'image': jax.ShapeDtypeStruct((rows, side, side, 3), jnp.float32),
    'tokens': jax.ShapeDtypeStruct((rows, length), jnp.int32),
    'token_mask': jax.ShapeDtypeStruct((rows, length), jnp.float32),
    'mask': jax.ShapeDtypeStruct((rows,), jnp.float32),
  }
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  after, sums = jax.eval_shape(method.update, state, batch, jax.random.key(1))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert set(sums) == {'loss', 'accuracy', 'scale'}


def test_runs_side_by_side_are_those_of_one_set_each():
  made = study.get_config('smoke')
  made.unlock()
  shared = poisoned_runs.setting(made)
  runs = [
    poisoned_runs.backdoor(shared, 0, 3),
    poisoned_runs.targeted(shared, 1, 2, number=2, captions=8),
  ]
  together = poisoned_runs.train('together', shared, runs)
  for i, (seed, poison) in enumerate(runs):
    alone = contrastive_poisoning.apply(shared.pairs.clean, poison)
    rows = side_by_side.rows(alone, of_images.data(made, alone).recipe.evaluate)
    trained = side_by_side.train(
      'alone',
      shared.method,
      {k: x[None] for k, x in rows.items() if k != 'poisoned'},
      shared.test,
      seeds=[seed],
      batch_size=made.batch_size,
      steps=shared.steps,
      points=2,
    )
    np.testing.assert_allclose(
      trained.outputs['logits'][0],
      together.outputs['logits'][i],
      rtol=1e-3,
      atol=1e-3,
    )
  assert len({x.row for x in poisoned_runs.targets_of(shared, 1, 9)}) == 9
  for target in poisoned_runs.targets_of(shared, 1, 9):
    assert shared.test['label'][target.row] != target.wanted


def test_poison_that_is_not_asked_for_is_not_counted():
  with pytest.raises(types.InputError, match='count=20 counts for nothing'):
    recipe.build(config(count=20))


def test_five_copies_have_five_captions():
  made = config(kind='targeted', count=5, wanted=4, target=0)
  poison = poisoned_pairs.poison(made, poisoned_pairs.read(made))
  assert len({x.tobytes() for x in poison.columns['tokens']}) == 5
  assert ' five ' in study.CLAIMS['more_captions']['says']
