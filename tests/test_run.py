"""An experiment in a work directory, without flags and processes."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import beit
from configs import flan
from configs import sam
from launch.lib import trained
from repjax import report
from repjax import run
from repjax import types
from repjax.data.own import kept_classes


@pytest.fixture
def config():
  config = sam.get_config('smoke')
  config.run.update(log_every=5, eval_every=8, save_every=4)
  return config


def _history(workdir):
  return (workdir / 'metrics.jsonl').read_text().splitlines()


def lines(workdir):
  """Loss a logged step."""
  rows = [json.loads(x) for x in _history(workdir)]
  return {row['step']: row['loss'] for row in rows if 'loss' in row}


def test_a_stopped_run_goes_on_to_the_same_end(config, tmp_path):
  whole = run.fit(sam.build(config), config, tmp_path / 'whole')
  steps = whole['steps']
  calls = iter(range(steps))
  with pytest.raises(types.PreemptedError, match='after step 6'):
    run.fit(
      sam.build(config),
      config,
      tmp_path / 'parts',
      asked_to_stop=lambda: next(calls) == 5,
    )
  assert not (tmp_path / 'parts' / 'report.json').exists()
  parts = run.fit(sam.build(config), config, tmp_path / 'parts')
  assert parts['params_crc32'] == whole['params_crc32']
  assert parts['result'] == whole['result']
  # What was logged after the last save is made again, not doubled, and the
  # averages are over whole intervals.
  assert lines(tmp_path / 'parts') == lines(tmp_path / 'whole')
  # A finished run is read, not repeated.
  calls = iter(())  # Asking would raise StopIteration.
  again = run.fit(
    sam.build(config),
    config,
    tmp_path / 'whole',
    asked_to_stop=lambda: next(calls),
  )
  assert again['time'] == whole['time']
  for name in ('config.json', 'log.txt', 'plots/test_confusion.png'):
    assert (tmp_path / 'whole' / name).exists()


def test_another_config_is_refused_or_taken_on_request(config, tmp_path):
  first = run.fit(sam.build(config), config, tmp_path)
  config.sam.rho = 0.1
  with pytest.raises(types.InputError, match=r'sam\.rho'):
    run.fit(sam.build(config), config, tmp_path)
  config.epochs *= 2
  stop = iter([False, True])
  with pytest.raises(types.PreemptedError):
    run.fit(
      sam.build(config),
      config,
      tmp_path,
      resume_config='new',
      asked_to_stop=lambda: next(stop),
    )
  # It goes on, and so it is not done.
  assert not (tmp_path / 'report.json').exists()
  before = json.loads((tmp_path / 'report.before.json').read_text())
  assert before['steps'] == first['steps']
  second = run.fit(sam.build(config), config, tmp_path)
  assert second['steps'] == 2 * first['steps']
  assert second['config']['sam']['rho'] == 0.1


def test_nothing_is_logged_or_saved_on_the_way_where_it_says_never(
  config, tmp_path
):
  config.run.update(log_every=0, eval_every=0, save_every=0)
  made = run.fit(sam.build(config), config, tmp_path)
  assert list(lines(tmp_path)) == [made['steps']]


def test_names_of_classes_are_kept_without_a_launcher(tmp_path):
  rng = np.random.default_rng(0)
  for name in ('ant', 'bee'):
    (tmp_path / 'data' / name).mkdir(parents=True)
    for i in range(10):
      pixels = rng.integers(0, 256, (8, 8), np.uint8)
      Image.fromarray(pixels).save(tmp_path / 'data' / name / f'{i}.png')
  config = sam.get_config('smoke')
  config.data.update(name='folder', dir=str(tmp_path / 'data'), label_noise=0.0)
  config.update(batch_size=4, epochs=0.0, min_steps=1)
  run.fit(sam.build(config), config, tmp_path / 'run')
  (tmp_path / 'data' / 'ant').rename(tmp_path / 'data' / 'zebra')
  with pytest.raises(types.InputError, match=r"'ant' is now 'bee'"):
    run.fit(sam.build(config), config, tmp_path / 'run')


def test_what_is_refused_leaves_the_run_as_it_was(config, tmp_path):
  stop = iter([False] * 5 + [True])
  with pytest.raises(types.PreemptedError):
    run.fit(
      sam.build(config), config, tmp_path, asked_to_stop=lambda: next(stop)
    )
  (tmp_path / 'config.json').write_text('as it was')
  other = config.copy_and_resolve_references()
  other.sam.rho = 0.1
  with pytest.raises(types.InputError, match=r'sam\.rho'):
    run.fit(sam.build(other), other, tmp_path)

  def refuse(*args):
    raise types.InputError('never')

  guard = types.Guard(check=refuse)
  with pytest.raises(types.InputError, match='never'):
    run.fit(sam.build(config)._replace(guard=guard), config, tmp_path)
  assert (tmp_path / 'config.json').read_text() == 'as it was'
  run.fit(sam.build(config), config, tmp_path)
  said = json.loads((tmp_path / 'config.json').read_text())['config']
  assert said['sam']['rho'] == config.sam.rho


def test_a_run_is_not_taken_back(config, tmp_path):
  with pytest.raises(types.PreemptedError):
    run.fit(sam.build(config), config, tmp_path, asked_to_stop=lambda: True)
  config.epochs, config.min_steps = 0.0, 1
  whole = run.fit(sam.build(config), config, tmp_path, resume_config='new')
  assert whole['steps'] == 1  # As many as it has.
  (tmp_path / 'report.json').unlink()
  config.min_steps = 6
  with pytest.raises(types.PreemptedError):
    calls = iter(range(9))
    run.fit(
      sam.build(config),
      config,
      tmp_path,
      resume_config='new',
      asked_to_stop=lambda: next(calls) == 3,
    )
  config.min_steps = 2
  with pytest.raises(types.InputError, match='has trained 5 steps, more than'):
    run.fit(sam.build(config), config, tmp_path, resume_config='new')
  with pytest.raises(types.InputError, match='resume_config must be one of'):
    run.fit(sam.build(config), config, tmp_path, resume_config='nwe')


def test_a_second_run_in_the_directory_is_refused(config, tmp_path):
  made = sam.build(config)

  def ask():
    with pytest.raises(types.InputError, match=r'--workdir=.* is in use by'):
      run.fit(made, config, tmp_path)
    return True

  with pytest.raises(types.PreemptedError, match='after step 1,'):
    run.fit(made, config, tmp_path, asked_to_stop=ask)
  assert not (tmp_path / 'lock.json').exists()
  assert run.fit(made, config, tmp_path)['steps'] > 1


def test_a_metric_that_nothing_measures_is_refused_before_any_step(
  config, tmp_path
):
  made = sam.build(config)
  assert run.measures(made) == ['test/accuracy', 'test/loss', 'test/ece']
  config.run.best = 'test/acc'
  with pytest.raises(types.InputError, match='test/accuracy, test/loss'):
    run.fit(made, config, tmp_path)
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_a_validation_that_is_not_finite_ends_the_run(config, tmp_path):
  made = sam.build(config)

  def predict(state, batch):
    logits = made.method.predict(state, batch)['logits']
    return {'logits': jnp.where(batch['index'][:, None] == 7, jnp.nan, logits)}

  with pytest.raises(types.NonFiniteError, match='logits of row 7 of test'):
    run.fit(
      made._replace(method=made.method._replace(predict=predict)),
      config,
      tmp_path,
    )
  assert not (tmp_path / 'report.json').exists()


def test_a_measure_without_a_value_is_null_and_no_best(config, tmp_path):
  made = sam.build(config)
  made = made._replace(
    measure=lambda *seen: {'accuracy': np.nan, 'perplexity': np.inf}
  )
  result = run.fit(made, config, tmp_path)
  assert np.isnan(result['result']['test/accuracy'])
  for path in (tmp_path / 'report.json', *tmp_path.rglob('metrics*')):
    if path.is_file():
      for line in path.read_text().split(
        '\n' if 'jsonl' in path.name else '\0'
      ):
        if line:
          json.loads(line, parse_constant=pytest.fail)
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['result'] == {'test/accuracy': None, 'test/perplexity': None}


@pytest.mark.parametrize(
  ('damage', 'content'),
  [
    ('report.json', b'{"a'),
    ('report.json', b'[]'),
    ('metrics.jsonl', b'\xff{}\n[]\n{"loss": 1}'),
    ('config.json', b''),
    ('checkpoints/12/metrics/metrics', b'\xff'),
    ('checkpoints/15/metrics/metrics', b'[]'),
    ('checkpoints/15/meta/metadata', b'{}'),
    ('checkpoints/15/meta/metadata', b''),
  ],
)
def test_damaged_files_are_named_and_the_run_goes_on(
  config, finished, tmp_path, damage, content, caplog
):
  whole, folder = finished
  workdir = tmp_path / 'run'
  shutil.copytree(folder, workdir)
  if damage != 'report.json':
    (workdir / 'report.json').unlink()
  assert (workdir / damage).exists()
  (workdir / damage).write_bytes(content)
  found = run.fit(sam.build(config), config, workdir)
  assert found['params_crc32'] == whole['params_crc32']
  assert found['result'] == whole['result']
  named = damage.removesuffix('/meta/metadata')
  # What is only written is not missed.
  assert (named in caplog.text) == (damage != 'config.json')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  config = sam.get_config('smoke')
  config.run.update(log_every=5, eval_every=4, save_every=4)
  folder = tmp_path_factory.mktemp('finished')
  return run.fit(sam.build(config), config, folder), folder


def test_where_and_how_often_is_no_part_of_what_a_run_is(config):
  identity = run.identity(config)
  config.run.log_every = 1
  config.data.dir = '/elsewhere'
  assert run.identity(config) == identity
  config.seed = 1
  assert run.identity(config) != identity
  # Work directories of old had the fields of studies among them.
  old = {**identity, 'claims': {}, 'seeds': [0], 'study': {}}
  assert run.without_studies(old) == identity


def test_a_guard_speaks_and_refuses(config, tmp_path):
  seen = []

  class Said:
    def to_dict(self):
      return {'epsilon': 3.0}

  def check(experiment, state, best):
    seen.append((experiment.steps, int(state.step), best))

  def resumed(fresh, state, same_config):
    seen.append((int(fresh.step), int(state.step), same_config))
    if state.step:
      raise types.InputError('not again')

  guard = types.Guard(
    check=check,
    resumed=resumed,
    line=lambda step: {'spent': step / 10},
    statement=lambda steps: {'privacy': Said()} if steps else {},
  )
  made = sam.build(config)._replace(guard=guard)
  stop = iter([False] * 6 + [True])
  with pytest.raises(types.PreemptedError):
    run.fit(made, config, tmp_path, asked_to_stop=lambda: next(stop))
  rows = [json.loads(x) for x in _history(tmp_path)]
  assert [x['spent'] for x in rows if 'spent' in x] == [0.5]
  with pytest.raises(types.InputError, match='not again'):
    run.fit(made, config, tmp_path)
  assert seen == [
    (made.steps, 0, 'test/accuracy'),
    (0, 0, True),  # What a warm start brings is looked at, too.
    (made.steps, 0, 'test/accuracy'),
    (0, 7, True),
  ]
  done = run.fit(
    made._replace(guard=guard._replace(resumed=types.Guard().resumed)),
    config,
    tmp_path,
  )
  assert done['privacy'] == {'epsilon': 3.0}


def test_a_warm_start_is_for_the_first_step_alone(config, tmp_path):
  made = sam.build(config)
  starts = []

  def warm_start(state):
    starts.append(int(state.step))
    return state.replace(params=jax.tree.map(lambda x: 0 * x, state.params))

  made = made._replace(warm_start=warm_start)
  stop = iter([False] * 3 + [True])
  with pytest.raises(types.PreemptedError):
    run.fit(made, config, tmp_path, asked_to_stop=lambda: next(stop))
  result = run.fit(made, config, tmp_path)
  assert starts == [0]
  assert np.isfinite(result['result']['test/loss'])


def test_a_config_may_hold_what_json_does_not(config):
  config.tx.learning_rate = float('inf')
  identity = run.identity(config)
  assert json.loads(json.dumps(identity, allow_nan=False)) == identity


def test_a_run_without_an_origin_says_what_it_lacks(config, tmp_path):
  run.fit(sam.build(config), config, tmp_path)
  with pytest.raises(types.InputError, match=r'run.fit without origin'):
    trained.load(tmp_path)


def test_other_rows_of_the_same_classes_are_refused(tmp_path):
  rng = np.random.default_rng(0)
  for folder in ('first', 'other'):
    for name in ('ant', 'bee'):
      (tmp_path / folder / name).mkdir(parents=True)
      for i in range(10):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / name / f'{i}.png')
  config = sam.get_config('smoke')
  config.data.update(
    name='folder', dir=str(tmp_path / 'first'), label_noise=0.0
  )
  config.update(batch_size=4, epochs=0.0, min_steps=1)
  made = run.fit(sam.build(config), config, tmp_path / 'run')
  (tmp_path / 'first').rename(tmp_path / 'moved')
  config.data.dir = str(tmp_path / 'moved')
  again = run.fit(sam.build(config), config, tmp_path / 'run')
  assert again['time'] == made['time']
  config.data.dir = str(tmp_path / 'other')
  with pytest.raises(types.InputError, match='trained on other rows'):
    run.fit(sam.build(config), config, tmp_path / 'run')
  # Who asks for it goes on with them, and they are the run's then.
  judged = run.fit(
    sam.build(config), config, tmp_path / 'run', resume_config='new'
  )
  assert judged['result']['test/loss'] != made['result']['test/loss']
  assert (tmp_path / 'run' / 'report.before.json').exists()
  again = run.fit(sam.build(config), config, tmp_path / 'run')
  assert again['result'] == judged['result']
  config.min_steps = 2
  run.fit(sam.build(config), config, tmp_path / 'run', resume_config='new')
  run.fit(sam.build(config), config, tmp_path / 'run')
  config.data.dir = str(tmp_path / 'moved')
  with pytest.raises(types.InputError, match='trained on other rows'):
    run.fit(sam.build(config), config, tmp_path / 'run')


def test_a_process_with_padding_alone_knows_the_measures(config):
  whole = sam.build(config)

  def evals(split):  # As the second of two processes has them.
    rows = whole.evals(split)
    size = 2 * len(rows.source)
    return dataclasses.replace(
      rows, batch_size=size, process_index=1, process_count=2
    )

  def measure(outputs, columns):
    return {'lowest': float(outputs['logits'].min())}

  made = whole._replace(evals=evals, measure=measure)
  assert run.measures(made) == ['test/lowest']


def test_a_guarded_run_keeps_no_digest_of_its_rows(tmp_path):
  np.savez(tmp_path / 'a.npz', image=np.zeros((40, 8, 8, 1), np.uint8))
  config = sam.get_config('smoke')
  made = sam.build(config)
  guard = types.Guard(line=lambda step: {'epsilon': 1.0})
  config.data.update(name='npz', dir=str(tmp_path / 'a.npz'))
  for experiment, is_kept in (
    (made._replace(guard=guard), False),
    (made, True),
  ):
    kept, _ = kept_classes.keep(tmp_path, experiment, config)
    kept.companion.begin(tmp_path, 0)
    said = json.loads((tmp_path / 'classes.json').read_text())
    assert (said['rows'] is not None) == is_kept


def test_labels_that_came_later_are_no_other_classes(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
  file, workdir = tmp_path / 'a.npz', tmp_path / 'run'
  workdir.mkdir()
  config = beit.get_config('smoke')
  config.stage = 'tokenizer'
  config.data.update(name='npz', dir=str(file))
  np.savez(file, image=images)
  made, _ = kept_classes.keep(workdir, beit.build(config), config)
  made.companion.begin(workdir, 0)
  np.savez(file, image=images, label=np.arange(40) % 2)
  kept_classes.check(workdir, beit.build(config), config)


def test_what_is_made_of_rows_is_not_compared(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
  np.savez(tmp_path / 'a.npz', image=images, label=np.arange(100) % 2)
  config = sam.get_config('smoke')
  config.data.update(name='npz', dir=str(tmp_path / 'a.npz'), label_noise=0.0)
  config.update(batch_size=16)
  made = sam.build(config)
  kept, _ = kept_classes.keep(tmp_path, made, config)
  kept.companion.begin(tmp_path, 0)
  (tmp_path / 'report.json').write_text('{}')
  # As a teacher says it.
  said = np.full(len(made.train.source), 0.1, np.float32)
  train = dataclasses.replace(
    made.train, source=made.train.source.with_columns(said=said)
  )
  kept_classes.keep(tmp_path, made._replace(train=train), config)
  np.savez(tmp_path / 'a.npz', image=images[::-1], label=np.arange(100) % 2)
  with pytest.raises(types.InputError, match='trained on other rows'):
    kept_classes.keep(tmp_path, sam.build(config), config)


def test_lines_of_json_that_have_changed_are_other_rows(tmp_path):
  file, workdir = tmp_path / 'tasks.jsonl', tmp_path / 'run'
  workdir.mkdir()
  file.write_text('{"inputs": "a", "targets": "b", "task": "one"}\n')
  config = flan.get_config('smoke')
  config.data.update(kind='jsonl', file=str(file), held_out='two')
  made = sam.build(sam.get_config('smoke'))
  kept, _ = kept_classes.keep(workdir, made, config)
  kept.companion.begin(workdir, 0)
  (workdir / 'report.json').write_text('{}')
  kept_classes.keep(workdir, made, config)
  file.write_text('{"inputs": "a", "targets": "c", "task": "one"}\n')
  with pytest.raises(types.InputError, match='trained on other rows'):
    kept_classes.keep(workdir, made, config)
  _, anew = kept_classes.keep(workdir, made, config, 'new')
  assert anew


def test_what_is_judged_anew_is_told_as_of_the_last_step(config, tmp_path):
  config.run.best = ''
  steps = run.fit(sam.build(config), config, tmp_path)['steps']
  config.data.eval_splits, seen = ('train',), set()

  class Seen(report.Events):
    def image(self, step, name, path):
      seen.add(step)

  again = run.fit(
    sam.build(config), config, tmp_path, resume_config='new', track=Seen
  )
  assert seen == {steps}
  rows = map(json.loads, _history(tmp_path))
  (row,) = [x for x in rows if 'train/accuracy' in x]
  assert row['step'] == steps
  assert row['train/accuracy'] == again['result']['train/accuracy']
