"""Algorithms get the rows that WILDS gives them; the paper's sizes build."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import wilds_folders

from configs import wilds
from repjax import loop
from repjax import parallel
from repjax import run
from repjax import types
from repjax.benchmarks.wilds import algorithms
from repjax.benchmarks.wilds import experiment
from repjax.benchmarks.wilds import views
from repjax.layers import norms
from repjax.methods import dann
from repjax.methods import pseudo_label
from repjax.methods import supervised
from repjax.models import densenet


def config_of(algorithm, *, unlabelled=None, preset='smoke'):
  config = wilds.get_config(preset)
  config.algorithm = algorithm
  if unlabelled is not None:
    config.unlabelled = unlabelled
  return config


@pytest.fixture(scope='module')
def camelyon(tmp_path_factory):
  root = tmp_path_factory.mktemp('wilds')
  wilds_folders.camelyon17(root, images=True)
  wilds_folders.camelyon17(root, seed=1, images=True, unlabelled=True)
  return str(root)


@pytest.mark.devices(4)
@pytest.mark.parametrize(
  'algorithm', ['erm', 'dann', 'coral', 'noisy_student', 'swav']
)
def test_the_papers_run_builds_on_four_devices(
  algorithm, camelyon, monkeypatch
):
  config = config_of(algorithm, preset='paper_unlabelled')
  config.data.dir = camelyon
  # DenseNet-121 once, and shallow ones of the same layers.
  plain, width = 7_978_856 - 1025 * 998, 1024
  if algorithm != 'erm':
    config.densenet.stage_sizes, width = (1, 1), 80
    shallow = densenet.DenseNet(num_classes=2, **config.densenet)
    plain = size_of(functools.partial(shallow.init, train=False), ROW['image'])
  taught = []

  def teach(config, data, teacher):
    taught.append(jax.eval_shape(teacher.init, jax.random.key(0), ROW))
    return {'pseudo': np.zeros(len(data.unlabelled), np.int32)}

  monkeypatch.setattr(experiment, 'taught', teach)
  made = wilds.build(config)
  batch = made.train.batch(0)
  both = algorithm not in ('erm', 'swav')
  assert batch['image'].shape == (64 if both else 32, 96, 96, 3)
  state = jax.eval_shape(made.method.init, jax.random.key(0), batch)
  kernel = jax.tree.leaves(state.params)[0]
  assert jnp.issubdtype(kernel.dtype, jnp.floating)
  sharded = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((4, len(x) // 4, *x.shape[1:]), x.dtype),
    batch,
  )
  step = parallel.train_step(made.method.update, jax.local_devices()[:4])
  after, sums = jax.eval_shape(step, state, sharded, jax.random.key(0))
  assert jax.tree.structure(after) == jax.tree.structure(state)
  known = 'agreement' if algorithm == 'swav' else 'accuracy'
  assert {'loss', known} <= set(sums)
  assert len(taught) == (algorithm == 'noisy_student')
  # Two classes, and DANN's adversary beside it.
  sizes = sum(x.size for x in jax.tree.leaves(state.params))
  adversary = (width + 1024) * 1024 + 1024 * 6 + 1024 * 2 + 2
  expected = plain + (algorithm == 'dann') * adversary
  if algorithm == 'swav':  # Projection and 20 prototypes.
    expected += width * 2048 + 3 * 2048 + 2048 * 128 + 128 + 128 * 20
  assert sizes == expected


ROW = {'image': jnp.zeros((1, 96, 96, 3)), 'mask': jnp.ones(1)}


def size_of(init, given):
  """Parameters of what is begun."""
  state = jax.eval_shape(init, jax.random.key(0), given)
  params = state['params'] if isinstance(state, dict) else state.params
  return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize('algorithm', algorithms.NEEDS)
def test_each_algorithm_gets_its_rows(algorithm, monkeypatch):
  needs = algorithms.NEEDS[algorithm]
  config = config_of(algorithm, unlabelled='test_unlabeled')
  config.augment.kind = 'stains'
  data = experiment.read(config)
  made = experiment.batches(config, data)
  batch = made.batch(0)
  if needs.unlabelled == 'not':
    assert data.grouper.fields == ('hospital',)
    assert 'labelled' not in batch
    assert (batch['label'] >= 0).all()
  elif needs.unlabelled == 'alone':
    assert (batch['label'] == -1).all()
    assert len(batch['label']) == 64
  else:
    assert data.grouper.fields == ('from_source_domain',)
    has = batch['labelled'] > 0
    assert (has.sum(), (~has).sum()) == (64, 64)
    assert (batch['label'][~has] == -1).all()
    assert (batch['group'] == has).all()
    # Half of each quarter of the rows: of what a device gets.
    assert (has.reshape(4, 32).sum(1) == 16).all()
  groups = np.unique(batch['group'][batch['label'] >= 0])
  if needs.loader == 'groups' and needs.unlabelled == 'not':
    assert len(groups) == 2  # groups_per_batch.
  assert ('strong' in batch) == (algorithm in ('fixmatch', 'swav'))
  if 'strong' in batch:
    assert (batch['strong'] != batch['image']).any()


def test_domains_without_training_rows_weigh_nothing():
  config = config_of('group_dro')
  config.group_dro.step_size = 0.0
  rows = experiment.read(config).group_counts
  assert (rows > 0).tolist() == [True, False, False, True, True]
  made = wilds.build(config)
  batch = made.train.batch(0)
  state = loop.init(made.method, batch, 0)
  weights = state.model_state['groups']['weights']
  np.testing.assert_allclose(weights, [1 / 3, 0, 0, 1 / 3, 1 / 3], rtol=1e-6)
  logits = made.method.predict(state, batch)['logits']
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
  each = [nll[batch['group'] == x].mean() for x in (0, 3, 4)]
  _, sums = jax.jit(made.method.update)(state, batch, jax.random.key(0))
  total, number = sums['objective']
  np.testing.assert_allclose(total / number, np.mean(each), rtol=1e-5)


@pytest.mark.parametrize(
  ('unlabelled', 'number'),
  [('', 3), ('test_unlabeled', 2), ('train_unlabeled', 1)],
)
def test_an_adversary_tells_the_domains_of_training_apart(unlabelled, number):
  config = config_of('dann', unlabelled=unlabelled)
  data = experiment.read(config)
  seen = data.train.source(data.grouper).column('group')
  if unlabelled:
    other = data.unlabelled.source(data.grouper).column('group')
    seen = np.concatenate([seen, other])
  assert len(set(seen)) == number
  np.testing.assert_array_equal(
    data.group_counts, np.bincount(seen, minlength=data.grouper.num_groups)
  )
  made = wilds.build(config)
  batch = made.train.batch(0)
  state = jax.eval_shape(made.method.init, jax.random.key(0), batch)
  assert state.params['adversary']['head']['bias'].shape == (number,)
  jax.eval_shape(made.method.update, state, batch, jax.random.key(0))


def test_every_algorithm_has_a_step():
  model = wilds.mlp.Mlp(2, (4,))
  config = wilds.get_config('smoke')
  for name in set(algorithms.NEEDS) - {'masked_lm'}:
    made = algorithms.make(
      name, model, config, optax.sgd, group_counts=(2, 2), steps=10
    )
    batch = {
      'image': jnp.ones((4, 2, 2, 3)),
      'strong': jnp.zeros((4, 2, 2, 3)),
      'label': jnp.array([0, 1, -1, -1]),
      'labelled': jnp.array([1.0, 1, 0, 0]),
      'group': jnp.array([1, 1, 0, 0]),
      'pseudo': jnp.array([0, 0, 1, 0]),
      'mask': jnp.ones(4),
    }
    state = jax.eval_shape(made.init, jax.random.key(0), batch)
    jax.eval_shape(made.update, state, batch, jax.random.key(0))
  with pytest.raises(types.InputError, match='algorithm must be one of'):
    algorithms.make(
      'moco', model, config, optax.sgd, group_counts=(2, 2), steps=10
    )
  with pytest.raises(types.InputError, match='learns from text: take'):
    wilds.build(config_of('masked_lm', unlabelled='test_unlabeled'))


def test_the_rate_of_those_that_teach_themselves_falls():
  rate = algorithms.falling(0.1, 50)
  assert rate(0) == pytest.approx(0.1)
  assert rate(50) == pytest.approx(0.1 * 11**-0.75)


def test_a_student_learns_what_the_teacher_says(tmp_path):
  config = config_of('erm')
  config.min_steps = 12
  teacher = wilds.build(config)
  run.fit(teacher, config, str(tmp_path))
  student = config_of('noisy_student', unlabelled='test_unlabeled')
  student.teacher = str(tmp_path)
  batch = wilds.build(student).train.batch(0)
  without = batch['labelled'] == 0
  # What the same training, made again, predicts of these rows by hand.
  state = loop.fit(teacher.method, teacher.train.iterate, steps=12, seed=0)
  params = jax.device_get(state.params)
  data = experiment.read(student)
  rows = data.unlabelled.source().read(batch['index'][without])
  x = data.views.evaluate.apply(rows, None)['image'].reshape(without.sum(), -1)
  for name in ('hidden_0', 'hidden_1'):
    x = np.maximum(x @ params[name]['kernel'] + params[name]['bias'], 0)
  logits = x @ params['head']['kernel'] + params['head']['bias']
  np.testing.assert_array_equal(batch['pseudo'][without], logits.argmax(-1))
  assert len(set(batch['pseudo'][without])) == 2
  student.mlp.features = (16,)
  with pytest.raises(types.InputError, match=r'config\.teacher='):
    wilds.build(student)


@pytest.mark.parametrize('size', [8, 32])
def test_passes_are_those_of_the_rows_that_are_learned_from(size):
  config = config_of('swav', unlabelled='test_unlabeled')
  config.update(dict(epochs=3.0, min_steps=0, unlabelled_batch_size=size))
  data = experiment.read(config)
  assert data.steps == round(3 * len(data.unlabelled) / size)


def test_a_teacher_that_keeps_an_average_has_its_own_statistics(monkeypatch):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, image, *, train, mask=None):
      x = norms.BatchNorm(name='norm')(
        image.reshape((len(image), -1)), train=train, mask=mask
      )
      return nn.Dense(2, name='head')(x)

  config = config_of('noisy_student', unlabelled='test_unlabeled')
  config.teacher = 'run'
  data = experiment.read(config)
  rows = data.unlabelled.source().columns()
  batch = data.views.evaluate.apply(rows, None)
  batch['mask'] = np.ones(len(batch['image']))
  plain, averaged = (
    supervised.make(Net(), optax.sgd(0.1), ema_decay=x) for x in (0.0, 0.9)
  )
  state = plain.init(jax.random.key(0), batch)
  pixels = batch['image'].reshape((len(batch['image']), -1))
  of_rows = {'mean': pixels.mean(0), 'var': pixels.var(0) + 0.1}
  variables = {'params': state.params, 'batch_stats': {'norm': of_rows}}
  monkeypatch.setattr(experiment.start, 'from_run', lambda *_, **__: variables)
  found = [
    experiment.taught(config, data, x)['pseudo'] for x in (plain, averaged)
  ]
  np.testing.assert_array_equal(*found)
  assert 0 < found[0].mean() < 1


def test_views_differ_as_their_kind_says():
  data = experiment.read(config_of('erm'))
  source = data.train.source()
  base = dict(wilds.get_config('smoke').augment)
  draws = np.random.default_rng(0)
  columns = source.read(np.arange(16))
  for kind in ('none', 'stains', 'randaugment'):
    made = views.make(source, **{**base, 'kind': kind, 'cutout': 2})
    plain = made.evaluate.apply(columns, None)['image']
    weak = made.weak.apply(columns, draws.random((16, made.weak.num_draws)))
    np.testing.assert_array_equal(weak['image'], plain)
    strong = made.strong.apply(
      columns, draws.random((16, made.strong.num_draws))
    )
    assert (strong['image'] != plain).any() == (kind != 'none')
  pair = made.pair(first='weak')
  both = pair.apply(columns, draws.random((16, pair.num_draws)))
  np.testing.assert_array_equal(both['image'], plain)
  assert (both['strong'] != plain).any()
  many = views.copies(source, made.strong, 3, seed=0)
  assert len(many['image']) == 3 * len(source)
  np.testing.assert_array_equal(
    many['label'], np.tile(source.columns()['label'], 3)
  )
  thirds = many['image'].reshape(3, len(source), *plain.shape[1:])
  assert (thirds[0] != thirds[1]).any()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(algorithm='moco'), 'algorithm must be one of'),
    (dict(algorithm='afn'), '--config.unlabelled=test_unlabeled'),
    (dict(algorithm='dann', unlabelled='tests'), 'it has train_unlabeled'),
    (
      dict(algorithm='noisy_student', unlabelled='test_unlabeled'),
      '--config.teacher=WORKDIR',
    ),
    (dict(algorithm='coral', groups_per_batch=4), 'groups_per_batch=4, but'),
    (
      dict(
        algorithm='swav',
        unlabelled='test_unlabeled',
        pretrained='run',
        augment=dict(kind='stains'),
      ),
      'config.pretrained is what others start from',
    ),
    (
      dict(algorithm='fixmatch', unlabelled='test_unlabeled'),
      'compares views of an image',
    ),
    (dict(data=dict(group_by=('ward',))), "no metadata field 'ward'"),
    (dict(data=dict(kind='tfds')), 'data.kind must be one of'),
    (dict(data=dict(train_split='tests')), 'no split'),
    (dict(data=dict(eval_splits=('tests',))), 'no split'),
    (dict(augment=dict(kind='mixup')), 'augment.kind must be one of'),
  ],
)
def test_what_cannot_be_built_is_said(changes, message):
  config = wilds.get_config('smoke')
  config.update(changes)
  with pytest.raises(types.InputError, match=message):
    wilds.build(config)


def test_sets_without_images_or_classes_are_refused(tmp_path):
  config = config_of('erm', preset='paper')
  config.data.dir = str(tmp_path)
  wilds_folders.amazon(tmp_path)
  config.data.update(name='amazon', group_by=('user',))
  with pytest.raises(types.InputError, match='has no images'):
    wilds.build(config)
  wilds_folders.poverty(tmp_path)
  config.data.update(name='poverty')
  with pytest.raises(types.InputError, match='numbers in the place of labels'):
    wilds.build(config)
  wilds_folders.waterbirds(tmp_path)
  config.data.update(name='waterbirds', group_by=('background', 'y'))
  with pytest.raises(types.InputError, match=r'set config\.augment\.size'):
    wilds.build(config)
  config.augment.size, config.data.eval_splits = 16, ('val', 'test')
  assert wilds.build(config).train.batch(0)['image'].shape[1:] == (16, 16, 3)


def test_rates_decay_and_weights_are_those_of_the_config(monkeypatch):
  seen = {}
  for name, module in dict(dann=dann, pseudo_label=pseudo_label).items():
    monkeypatch.setattr(
      module,
      'make',
      lambda model, tx, name=name, **own: seen.update({name: (tx, own)}),
    )
  config = wilds.get_config('smoke')
  config.tx.update(
    dict(learning_rate=0.1, weight_decay=0.5, momentum=0.0, dann_divisor=10.0)
  )
  for name in ('dann', 'pseudo_label'):
    algorithms.make(
      *(name, wilds.mlp.Mlp(2, (4,)), config, optax.sgd),
      group_counts=(2, 2),
      steps=10,
    )
  tx, one = seen['dann'][0], {'kernel': jnp.ones(1)}
  params = {
    'model': {'hidden_0': one, 'head': one},
    'adversary': {'head': one},
  }
  moved, _ = tx.update(params, tx.init(params), params)
  # The rate of a gradient of 1 and half of a parameter of 1.
  steps = [
    moved['model']['hidden_0'],
    moved['model']['head'],
    moved['adversary']['head'],
  ]
  found = [float(x['kernel'][0]) for x in steps]
  np.testing.assert_allclose(found, [-0.015, -0.15, -0.15], rtol=1e-5)
  weight = seen['pseudo_label'][1]['weight']
  found = [float(weight(step)) for step in (0, 2, 4, 10)]
  np.testing.assert_allclose(found, [0, 0.5, 1, 1], atol=1e-6)


def test_training_rows_of_one_class_are_refused():
  config = config_of('erm')
  config.data.update(fraction=0.001, num_digits=0)
  with pytest.raises(types.InputError, match='have the label'):
    wilds.build(config)
