"""WILDS against PyPI's `wilds` 2.0.0, on random folders in the published form.

The extra `parity` is without it, since it asks for torchvision, which does not
load beside a torch for CPUs alone: `make parity` installs it by itself (`pip
install --no-deps wilds ogb outdated littleutils pandas pytz`).

Two packages that it imports without asking for them are stood in for where they
are missing: torch_scatter by sums over groups, torchvision (detection alone) by
nothing.
"""

import importlib.util
import sys
import types as modules

import numpy as np
import pytest
import wilds_folders

from repjax.benchmarks.wilds import grouper as groupers
from repjax.benchmarks.wilds import hospitals
from repjax.benchmarks.wilds import leaderboard
from repjax.benchmarks.wilds import loaders
from repjax.benchmarks.wilds import published

pytestmark = pytest.mark.parity
# It asks a server for newer versions, in a thread that fails a test of whatever
# file where it warns.
sys.modules.setdefault('outdated', None)
torch = pytest.importorskip('torch')


def scatter(src, index, dim_size, reduce):
  assert reduce == 'mean'
  sums = torch.zeros(dim_size).index_add(0, index, src)
  counts = torch.zeros(dim_size).index_add(0, index, torch.ones(len(src)))
  return sums / counts.clamp(min=1)


pandas = pytest.importorskip('pandas')
wilds = pytest.importorskip('wilds')
data_loaders = pytest.importorskip('wilds.common.data_loaders')
peer_grouper = pytest.importorskip('wilds.common.grouper')


_MISSING = {
  'torch_scatter': {'torch_scatter': {'scatter': scatter}},
  'torchvision': {
    'torchvision.ops': {'nms': None, 'box_convert': None},
    'torchvision.ops.boxes': {'box_iou': None},
    'torchvision.models.detection._utils': {'Matcher': None},
    'torchvision.transforms.functional': {},
  },
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
  """Modules in the places of missing packages, for the time of a test."""
  for package, contents in _MISSING.items():
    if importlib.util.find_spec(package) is not None:
      continue
    for path, names in contents.items():
      parts = path.split('.')
      for i in range(1, len(parts) + 1):
        inner = '.'.join(parts[:i])
        made = sys.modules.get(inner, modules.ModuleType(inner))
        monkeypatch.setitem(sys.modules, inner, made)
        if i > 1:
          setattr(sys.modules['.'.join(parts[: i - 1])], parts[i - 1], made)
      vars(sys.modules[path]).update(names)


# Set, how its folder is written, our settings, theirs.
LABELLED = [
  ('camelyon17', {}, {}, {}),
  ('camelyon17', {}, dict(scheme='mixed-to-test'), {}),
  ('waterbirds', {}, {}, {}),
  ('iwildcam', {}, {}, {}),
  ('civilcomments', {}, {}, {}),
  ('amazon', {}, {}, {}),
  ('amazon', dict(scheme='time'), dict(scheme='time'), {}),
  ('amazon', dict(scheme='x_baseline'), dict(scheme='x_baseline'), {}),
  (
    'amazon',
    dict(scheme='category_subpopulation'),
    dict(scheme='category_subpopulation'),
    {},
  ),
  ('fmow', {}, {}, {}),
  ('fmow', {}, dict(scheme='time_after_2010'), {}),
  ('fmow', {}, dict(scheme='mixed-to-test'), {}),
  ('poverty', {}, dict(fold='A'), dict(fold='A')),
  ('poverty', {}, dict(fold='E'), dict(fold='E')),
  ('poverty', {}, dict(scheme='mixed-to-test'), {}),
]
UNLABELLED = ['iwildcam', 'civilcomments', 'amazon', 'fmow', 'poverty']


def theirs(name, root, *, unlabeled=False, scheme='official', **settings):
  # From pandas 3 on, columns of text take no numbers, which they put there.
  with pandas.option_context('future.infer_string', False):
    return wilds.get_dataset(
      name,
      root_dir=str(root),
      unlabeled=unlabeled,
      split_scheme=scheme,
      **settings,
    )


def same_arrays(ours, peer):
  assert dict(peer.split_dict) == ours.split_ids
  np.testing.assert_array_equal(peer.split_array, ours.split)
  if hasattr(peer, '_y_array'):  # PovertyMap's rows without labels lack it.
    np.testing.assert_array_equal(peer._y_array.numpy(), ours.label)
  assert tuple(peer.metadata_fields) == ours.metadata.fields
  names = {
    field: np.array([str(x).strip() for x in named])
    for field, named in (peer.metadata_map or {}).items()
  }
  for i, field in enumerate(ours.metadata.fields):
    found, values = (
      peer.metadata_array.numpy()[:, i],
      ours.metadata.values[:, i],
    )
    if field in names:
      known = np.array([str(x).strip() for x in ours.metadata.names[field]])
      if ours.name.startswith('amazon'):  # Numbered in no order, see there.
        assert set(names[field]) == set(known)
        found, values = names[field][found.astype(int)], known[values]
      else:
        assert names[field].tolist() == known.tolist()
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(('name', 'written', 'settings', 'more'), LABELLED)
def test_arrays_and_results_are_theirs(tmp_path, name, written, settings, more):
  vars(wilds_folders)[name](tmp_path, **written)
  ours = published.load(name, str(tmp_path), **settings)
  scheme = settings.get('scheme', 'official')
  peer = theirs(name, tmp_path, scheme=scheme, **more)
  same_arrays(ours, peer)
  rng = np.random.default_rng(1)
  for split in ours.split_ids:
    part, peer_part = ours.subset(split), peer.get_subset(split)
    np.testing.assert_array_equal(part.rows, peer_part.indices)
    if ours.num_classes is None:
      guess = (part.label + rng.normal(size=part.label.shape)).astype(
        np.float32
      )
    else:
      wrong = rng.integers(ours.num_classes, size=len(part))
      guess = np.where(rng.random(len(part)) < 0.6, part.label, wrong)
    results = part.evaluate(guess).results
    expected, _ = peer_part.eval(
      torch.from_numpy(guess), peer_part.y_array, peer_part.metadata_array
    )
    assert set(results) == set(expected)
    for key, value in expected.items():
      np.testing.assert_allclose(
        results[key], float(value), rtol=2e-6, atol=1e-6, err_msg=key
      )


@pytest.mark.parametrize('name', UNLABELLED)
def test_unlabelled_arrays_are_theirs(tmp_path, name):
  write = vars(wilds_folders)[name]
  if name in ('amazon', 'fmow'):
    write(tmp_path)  # The same folder.
  else:
    write(tmp_path, unlabelled=True)
  ours = published.load(name, str(tmp_path), unlabelled=True)
  same_arrays(ours, theirs(name, tmp_path, unlabeled=True))


class Peer(wilds.datasets.wilds_dataset.WILDSDataset):
  """Any metadata as a set of theirs."""

  def __init__(self, metadata):
    self._metadata_array = torch.from_numpy(metadata.values)
    self._metadata_fields = list(metadata.fields)
    self._metadata_map = dict(metadata.names)


@pytest.mark.parametrize('seed', range(5))
def test_groups_and_their_names_are_theirs(seed):
  rng = np.random.default_rng(seed)
  values = rng.integers([3, 2, 5, 2], size=(200, 4))
  names = {'colour': ['red', 'dark blue', 'green, pale']}
  metadata = groupers.Metadata(values, ('colour', 'year', 'place', 'y'), names)
  for fields in (
    ('colour',),
    ('colour', 'place'),
    ('year', 'place', 'y'),
    None,
  ):
    ours = groupers.Grouper(metadata, fields)
    peer = peer_grouper.CombinatorialGrouper(
      Peer(metadata), None if fields is None else list(fields)
    )
    assert ours.num_groups == peer.n_groups
    group, counts = peer.metadata_to_group(
      torch.from_numpy(values), return_counts=True
    )
    np.testing.assert_array_equal(ours(values), group)
    np.testing.assert_array_equal(ours.counts(values), counts)
    for i in range(ours.num_groups):
      assert ours.name(i) == peer.group_str(i)
      assert ours.key(i) == peer.group_field_str(i)


def test_loaders_draw_as_theirs():
  data = hospitals.load()
  part, grouper = data.subset('train', fraction=0.2), None
  grouper = groupers.Grouper(data.metadata, ('hospital', 'y'))
  source = part.source(grouper)
  group = grouper(part.metadata.values)
  peer = data_loaders.GroupSampler(
    torch.from_numpy(group),
    12,
    3,
    uniform_over_groups=False,
    distinct_groups=True,
  )
  ours = loaders.group_batches(
    source,
    batch_size=12,
    groups_per_batch=3,
    seed=0,
    uniform=False,
    process_index=0,
    process_count=1,
  )
  np.random.seed(0)  # noqa: NPY002 (theirs draw from it)
  totals = np.zeros((2, grouper.num_groups))
  for _ in range(60):
    for step, rows in enumerate(peer):
      mine = ours.rows_at(step + 100 * _)
      for i, drawn in enumerate((rows, mine)):
        counts = np.bincount(group[drawn], minlength=grouper.num_groups)
        assert sorted(counts[counts > 0]) == [4, 4, 4]
        assert len(set(drawn.tolist())) == 12  # Every group has more than 4.
        totals[i] += counts
  share = totals / totals.sum(1, keepdims=True)
  np.testing.assert_allclose(share[0], share[1], atol=0.03)
  loader = data_loaders.get_train_loader(
    'standard',
    PeerSubset(part),
    8,
    uniform_over_groups=True,
    grouper=PeerGroups(grouper),
  )
  weights = loader.sampler.weights.numpy()
  uniform = loaders.uniform_batches(
    source, batch_size=500, seed=0, process_index=0, process_count=1
  )
  drawn = np.concatenate([uniform.rows_at(i) for i in range(40)])
  found = np.bincount(drawn, minlength=len(part)) / len(drawn)
  np.testing.assert_allclose(found, weights / weights.sum(), atol=0.004)


class PeerSubset:
  collate = None

  def __init__(self, part):
    self.metadata_array = torch.from_numpy(part.metadata.values)

  def __len__(self):
    return len(self.metadata_array)


class PeerGroups:
  def __init__(self, grouper):
    self._grouper = grouper

  def metadata_to_group(self, metadata, return_counts):
    assert return_counts
    values = metadata.numpy()
    group, counts = self._grouper(values), self._grouper.counts(values)
    return torch.from_numpy(group), torch.from_numpy(counts).float()


def test_a_leaderboard_folder_scores_as_theirs(tmp_path):
  # What `examples/evaluate.py` does, which the package does not install.
  wilds_folders.fmow(tmp_path / 'data')
  data = published.load('fmow', str(tmp_path / 'data'))
  peer = theirs('fmow', tmp_path / 'data')
  rng = np.random.default_rng(0)
  for split in leaderboard.splits(data):
    part = data.subset(split)
    for replicate in leaderboard.replicates('fmow'):
      wrong = rng.integers(62, size=len(part))
      guess = np.where(rng.random(len(part)) < 0.6, part.label, wrong)
      leaderboard.write(tmp_path / 'fmow', part, replicate, guess)
  result = leaderboard.score(tmp_path / 'fmow', data).result()
  for split in leaderboard.splits(data):
    part, values = peer.get_subset(split), []
    for path in sorted((tmp_path / 'fmow').glob(f'fmow_split:{split}_*')):
      guess = torch.tensor([int(x) for x in path.read_text().split()])
      values.append(part.eval(guess, part.y_array, part.metadata_array)[0])
    for metric in leaderboard.METRICS['fmow']:
      numbers = [float(x[metric]) for x in values]
      assert len(numbers) == 3
      np.testing.assert_allclose(
        result[split][metric], np.mean(numbers), rtol=1e-6
      )
      np.testing.assert_allclose(
        result[split][f'{metric}_std'], np.std(numbers, ddof=1), rtol=1e-5
      )
