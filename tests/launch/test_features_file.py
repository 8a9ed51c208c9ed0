"""Episodes on features from elsewhere are those of the library's own calls."""

import json
import re

import launching
import numpy as np
import pytest

from launch.lib import features_file
from repjax.data.batches import episodes
from repjax.methods import distribution_calibration
from repjax.methods import few_shot
from repjax.metrics import averages
from repjax.protocols import on_episodes

RNG = np.random.default_rng(0)
LABELS = np.repeat([3, 4, 8, 9], 9)
FEATURES = RNG.gamma(2, size=(10, 6))[LABELS] + RNG.random((36, 6))
BASE_LABELS = np.repeat([0, 1, 2], 7)
BASE_FEATURES = RNG.gamma(2, size=(3, 6))[BASE_LABELS] + RNG.random((21, 6))
ARRAYS = dict(
  features=FEATURES,
  labels=LABELS,
  base_features=BASE_FEATURES,
  base_labels=BASE_LABELS,
)
EPISODES = ('--episodes=3x2', '--queries=4', '--num_episodes=8')
SETTINGS = dict(power=0.4, neighbours=3, alpha=0.1, num_drawn=20)


def judged(tmp_path, *more, arrays=None, **changes):
  """(exit code, output) of the launcher, on arrays with changes."""
  stored = {**(ARRAYS if arrays is None else arrays), **changes}
  path = tmp_path / 'my.npz'
  np.savez(path, **stored)
  return launching.call('evaluate', f'--features={path}', *EPISODES, *more)


def wanted(classifier, features=FEATURES, **changes):
  """Mean and half of the interval, by the library."""
  sampler = episodes.sampler(
    LABELS, **{**dict(ways=3, shots=2, queries=4, seed=5), **changes}
  )
  found = on_episodes.accuracy(features, sampler, {'it': classifier}, count=8)
  return list(averages.interval(found['it'].tolist()))


def test_all_classifiers_are_those_of_the_library(tmp_path):
  flags = [f'--{name}={x}' for name, x in SETTINGS.items()]
  code, output = judged(
    tmp_path,
    *('--episode_seed=5', '--shrinkage=.2'),
    *flags,
    base_labels=BASE_LABELS + 1,
  )
  assert code == 0, output
  found = json.loads(output.splitlines()[-1])
  assert found['classes'] == 4 and found['base classes'] == 3
  classifiers = {
    'nearest centroid': few_shot.nearest_centroid(),
    'power and l2': few_shot.regressions(power=0.4)['power and l2'],
    **{
      name: distribution_calibration.classifier(
        distribution_calibration.statistics(
          BASE_FEATURES.astype(np.float32),
          BASE_LABELS,
          of=of,
          power=0.4,
          shrinkage=0.2,
        ),
        **SETTINGS,
      )
      for name, of in (
        ('calibrated, published', 'raw'),
        ('calibrated, consistent', 'transformed'),
      )
    },
  }
  for name, classifier in classifiers.items():
    assert found['accuracy'][name] == pytest.approx(wanted(classifier)), name
  assert len(found['accuracy']) == len(found['over']) == 9
  # A class 3 is of both kinds.
  assert 'labels and base_labels share 1 numbers, such as 3' in output
  # The table that a reader sees has all of them, and fits a screen.
  lines = output.splitlines()[:-1]
  (first,) = (i for i, x in enumerate(lines) if '1 nearest centroid' in x)
  assert '9 calibrated, consistent' in '\n'.join(lines[first:])
  assert max(map(len, lines[first:])) <= 100


def test_negative_features_are_judged_as_they_are(tmp_path):
  code, output = judged(
    tmp_path,
    *('--episode_seed=5', '--num_drawn=20'),
    features=FEATURES - 3,
    base_features=BASE_FEATURES - 3,
  )
  assert code == 0, output
  found = json.loads(output.splitlines()[-1])
  assert found['power'] == 1
  assert set(found['accuracy']) == {
    *('nearest centroid', 'cosine', 'nearest neighbour'),
    *('logistic regression', 'l2', 'calibrated, published'),
  }
  base = distribution_calibration.statistics(
    (BASE_FEATURES - 3).astype(np.float32), BASE_LABELS, power=1
  )
  classifier = distribution_calibration.classifier(base, power=1, num_drawn=20)
  assert found['accuracy']['calibrated, published'] == pytest.approx(
    wanted(classifier, FEATURES - 3)
  )


def test_base_rows_are_not_needed(tmp_path):
  np.savez(tmp_path / 'my.npz', features=FEATURES, labels=LABELS)
  found = features_file.read(tmp_path / 'my.npz')
  np.testing.assert_array_equal(found.features, FEATURES.astype(np.float32))
  np.testing.assert_array_equal(found.labels, LABELS)
  assert found.base is None


_NAN = FEATURES.copy()
_NAN[17, 2] = np.nan
_OBJECTS = np.array([3, 'a', None] * 12, object)


@pytest.mark.parametrize(
  ('changes', 'flags', 'words'),
  [
    (dict(arrays=dict(features=FEATURES)), (), "no array 'labels'; it has"),
    (dict(arrays=dict(labels=LABELS)), (), "no array 'features'; it has"),
    (
      dict(
        arrays={k: x for k, x in ARRAYS.items() if k != 'base_labels'},
      ),
      (),
      "no array 'base_labels'",
    ),
    (dict(features=_NAN), (), 'NaN or infinite numbers in 1 rows, .* row 17:'),
    (dict(base_features=BASE_FEATURES * 1e39), (), 'base_features has NaN or'),
    (dict(features=FEATURES - 3), ('--power=.5',), 'negative .* no power 0.5'),
    (
      dict(base_features=BASE_FEATURES - 3),
      ('--power=.5',),
      'negative .* no power 0.5',
    ),
    ({}, ('--neighbours=4',), 'neighbours=4 of 3 base classes: ask for fewer'),
    (dict(labels=_OBJECTS), (), "'labels' .*pickled objects are refused"),
    (dict(features=_OBJECTS), (), "'features' .*pickled objects are refused"),
    (dict(labels=LABELS * 1.0), (), r'labels must be integers.*float64 \[36\]'),
    (dict(labels=LABELS.astype(str)), (), 'labels must be integers.*<U'),
    (dict(labels=LABELS[1:]), (), r'a label for each; got int64 \[35\]'),
    (dict(features=FEATURES[:0], labels=LABELS[:0]), (), 'needs rows'),
    (dict(features=FEATURES[:, 0]), (), r'\[R, D\]; got float64 \[36\]'),
    (dict(features=FEATURES.astype(str)), (), r'\[R, D\]; got <U'),
    (dict(base_features=BASE_FEATURES[:, 1:]), (), 'have 6 numbers, .* 5'),
    (dict(base_labels=np.arange(21)), (), 'Base class 0 has a single row'),
    ({}, ('--episodes=5x1',), 'An episode of 5 classes cannot be drawn from 4'),
    ({}, ('--queries=8',), r'Class 3 has 9 rows, an episode takes 10'),
    ({}, ('--episodes=',), '--features needs --episodes'),
    ({}, ('--workdir=runs/x',), 'leave --workdir out'),
    ({}, ('--base_split=train',), 'leave --base_split out'),
    ({}, ('--config=configs/sam.py:smoke',), 'leave --config out'),
    (
      dict(arrays=dict(features=FEATURES, labels=LABELS)),
      ('--alpha=.3',),
      '--alpha is of Distribution Calibration, which needs rows of base',
    ),
    ({}, ('--outputs=made',), '--outputs writes predictions'),
    ({}, ('--alpha=-1',), r'alpha must be in \[0, inf\)'),
  ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(
  tmp_path, changes, flags, words
):
  code, output = judged(tmp_path, *flags, **changes)
  assert code == 1, output
  lines = [x for x in output.splitlines() if x.startswith('ERROR')]
  assert len(lines) == 1
  assert re.search(words, lines[0]), lines[0]


@pytest.mark.parametrize(
  'content', [None, b'features', b'PK\x05\x06' + 18 * b'\0']
)
def test_a_file_that_is_none_is_refused(tmp_path, content):
  path = tmp_path / 'my.npz'
  if content is not None:
    path.write_bytes(content)
  code, output = launching.call('evaluate', f'--features={path}', *EPISODES)
  assert code == 1
  (line,) = output.strip().splitlines()
  assert f'--features={path}' in line
