"""The recipe of slices trains CLIP and tells where it fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import domino as recipe
from configs.parts import slice_pages
from configs.parts import slice_study
from configs.parts import worded_pairs
from configs.studies import domino as study
from launch.lib import results
from repjax import types
from repjax.data.reading import source as sources


def test_captions_say_what_the_images_are():
  pairs = worded_pairs.read(recipe.get_config('smoke'), 0)
  label, ids = (pairs.train.column(x) for x in ('label', 'tokens'))
  texts = [pairs.tokenizer.decode(row) for row in ids[:50]]
  named = [
    pairs.names[x] in text for x, text in zip(label, texts, strict=False)
  ]
  assert 35 <= sum(named) < 50
  assert pairs.names[3] == 'three'
  assert pairs.phrases[:2] == ('zero', 'one')
  assert pairs.phrases[-1] == 'right'
  other = worded_pairs.read(recipe.get_config('smoke'), 1)
  assert (other.train.column('ink') != pairs.train.column('ink')).any()
  assert other.tokenizer.encode('seven').tolist() == (
    pairs.tokenizer.encode('seven').tolist()
  )


def test_logits_are_those_of_class_names():
  config = recipe.get_config('smoke')
  made = recipe.build(config)
  batch = {k: jnp.asarray(x) for k, x in made.train.batch(0).items()}
  state = jax.jit(made.method.init)(jax.random.key(0), batch)
  predict = jax.jit(made.method.predict)
  outputs = jax.device_get(predict(state, batch))
  phrases = 10 + 6 + 4
  assert outputs['phrase_logits'].shape == (32, phrases)
  np.testing.assert_array_equal(
    outputs['logits'], outputs['phrase_logits'][:, :10]
  )
  # Of each phrase by itself: cosines, times the scale.
  pairs = worded_pairs.read(config, config.seed)
  tokens, mask = (x[:, 0] for x in pairs.prompts(config.data.length))
  texts = predict(
    state, {'tokens': tokens, 'token_mask': mask, 'mask': np.ones(phrases)}
  )['text_embedding']
  cosines = outputs['image_embedding'] @ texts.T
  scale = np.exp(state.params['logit_scale'])
  np.testing.assert_allclose(
    outputs['phrase_logits'], scale * cosines, rtol=1e-4, atol=1e-5
  )


def test_figures_tell_of_rows_that_slices_were_not_found_on():
  config = recipe.get_config('smoke')
  pairs = worded_pairs.read(config, 0)
  rng = np.random.default_rng(0)
  label = rng.integers(0, 10, 300)
  centres = 3.0 * rng.normal(size=(10, 8))
  logits = rng.normal(size=(300, 20)).astype(np.float32)
  outputs = dict(
    image_embedding=(centres[label] + rng.normal(size=(300, 8))).astype(
      np.float32
    ),
    phrase_logits=logits,
    logits=logits[:, :10] + 6 * np.eye(10)[np.where(label == 3, 8, label)],
  )
  columns = dict(label=label, index=np.arange(300))
  page = slice_pages.report(config, pairs, outputs, columns)
  assert len(page.slices) == 5
  assert all((x.rows % 2 == 1).all() for x in page.slices)
  first = page.slices[0]
  assert first.title.startswith('slice 1: ')
  assert all(note == 'three > eight' for note in first.notes)
  figures = recipe.build(config).figures('test', outputs, columns)
  assert 'slices' in figures


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('num_components', 1500, 'half of the 2000 rows of test: 1000 rows are'),
    ('start', 'foo', 'start must be one of'),
    # Ten classes are a hundred cells, more than 25 components.
    ('start', 'confusion', r'num_components must be in \[100'),
    ('num_slices', 30, 'num_components must be in .30'),
    ('pca_dim', 500, r'pca_dim must be in \[1, 8\]'),
    ('label_weight', -1.0, 'label_weight must be in'),
  ],
)
def test_slices_that_cannot_be_are_refused_before_training(
  field, value, message
):
  config = recipe.get_config('smoke')
  config.slices[field] = value
  with pytest.raises(types.InputError, match=rf'config\.slices, .*{message}'):
    recipe.build(config)


@pytest.fixture(scope='module')
def pools():
  """Rows of a study, with embeddings that are made up."""
  config = study.get_config('smoke')
  columns, embeddings = {}, {}
  names = tuple(map(str, range(10)))
  for i, split in enumerate(slice_study.SPLITS):
    made = worded_pairs.draw(
      config, config.study.splits[split], config.study.pool, [0, i]
    )
    columns[split] = {x: made.column(x) for x in ('label', 'ink', 'place')}
    embeddings[split] = np.random.default_rng(i).normal(size=(len(made), 8))
  return config, slice_study.Pools(
    columns, {'CLIP': embeddings}, names, np.eye(10), names, 1.0
  )


def test_settings_are_of_all_kinds_and_of_one_slice_in_all_splits(pools):
  config, rows = pools
  made = slice_study.plant(config, rows, 3)
  kinds = [x.kind for x in made]
  assert {x: kinds.count(x) for x in kinds} == dict.fromkeys(
    ('rare', 'correlated', 'noisy'), config.study.settings
  )
  for planted in made:
    assert (planted.word == '') == (planted.kind == 'correlated')
    for split in slice_study.SPLITS:
      setting = planted.of[split]
      assert len(setting.rows) == config.study.rows
      assert setting.slices.any(0).all()
      if planted.word in rows.names:
        label = rows.columns[split]['label'][setting.rows]
        inside = setting.slices[:, 0]
        assert set(label[inside]) == {rows.names.index(planted.word)}


def test_sources_are_what_the_splits_name(pools):
  config, _ = pools
  assert isinstance(worded_pairs.evaluated(config, 'test'), sources.Source)
  assert len(worded_pairs.evaluated(config, 'test[:40]')) == 2000
  splits = set(config.study.splits.values())
  assert len(splits) == len(slice_study.SPLITS)


def test_no_image_is_found_on_and_told_of():
  config = recipe.get_config('smoke')
  pairs = worded_pairs.read(config, 0)
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(300, 20)).astype(np.float32)
  outputs = dict(
    image_embedding=rng.normal(size=(300, 8)).astype(np.float32),
    phrase_logits=logits,
    logits=logits[:, :10],
  )
  # 25 images, each twelve times.
  columns = dict(
    label=rng.integers(0, 10, 300),
    index=np.arange(300),
    row=np.arange(300) % 25,
  )
  page = slice_pages.report(config, pairs, outputs, columns)
  shown = np.concatenate([x.rows for x in page.slices])
  assert (columns['row'][shown] % 2 == 1).all()


def test_models_that_fail_elsewhere_say_nothing_of_hard_slices(
  pools, monkeypatch
):
  config, rows = pools
  names = (*study._SYNTHETIC, 'Domino, untrained', 'Domino, pixels', 'named')
  replaced = dict(
    pools=lambda config, seeds: [rows] * len(seeds),
    trained=lambda config, runs: [None] * len(runs),
    measure=lambda *args, **settings: dict.fromkeys(names, 0.5),
    fails=lambda planted, probs: planted.kind == 'correlated',
  )
  for name, value in replaced.items():
    monkeypatch.setattr(slice_study, name, value)
  found = study.run(config, (0, 1, 2)).scalars
  assert found['models_fail'] == [0, 0, 0]
  judged = {x['name']: x for x in results.judge(study.CLAIMS, found)}
  assert judged['trained_over_plain']['verdict'] == results.NOT_TESTABLE
