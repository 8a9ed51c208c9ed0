"""Private searches: what is drawn, sealed, refused and published."""

import functools
import json
import pathlib
import shutil
import threading

from absl import flags
from absl.testing import flagsaver
import launching
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors import numpy as safetensors

from launch.lib import private_search
from launch.lib import released
from launch.lib import space as spaces
from launch.lib import trials as all_trials
from repjax import types
from repjax.data.batches import users
from repjax.privacy import accounting
from repjax.privacy import tuning
from repjax.privacy.search import costs
from repjax.privacy.search import laws

# Not parsed: launchers that other tests import have flags that are required.
flags.FLAGS.mark_as_parsed()

# A config whose runs are as private as its noise says.
_CONFIG = """
import types
import ml_collections
import numpy as np
from repjax import types as contracts
from repjax.data.reading import source
from repjax.privacy import accounting
from repjax.privacy import statements

def get_config(preset='small'):
  return ml_collections.ConfigDict(dict(
    seed=0, noise=2.0, steps=30, secret=True, rate=0.1, dp=dict(key_file=''),
    unit='one row of the training set', scored=200, classes=2,
    run=dict(best='', best_mode='max'), data=dict(dir='')))

def build(config):
  def privacy(steps):
    return statements.statement(
      noise_multiplier=config.noise, sampling_rate=0.1, steps=steps,
      delta=1e-5, accountant='rdp', unit=config.unit)
  return types.SimpleNamespace(
    steps=config.steps,
    guard=contracts.Guard(statement=lambda steps: (
      {'privacy': privacy(steps)} if config.secret else {})),
    evals=lambda split: types.SimpleNamespace(source=source.from_arrays(
      'rows', {'label': np.zeros(config.scored, int)},
      num_classes=config.classes or None)))
"""


# The same few mechanisms all over: each is accounted for once.
_worst = functools.lru_cache(costs.worst)


_save_params = released.save_params


@pytest.fixture(autouse=True)
def account_once(monkeypatch):
  # One test has checkpoints to publish from.
  monkeypatch.setattr(released, 'save_params', lambda *args: None)
  monkeypatch.setattr(
    costs,
    'worst',
    lambda candidates, noise: _worst(frozenset(candidates), noise),
  )


@pytest.fixture
def sweep(tmp_path):
  (tmp_path / 'config.py').write_text(_CONFIG)
  return all_trials.Sweep(
    workdir=tmp_path / 'sweep',
    file=str(tmp_path / 'config.py'),
    preset='small',
    overrides={},
    space=spaces.parse('rate=0.1,0.2,0.3'),
    metric='test/accuracy',
    mode='max',
    train_flags=(),
  )


class Train:
  """Stands in for the trials: writes their reports and checkpoints."""

  def __init__(self, *, codes=None, privacy=None, saves=False):
    self.codes, self.privacy, self.jobs = codes or {}, privacy or {}, []
    self.saves = saves

  def __call__(self, jobs, stop, seen):
    del stop
    found = {}
    for job in jobs:
      self.jobs.append(job)
      given = dict(
        x.removeprefix('--config.').split('=', 1) for x in job.command[3:]
      )
      folder = job.log.parent
      folder.mkdir(parents=True, exist_ok=True)
      code = self.codes.get(job.name, 0)
      found[job.name] = code
      if code == 0:
        rate = float(given['rate'])
        said = dict(
          noise_multiplier=2.0,
          sampling_rate=0.1,
          steps=30,
          delta=1e-5,
          overflow=0.0,
          unit=given.get('unit', 'one row of the training set'),
          neighbours='data sets that differ by adding or removing one unit',
        )
        report = {'result': {'test/accuracy': rate}}
        if self.privacy is not None:
          report['privacy'] = {**said, **self.privacy}
        (folder / 'report.json').write_text(json.dumps(report))
        if self.saves:
          self._save(folder, rate)
      seen(job, code)
    return found

  def _save(self, folder, rate):
    with ocp.StandardCheckpointer() as writer:
      writer.save(
        folder / 'checkpoints' / '30' / 'state',
        {
          'params/head': np.full(2, rate, np.float32),
          'opt_state/0/key': np.arange(2, dtype=np.uint32),
        },
      )


def search(sweep, train, **settings):
  settings = {'eta': 1.0, 'expected_trials': 3.0, **settings}
  settings = {'private': True, 'score': 'public', **settings}
  with flagsaver.flagsaver(**settings):
    return private_search.run(sweep, train, threading.Event())


@pytest.fixture
def overflowing(sweep):
  """Candidates whose batches overflow more often than a search allows."""
  path = pathlib.Path(sweep.file)
  text = path.read_text().replace(
    "dp=dict(key_file='')", "dp=dict(key_file='', overflow=0.0)"
  )
  path.write_text(
    text.replace(
      'unit=config.unit)',
      'unit=config.unit, overflow=(\n        config.dp.overflow or 2e-11))',
    )
  )
  return sweep


def test_batches_become_large_enough_for_the_whole_search(overflowing):
  train = Train()
  report = search(overflowing, train, expected_trials=30.0)
  given = {
    x.partition('=')[2]
    for job in train.jobs
    for x in job.command
    if x.startswith('--config.dp.overflow=')
  }
  (found,) = given  # That of all trials.
  assert 0 < float(found) < 2e-11
  # What is promised covers it: asked for by hand the search is the same.
  same = overflowing._replace(
    workdir=overflowing.workdir.parent / 'same',
    overrides={'dp.overflow': float(found)},
  )
  again = search(same, Train(), expected_trials=30.0)
  assert again['privacy']['epsilon'] == report['privacy']['epsilon']


def test_a_batch_size_that_was_asked_for_stays(overflowing):
  asked = overflowing._replace(overrides={'dp.overflow': 2e-11})
  with pytest.raises(types.InputError, match=r'--config\.dp\.overflow=.*e-1'):
    search(asked, Train(), expected_trials=30.0)


def plan_of(sweep):
  return json.loads((sweep.workdir / 'sealed' / 'plan.json').read_text())


def test_only_the_best_is_published(sweep, monkeypatch):
  monkeypatch.setattr(released, 'save_params', _save_params)
  train = Train(saves=True)
  report = search(sweep, train, expected_trials=4.0)
  plan = plan_of(sweep)
  assert len(train.jobs) == len(plan['trials'])
  rates = [float(x['fields']['rate']) for x in plan['trials']]
  assert report['best'] == {
    'fields': {'rate': str(max(rates))},
    'test/accuracy': max(rates),
  }
  assert json.loads((sweep.workdir / 'report.json').read_text()) == report
  params = safetensors.load_file(
    sweep.workdir / 'release' / 'params.safetensors'
  )
  assert list(params) == ['params/head']  # Not the key of the noise.
  np.testing.assert_allclose(params['params/head'], max(rates))
  # Nothing published tells a seed, or how many trials there were.
  assert 'seed' not in json.dumps(report['best'])
  assert {x.name for x in sweep.workdir.iterdir()} == {
    'sealed',
    'release',
    'report.json',
  }
  assert (sweep.workdir / 'sealed').stat().st_mode & 0o077 == 0
  # Trials have seeds of their own, equal candidates too, and folders in which
  # they draw the keys of their noise.
  commands = [' '.join(x.command) for x in train.jobs]
  seeds = [x.split('--config.seed=')[1].split()[0] for x in commands]
  folders = [x.split('--workdir=')[1].split()[0] for x in commands]
  assert len(set(seeds)) == len(set(folders)) == len(seeds)
  # What it costs, computed anew.
  run = accounting.rdp_curve(noise_multiplier=2.0, sampling_rate=0.1, steps=30)
  law = laws.with_mean(1.0, 4.0)
  limit = laws.most(law)
  said = report['privacy']
  assert said['max_trials'] == limit
  closed = tuning.epsilon(tuning.rdp_by_theorem(run, law), 1e-5)
  found = tuning.epsilon_of_best(run, law, 1e-5, limit=limit)
  # The privacy loss distribution tells more than the moments.
  assert said['epsilon_of_one_run'] < said['epsilon'] <= found < closed
  assert said['delta'] == 1e-5


def test_a_resumed_search_is_the_same_search(sweep):
  everything = {f'{i:03}': 75 for i in range(1000)}
  with pytest.raises(types.PreemptedError):
    for _ in range(30):  # A search may have a single trial; none is rare.
      search(sweep, Train(codes=everything), law='poisson')
      shutil.rmtree(sweep.workdir)  # Its report, too.
  plan = plan_of(sweep)
  train = Train()
  report = search(sweep, train, law='poisson')
  assert plan_of(sweep) == plan
  assert len(train.jobs) == len(plan['trials'])
  again = Train()
  assert search(sweep, again, law='poisson') == report
  assert not again.jobs
  with pytest.raises(types.InputError, match='expected_trials: 3'):
    search(sweep, again, law='poisson', expected_trials=5.0)
  # One search pays for one result.
  with pytest.raises(types.InputError, match='mode: max'):
    search(sweep._replace(mode='min'), again, law='poisson')
  elsewhere = sweep._replace(train_flags=('--data_dir=/other',))
  with pytest.raises(types.InputError, match='data: '):
    search(elsewhere, again, law='poisson')
  with pytest.raises(types.InputError, match='another search'):
    search(sweep._replace(space=spaces.parse('rate=0.1')), again, law='poisson')


def test_the_noise_of_a_score_is_drawn_for_one_number(sweep):
  noisy = dict(score='noisy', expected_trials=4.0)
  report = search(sweep, Train(), score_noise=10.0, **noisy)
  for trial in (sweep.workdir / 'sealed' / 'trials').iterdir():
    shutil.rmtree(trial)
  # What was published stays, whatever trials would say now.
  assert search(sweep, Train(), score_noise=10.0, **noisy) == report
  with pytest.raises(types.InputError, match='score_noise: 10'):
    search(sweep, Train(), score_noise=10.00001, **noisy)


@pytest.mark.parametrize(
  'said',
  [
    dict(unit='one user'),
    dict(neighbours='replacing one'),
    dict(delta=1e-3),
    dict(overflow=1e-6),
  ],
)
def test_trials_that_protect_something_else_publish_nothing(sweep, said):
  with pytest.raises(types.InputError, match='nothing to publish'):
    for _ in range(30):  # A search may have no trial.
      search(sweep, Train(privacy=said))
      shutil.rmtree(sweep.workdir)


def test_what_was_scored_is_released(tmp_path):
  with ocp.StandardCheckpointer() as writer:
    writer.save(
      tmp_path / 'checkpoints' / '30' / 'state',
      {
        'params/head': np.zeros(2),
        'model_state/batch_stats/mean': np.zeros(2),
        'model_state/other': np.full(2, 3.0),
        'extra/params/head': np.ones(2),
        'extra/statistics/batch_stats/mean': np.ones(2),
        'opt_state/0/key': np.arange(2, dtype=np.uint32),
      },
    )
  _save_params(tmp_path, tmp_path / 'params.safetensors')
  found = safetensors.load_file(tmp_path / 'params.safetensors')
  assert {k: x[0] for k, x in found.items()} == {
    'params/head': 1.0,
    'model_state/batch_stats/mean': 1.0,
    'model_state/other': 3.0,
  }


def test_a_search_without_its_plan_is_not_drawn_again(sweep):
  search(sweep, Train(), law='poisson')
  (sweep.workdir / 'sealed' / 'plan.json').unlink()
  train = Train()
  with pytest.raises(types.InputError, match='without its plan'):
    search(sweep, train, law='poisson')
  assert not train.jobs


def test_the_number_of_trials_follows_the_law(sweep):
  law = laws.with_mean(1.0, 2.0)
  settings, counts = dict.fromkeys(private_search.ASKED_FOR), []
  for i in range(200):
    one = sweep._replace(workdir=sweep.workdir / str(i))
    plan = private_search._sealed_plan(one, settings, law, 8)
    counts.append(len(plan['trials']))
  pmf = np.bincount(counts, minlength=9)[1:] / 200
  expected = law.pmf(8)
  expected[-1] = 1 - expected[:-1].sum()
  np.testing.assert_allclose(pmf, expected, atol=0.12)
  assert max(counts) <= 8


def test_a_diverged_trial_is_the_worst_and_is_not_tried_again(sweep):
  diverged = {f'{i:03}': 3 for i in range(1000)}
  report = search(sweep, Train(codes=diverged))
  assert report['best'] is None
  again = Train()
  assert search(sweep, again)['best'] is None
  assert not again.jobs


def test_a_trial_that_could_not_run_publishes_nothing(sweep):
  broken = {f'{i:03}': 1 for i in range(1000)}
  with pytest.raises(types.InputError, match=r'output\.txt'):
    search(sweep, Train(codes=broken))
  assert not (sweep.workdir / 'report.json').exists()
  search(sweep, Train())
  assert (sweep.workdir / 'report.json').exists()


def test_a_trial_that_leaves_no_report_publishes_nothing(sweep):
  def silent(jobs, stop, seen):
    del stop
    for job in jobs:
      seen(job, 0)
    return {job.name: 0 for job in jobs}

  with pytest.raises(types.InputError, match='could not run'):
    search(sweep, silent)
  assert not (sweep.workdir / 'report.json').exists()


def test_a_score_with_noise_decides_and_is_paid_for(sweep):
  quiet = search(
    sweep._replace(workdir=sweep.workdir / 'quiet'),
    Train(),
    expected_trials=6.0,
  )
  report = search(
    sweep, Train(), expected_trials=6.0, score='noisy', score_noise=100.0
  )
  plan = plan_of(sweep)
  scores = [
    float(x['fields']['rate']) + 100 * x['noise'] / 200 for x in plan['trials']
  ]
  best = plan['trials'][int(np.argmax(scores))]['fields']
  assert report['best']['fields'] == best
  np.testing.assert_allclose(report['best']['test/accuracy'], max(scores))
  loud = report['privacy']['epsilon']
  strong = search(
    sweep._replace(workdir=sweep.workdir / 'loud'),
    Train(),
    expected_trials=6.0,
    score='noisy',
    score_noise=2.0,
  )
  assert quiet['privacy']['epsilon'] < loud < strong['privacy']['epsilon']
  with pytest.raises(types.InputError, match='split>/accuracy'):
    search(sweep._replace(metric='test/loss'), Train(), score='noisy')
  # A user may have many of the rows that are counted.
  of_users = sweep._replace(overrides={'unit': users.UNIT})
  with pytest.raises(types.InputError, match='protect users'):
    search(of_users, Train(), score='noisy', score_noise=100.0)


@pytest.mark.parametrize(
  ('space', 'overrides', 'says'),
  [
    ('rate=0.1', {'classes': 0}, 'one label a row'),
    ('scored=200,300', {}, r'scored by \[200, 300\] rows'),
  ],
)
def test_noise_is_for_one_number_of_rows_with_a_label_each(
  sweep, space, overrides, says
):
  other = sweep._replace(space=spaces.parse(space), overrides=overrides)
  with pytest.raises(types.InputError, match=says):
    search(other, Train(), score='noisy', score_noise=100.0)


def test_one_search_protects_one_thing(sweep):
  space = spaces.parse(f'unit={users.UNIT},one row of the training set')
  with pytest.raises(types.InputError, match='protect different things'):
    search(sweep._replace(space=space), Train())


def test_the_worst_candidate_counts(sweep):
  alone = search(
    sweep._replace(
      workdir=sweep.workdir / 'alone', space=spaces.parse('noise=1.5')
    )._replace(overrides={'rate': 0.1}),
    _With(noise=1.5),
  )
  mixed = search(
    sweep._replace(
      workdir=sweep.workdir / 'mixed', space=spaces.parse('noise=1.5,4.0')
    )._replace(overrides={'rate': 0.1}),
    _With(noise=4.0),
  )
  np.testing.assert_allclose(
    mixed['privacy']['epsilon'], alone['privacy']['epsilon'], rtol=1e-6
  )


class _With(Train):
  """Trials that report a noise."""

  def __init__(self, noise):
    super().__init__(privacy={'noise_multiplier': noise})


@pytest.mark.parametrize(
  ('changes', 'settings', 'train', 'says'),
  [
    ({'overrides': {'secret': False}}, {}, Train(), 'claims no privacy'),
    ({}, {'score': None}, Train(), '--score'),
    ({}, {'max_trials': 5}, Train(), 'trials at most'),
    ({}, {'eta': -1.5}, Train(), '--eta=-1.5'),
    ({}, {'eta': -0.99}, Train(), 'larger eta'),
    ({'space': 'noise=log(1,2)'}, {}, Train(), 'ends of a range'),
    ({'space': 'rate=0.1;seed=0,1'}, {}, Train(), r'config\.seed does not'),
    ({'overrides': {'seed': 5}}, {}, Train(), r'config\.seed does not'),
    ({}, {}, _With(noise=1.0), 'less private'),
  ],
)
def test_what_would_void_the_claim_is_refused(
  sweep, changes, settings, train, says
):
  if 'space' in changes:
    changes = {'space': spaces.parse(changes['space'])}
  with pytest.raises(types.InputError, match=says):
    search(sweep._replace(**changes), train, **settings)
  assert not (sweep.workdir / 'report.json').exists()


def test_a_report_without_a_statement_is_refused(sweep):
  train = Train()
  train.privacy = None
  with pytest.raises(types.InputError, match='no privacy statement'):
    search(sweep, train)


@pytest.mark.parametrize('name', ['trials', 'seed', 'until'])
def test_flags_of_the_plain_sweep_are_refused(name):
  private_search.refuse((), trials=None, seed=None, until=None)
  with pytest.raises(types.InputError, match=f'--{name}'):
    private_search.refuse((), **{name: 1})


@pytest.mark.parametrize(
  'given', [('--track=wandb',), ('-track', 'mlflow'), ('--track=mlflow,wandb',)]
)
def test_trials_tell_no_server_of_themselves(given):
  private_search.refuse(('--platform=cpu', '--track=tensorboard'))
  with pytest.raises(types.InputError, match='tells a server how many'):
    private_search.refuse(('--platform=cpu', *given))


@pytest.mark.slow
def test_a_real_search(tmp_path):
  command = (
    'sweep',
    '--config=configs/dp_tuning.py:smoke',
    f'--workdir={tmp_path}',
    '--space=tx.learning_rate=0.1,1',
    '--metric=train[80%:]/accuracy',
    '--private',
    '--score=noisy',
    '--expected_trials=1.2',
  )
  code, output = launching.run(*command)
  assert code == 0, output
  report = launching.report(tmp_path)
  assert report['best']['fields']['tx.learning_rate'] in ('0.1', '1')
  said = f'({report["privacy"]["epsilon"]:.4g}, '
  # Before the first trial, and at the end.
  assert output.index(said) < output.index('the search is running')
  assert 'for the whole search' in output
  params = safetensors.load_file(tmp_path / 'release' / 'params.safetensors')
  assert {'params/head/kernel', 'params/head/bias'} == set(params)
  (first, *_) = sorted((tmp_path / 'sealed' / 'trials').iterdir())
  assert launching.report(first)['privacy']['unit'] == report['privacy']['unit']
  assert len((first / 'noise_key').read_bytes()) == 32


@pytest.mark.parametrize('said', [dict(steps=31), dict(sampling_rate=0.2)])
def test_trials_of_more_or_likelier_steps_publish_nothing(sweep, said):
  with pytest.raises(types.InputError, match='less private'):
    search(sweep, Train(privacy=said))
