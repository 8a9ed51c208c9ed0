"""MILAN's recipe on planted units and on a folder of MILANNOTATIONS."""

import jax
import numpy as np
import optax
import pytest

from configs import milan
from configs.parts import described_units
from configs.parts import milan_subjects
from configs.parts import planted_captions
from configs.studies import milan as study
from repjax import types
from repjax.analysis import exemplars
from repjax.data.sets import planted_units
from repjax.data.sets import scenes
from repjax.methods import describing


@pytest.fixture(scope='module')
def planted():
  config = milan.get_config('smoke')
  return config, described_units.read(config)


def test_no_concept_is_on_both_sides(planted):
  _, units = planted
  out = {tuple(x) for x in units.heldout['concept']}
  assert out
  known = {units.tokenizer.decode(x[1:]) for x in units.train['tokens']}
  names = {tuple(planted_units.named(x, units.names)) for x in known}
  # A caption may leave attributes out, but never names what is held out whole.
  assert not {x for x in out if (np.array(x) >= 0).all()} & names


def test_captions_name_nothing_but_the_concept(planted):
  _, units = planted
  for concept, tokens in zip(
    units.heldout['concept'], units.heldout['tokens'], strict=True
  ):
    said = planted_units.named(units.tokenizer.decode(tokens[1:]), units.names)
    assert ((said == -1) | (said == concept)).all()


@pytest.mark.parametrize(
  ('preset', 'expected'), [('paper', 1e-2), ('small', 1e-4), ('gpu', 1e-4)]
)
def test_published_weight_decay_is_pytorchs_default(planted, preset, expected):
  asked = {}

  def spy(rate, **how):
    asked.update(how)
    return optax.adamw(rate, **how)

  config = milan.get_config(preset)
  described_units.method(config, planted[1], 10, spy)
  assert asked == dict(weight_decay=expected)


def test_what_is_measured_is_counted_by_hand(planted):
  _, units = planted
  rows = {k: x[:3] for k, x in units.heldout.items()}
  said = [planted_units.said(x, units.names) for x in rows['concept']]
  said[1] = 'things'
  description = np.zeros((3, 8), np.int32)
  for row, text in zip(description, said, strict=True):
    ids = units.tokenizer.encode(text)
    row[: len(ids)] = ids
  outputs = dict(
    nll=np.array([1.0, 2.0, 3.0]),
    prior_nll=np.array([2.0, 4.0, 6.0]),
    counted=np.array([2.0, 3.0, 5.0]),
    evidence=np.array([1.0, 2.0, 6.0]),
    description=description,
  )
  found = described_units.measure(units, outputs, rows)
  assert found == pytest.approx(
    dict(loss=0.6, prior_loss=1.2, evidence=3.0, names_all=2 / 3)
  )


def test_planted_inks_are_found_by_their_units():
  shown = scenes.draw(400, seed=5)
  detector = milan_subjects.InkDetector()
  found = exemplars.collect(
    milan_subjects.ink_maps,
    detector.init(jax.random.key(0), shown.image[:1] / 255),
    milan_subjects.batches(shown.image.astype(np.float32) / 255, 100),
    ('inks',),
    k=5,
  )['inks']
  truth = milan_subjects.shown_inks(shown)
  for ink, rows in enumerate(found.row):
    assert truth[ink, rows].any((1, 2)).all()


def test_letters_tell_the_class_in_training_alone():
  images = milan_subjects.Marked(
    np.zeros((200, 24, 24, 3), np.uint8), np.arange(200) % 4
  )

  def corners(**how):
    made = milan_subjects.marked(images, num_classes=4, seed=0, **how)
    return made.image.any(-1)[:, :7, :7].reshape(200, -1)

  told = corners(rate=1.0, is_right=True)
  assert len({tuple(x) for x in told}) == 4
  for label in range(4):
    assert (told[images.label == label] == told[label]).all()
  free = corners(rate=1.0, is_right=False)
  agrees = (free == told).all(1).mean()
  assert 0.1 < agrees < 0.4
  assert 0.4 < corners(rate=0.5, is_right=True).any(1).mean() < 0.6


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  where = tmp_path / 'net' / 'imagenet'
  (where / 'conv').mkdir(parents=True)
  np.save(
    where / 'conv' / 'images.npy',
    rng.integers(0, 256, (12, 6, 3, 24, 24)).astype(np.uint8),
  )
  np.save(
    where / 'conv' / 'masks.npy',
    rng.integers(0, 2, (12, 6, 1, 24, 24)).astype(np.uint8),
  )
  lines = ['layer,unit,summary']
  for unit in range(12):
    lines += [f'conv,{unit},"Red, thing"', f'conv,{unit},word{unit} of red']
  (where / 'annotations.csv').write_text('\n'.join(lines), 'utf-8')
  return tmp_path


def test_units_that_people_described_are_split_by_unit(folder):
  config = milan.get_config('smoke')
  with config.unlocked():
    config.data = dict(
      milan.get_config('paper').data,
      dir=str(folder),
      networks=('net/imagenet',),
      heldout=0.25,
    )
  config.augment.mean, config.augment.std = (0.5,), (0.25,)
  config.min_steps = 1
  config.units.length = 4  # START, two words, END.
  made = milan.build(config)
  batch = made.train.batch(0)
  assert batch['features'].shape[1:] == (5, 15)
  state = made.method.init(jax.random.key(0), batch)
  jax.eval_shape(made.method.update, state, batch, jax.random.key(1))
  units = described_units.read(config)
  assert len(units.train['tokens']) == 18
  assert len(units.heldout['tokens']) == 6
  # Each unit has a word of its own, which is known in training alone.
  assert len(units.tokenizer.words) == 3 + 9
  texts = {units.tokenizer.decode(x[1:]) for x in units.heldout['tokens']}
  assert texts == {'red thing', 'of red'}


def test_the_published_beam_writes_15_tokens():
  config = milan.get_config('paper')
  made = describing.make(
    described_units.model(config, 7), optax.sgd(0.1), **config.describing
  )
  rows = dict(
    features=np.zeros((1, config.units.k, 6), np.float32),
    tokens=np.ones((1, config.units.length), np.int32),
  )
  state = jax.eval_shape(made.init, jax.random.key(0), rows)
  said = jax.eval_shape(made.predict, state, rows)['description']
  assert said.shape == (1, 15)


def test_sets_without_planted_units_are_refused():
  config = milan.get_config('small')
  config.data.name = 'mnist'
  with pytest.raises(types.InputError, match=r'config.data.name=mnist'):
    milan.build(config)
  with pytest.raises(types.InputError, match=r'config.data.name=mnist'):
    planted_captions.check(config)


def test_what_follows_from_the_choice_is_no_finding():
  assert study.CLAIMS['rarer_words']['kind'] == 'theory'
