"""Studies are measured, judged and told; what does not fit is refused."""

import functools
import json
import pathlib
import re

import launching
import numpy as np
import pytest

from launch.lib import chosen
from launch.lib import kept
from launch.lib import measuring
from launch.lib import recipes
from launch.lib import results
from launch.lib import sources
from repjax import files
from repjax import types


@pytest.mark.slow
def test_measuring_again_changes_nothing(tmp_path):
  out = tmp_path / 'results'
  flags = ('reproduce', '--papers=mixup', '--preset=smoke', f'--out={out}')
  held = []
  for jobs in (1, 1, 2):
    code, output = launching.run(*flags, f'--jobs={jobs}')
    assert code == 0, output
    assert 'Traceback' not in output
    held.append({x.name: x.read_bytes() for x in out.rglob('*') if x.is_file()})
  assert 'report.json' in held[0]
  assert held[0] == held[1] == held[2]


@pytest.mark.slow
def test_a_preset_is_a_folder_of_its_own(tmp_path):
  out = tmp_path / 'results'
  code, output = launching.run(
    'reproduce', '--papers=mixup', '--preset=smoke', f'--out={out}'
  )
  assert code == 0, output
  (folder,) = out.iterdir()
  assert folder.name == 'mixup.smoke'
  report = json.loads((folder / 'report.json').read_text())
  assert report['seeds'] == [0, 1]  # Two are enough to see that it runs.
  assert 'claims' not in report['config']
  table = (tmp_path / 'RESULTS.md').read_text()
  assert '--papers=mixup --preset=smoke --seeds=2`' in table
  assert '| not run |' in table  # The headline is that of `small`.
  code, output = launching.call('reproduce', f'--out={out}', '--check')
  assert code == 0, output
  # A threshold that is moved afterwards makes the table stale.
  row = next(x for x in report['claims'] if 'at_least' in x)
  row['at_least'] -= 1.0
  (folder / 'report.json').write_text(json.dumps(report))
  code, output = launching.call('reproduce', f'--out={out}', '--check')
  assert code == 1, output
  assert f'{row["name"]}.at_least' in output
  # A verdict that its scores do not give does, too, and a preset that is gone.
  row['at_least'] += 1.0
  for changed, says in (
    ({'claims': report['claims'][:-1]}, 'its claims'),
    ({'claims': [{**x, 'verdict': 'new'} for x in report['claims']]}, 'claims'),
    ({'preset': 'gone'}, 'there is no such preset'),
    ({'seeds': [5, 6]}, 'seeds: [5, 6] -> [0, 1]'),
  ):
    (folder / 'report.json').write_text(json.dumps({**report, **changed}))
    code, output = launching.call('reproduce', f'--out={out}', '--check')
    assert code == 1, output
    assert says in output and 'Traceback' not in output
  # And so does a number of the config.
  report['config']['batch_size'] += 1
  (folder / 'report.json').write_text(json.dumps(report))
  code, output = launching.call('reproduce', f'--out={out}', '--check')
  assert code == 1, output
  assert 'batch_size' in output


@pytest.mark.slow
def test_what_cannot_be_measured_is_named_before_any_run(tmp_path):
  for flags, says in (
    (('--papers=nothing',), 'configs/nothing.py'),
    (('--papers=sam', '--preset=huge'), 'paper, small, smoke'),
    (('--papers=sam', '--seeds=9'), 'has 5 seeds'),
  ):
    code, output = launching.run(
      'reproduce', *flags, f'--out={tmp_path / "results"}'
    )
    assert code == 1, output
    assert says in output
    assert 'Traceback' not in output
  code, output = launching.run('reproduce', f'--out={tmp_path / "RESULTS.md"}')
  assert code == 1, output
  assert 'folder' in output
  assert not list(tmp_path.iterdir())


def study(tmp_path, monkeypatch, text):
  """A folder of configs with one recipe and, if there is a text, its study."""
  (tmp_path / 'studies').mkdir()
  (tmp_path / 'toy.py').write_text('PRESETS = {}\n')
  if text:
    (tmp_path / 'studies' / 'toy.py').write_text(text)
  monkeypatch.setattr(recipes, '_CONFIGS', pathlib.Path(tmp_path))


def test_a_recipe_without_a_study_is_named(tmp_path, monkeypatch):
  study(tmp_path, monkeypatch, '')
  assert recipes.papers() == ['toy']
  with pytest.raises(types.InputError, match=r'configs/studies/toy\.py'):
    recipes.load_study('toy')


def test_a_study_without_a_recipe_is_named(tmp_path, monkeypatch):
  study(tmp_path, monkeypatch, 'SEEDS = CLAIMS = get_config = run = None\n')
  (tmp_path / 'toy.py').unlink()
  with pytest.raises(types.InputError, match=r'there is no configs/toy\.py'):
    recipes.papers()


def test_a_study_without_a_part_is_named(tmp_path, monkeypatch):
  study(tmp_path, monkeypatch, 'SEEDS = (0,)\nCLAIMS = {}\nrun = None\n')
  with pytest.raises(types.InputError, match='has no get_config'):
    recipes.load_study('toy')


TOY = '''"""What toys claim.

They do.
"""
SEEDS = (0, 1, 2)
GRIDS = {'^arm .*: rate$': 'study.rates'}
CLAIMS = dict(
  known=dict(kind='first', says='known', paper='yes', at_least=0.0),
  first=dict(says='first', paper='1', at_least=0.5),
  second=dict(says='second', paper='2'),
  third=dict(says='third', paper='3', at_most=0.5, needs=('known',)),
  exact=dict(kind='theory', says='exact', paper='0', at_most=1e-6),
)
run = None


def get_config(preset):
  if preset != 'small':
    raise ValueError(preset)
'''


@pytest.mark.parametrize(
  ('values', 'limits', 'verdict'),
  [
    # Student's t of three values: 4.30 standard errors.
    ([1.0, 1.1, 1.2], dict(at_least=0.8), 'holds'),
    ([1.0, 1.1, 1.2], dict(at_least=1.0), 'undecided'),
    ([1.0, 1.1, 1.2], dict(at_least=1.2), 'undecided'),
    ([1.0, 1.1, 1.2], dict(at_least=1.4), 'contradicted'),
    ([1.0, 1.1, 1.2], dict(at_most=1.4), 'holds'),
    ([1.0, 1.1, 1.2], dict(at_most=0.8), 'contradicted'),
    ([1.0, 1.1, 1.2], dict(at_least=0.8, at_most=1.4), 'holds'),
    ([1.0, 1.1, 1.2], dict(at_least=0.8, at_most=1.2), 'undecided'),
    ([1.0, 1.1, 1.2], {}, 'measured'),
    ([0.0, 0.0], dict(at_least=0.0), 'holds'),
    ([5.0], dict(at_least=0.0), 'one seed'),
    ([5.0], dict(at_least=0.0, kind='theory'), 'holds'),
    ([5.0], dict(at_most=0.0, kind='theory'), 'contradicted'),
    ([5.0], dict(at_most=0.0, kind='theory', by_chance=True), 'one seed'),
    ([0.5, np.nan, 0.6], dict(at_least=0.0), 'no number'),
    ([np.inf, 0.5], dict(at_least=0.0), 'no number'),
    ([np.nan], dict(at_least=0.0, kind='theory'), 'no number'),
  ],
)
def test_a_verdict_needs_the_whole_interval(values, limits, verdict):
  (row,) = results.judge(
    {'x': dict(says='', paper='', **limits)}, {'x': values}
  )
  assert row['verdict'] == verdict


def test_nothing_is_said_where_what_it_takes_for_granted_is_not_so():
  claims = dict(
    known=dict(kind='first', says='', paper='', at_least=0.0),
    gain=dict(says='', paper='', at_least=0.0, needs=('known',)),
    other=dict(says='', paper='', at_least=0.0),
  )
  gains = {'gain': [1.0, 1.1], 'other': [1.0, 1.1]}
  for known, verdict in (
    ([1.0, 1.1], 'holds'),
    ([-1.0, -1.1], 'not testable here'),
    ([-1.0, 1.0], 'not testable here'),  # Unclear is not enough.
  ):
    rows = results.judge(claims, {'known': known, **gains})
    assert [x['verdict'] for x in rows[1:]] == [verdict, 'holds']
  (row, _) = results.judge(claims, gains)
  assert row['verdict'] == 'not testable here'
  assert row['unmet'] == ['known']


def test_what_could_not_be_measured_has_no_values_but_a_reason():
  claims = dict(
    known=dict(kind='first', says='', paper='', at_least=0.0),
    gain=dict(says='', paper='', at_least=0.0, needs=('known',)),
  )
  rows = results.judge(claims, {'known': [-1.0, -1.1], 'gain': []})
  assert rows[1]['verdict'] == 'not testable here'
  assert rows[1]['unmet'] == ['known']
  assert list(results.verdicts(rows))[1] == 'gain: not testable here'
  assert results.interval_of(rows[1]['values']) == 'not measured'
  # Where it could be measured, nothing is left out.
  with pytest.raises(ValueError, match='gain'):
    results.judge(claims, {'known': [1.0, 1.1], 'gain': []})


def test_the_reader_sees_headlines_first_and_then_all_claims(
  tmp_path, monkeypatch
):
  configs, out = tmp_path / 'configs', tmp_path / 'results'
  configs.mkdir()
  study(configs, monkeypatch, TOY)
  measured = {
    'third': [0.6, 0.8],
    'first': [0.4, 0.8],
    'second': [7.0],
    'known': [-1.0, -1.2],
    'exact': [0.0],
    'arm A': [0.25, 0.75],
  }
  report = dict(
    preset='small',
    seeds=[0, 1],
    seconds=61.2,
    devices=['TFRT_CPU_0'],
    cores=2,
    time='2026-01-02T03:04:05',
    versions=dict(jax='1', flax='2', optax='3'),
    figures=['curve'],
    scalars={**measured, 'arm A: rate': [0.1], 'arm B: rate': [0.3]},
    config={'study': {'rates': [0.3, 0.1, 0.03]}},
    claims=results.judge(recipes.load_study('toy').CLAIMS, measured),
  )
  for preset in ('small', 'mnist'):
    folder = results.folder_of(out, 'toy', preset)
    folder.mkdir(parents=True)
    (folder / 'report.json').write_text(
      json.dumps({**report, 'preset': preset})
    )
  text = results.table(['toy'], out)
  head, section = text.split('\n## toy\n')
  assert '| [toy](#toy) | first | 1 | 0.6 ± 2.5 (2) | undecided |' in head
  assert 'They do.' in section
  at = [
    section.index(f'| {name} |')
    for name in ('first', 'claim', 'second', 'third', 'theory', 'exact')
  ]
  # What had to be so, claims in the order of the study, theory.
  assert at[0] < at[1] < at[2] < at[3] < at[4] < at[5]
  assert '| `known`: known | yes | ≥ 0 | -1.1 ± 1.3 (2) | unclear |' in section
  assert (
    '| third | 3 | ≤ 0.5 | 0.7 ± 1.3 (2) | not testable here (known) |'
  ) in section
  assert '| exact | 0 | ≤ 1e-06 | 0 (1) | holds |' in section
  assert '| arm A | 0.5 ± 3.2 (2) |' in section
  assert (
    'Best of their grids: 1 of 2 inside; at an edge: arm B: rate 0.3 (of 0.03, '
    '0.1, 0.3).'
  ) in section
  assert '`python -m launch.reproduce --papers=toy --seeds=2`: 61 s' in section
  assert '--papers=toy --preset=mnist --seeds=2`' in section
  assert '![curve](results/toy/plots/curve.png)' in section
  assert section.index('### small') < section.index('### mnist')


def test_a_choice_that_is_not_of_its_grid_is_refused():
  grids = {'rate$': 'rates', 'strength$': 'strength'}
  report = {'scalars': {'rate': [0.2]}, 'config': {'rates': [0.1, 0.3]}}
  with pytest.raises(ValueError, match=r'rate: \[0.2\] are not of the grid'):
    chosen.line(grids, report)
  # Of one there is no choice.
  assert chosen.line(grids, {**report, 'config': {'rates': [0.2]}}) == ''
  assert chosen.line({}, report) == ''
  older = chosen.line({'rate$': 'study.rates'}, report)
  assert older.endswith('Not known, in a record of older code: rate.')


def test_choices_of_seeds_are_counted():
  report = {
    'scalars': {'rate': [0.1, 0.03, 0.03]},
    'config': {'rates': [0.01, 0.03, 0.1]},
  }
  assert 'rate 0.1 in 1 of 3 (of' in chosen.line({'rate': 'rates'}, report)


def test_the_headline_names_presets_that_decide_otherwise(
  tmp_path, monkeypatch
):
  study(tmp_path, monkeypatch, TOY)
  claims = recipes.load_study('toy').CLAIMS
  own = []
  for preset, values in (
    ('small', [0.6]),
    ('mnist', [0.6, 0.61]),
    ('paper', [0.6]),
  ):
    rows = results.judge(claims, {'first': values})
    own.append((tmp_path / preset, {'preset': preset, 'claims': rows}))
  line = results._headline('toy', recipes.load_study('toy'), own)
  assert line.endswith(
    '| 0.6 (1); 0.605 ± 0.064 (2) | one seed; holds (mnist) |'
  )
  assert results._headline('toy', recipes.load_study('toy'), []).endswith(
    '| not run |'
  )


def test_what_was_measured_before_a_kill_is_kept(tmp_path):
  made, written = [], []

  def go_on(stop_at='', **changes):
    def measure(paper):
      if paper == stop_at:
        raise KeyboardInterrupt
      made.append(paper)

    what = dict(papers=dict(a=1, b=2, c=3), **changes)
    measuring.one_by_one(
      measuring.Begun(tmp_path, what),
      measure,
      lambda: written.append(list(made)),
    )

  with pytest.raises(KeyboardInterrupt):
    go_on(stop_at='b')
  assert (made, written) == (['a'], [['a']])
  with pytest.raises(KeyboardInterrupt):
    go_on(stop_at='c')
  assert made == ['a', 'b']
  # Another command is no continuation, and neither is the next after the end.
  go_on(seeds=1)
  assert made == ['a', 'b', 'a', 'b', 'c']
  go_on()
  assert made == ['a', 'b', 'a', 'b', 'c', 'c']
  go_on()
  assert made[-3:] == ['a', 'b', 'c']
  assert written[-1] == made
  assert not list(tmp_path.iterdir())


def test_a_damaged_report_is_named_and_left_out(tmp_path, caplog):
  (tmp_path / 'sam').mkdir()
  (tmp_path / 'sam' / 'report.json').write_text('{"cla')
  assert '| not run |' in results.table(['sam'], tmp_path)
  assert f'{tmp_path}/sam/report.json cannot be read' in caplog.text


_FOUND = {
  'claims': [{'name': 'gain', 'values': [0.5, 1.0], 'verdict': 'measured'}],
  'scalars': {'gain': (0.5, float('nan'))},
  'figures': ['curves'],
  'seeds': (0, 1),
  'config': {'rate': 0.1},
  'sources': {'a.py': 'c0ffee'},
  'seconds': 3.0,
}


def _recorded(tmp_path):
  """A folder of a measurement that is done."""
  folder = tmp_path / 'toy'
  folder.mkdir()
  files.write_json(folder / 'report.json', _FOUND)
  for name in ('log.txt', 'config.json'):
    (folder / name).write_text(f'the old {name}')
  return folder


@pytest.mark.parametrize(
  'changed',
  [
    {},
    {'seconds': 4.0},
    {'scalars': {'gain': (0.5 + 1e-15, float('nan'))}, 'seconds': 4.0},
    {'seeds': (0,)},
    {'sources': {'a.py': 'decaf'}},
    {'scalars': {'gain': (0.6, float('nan'))}},
  ],
)
def test_a_folder_whose_numbers_are_the_same_stays_as_it_is(tmp_path, changed):
  folder = _recorded(tmp_path)
  before = kept.Kept(folder)
  before.clear_log()
  with open(folder / 'log.txt', 'a') as log:  # Written to until the end.
    (folder / 'config.json').write_text('the new one')
    log.write('measuring')
    log.flush()
    same = before.is_the_same({**_FOUND, **changed})
    assert same == (changed.get('seconds') == 4.0 or not changed)
    if not same:
      assert (folder / 'log.txt').read_text() == 'measuring'
      return
    before.restore()
    log.write('wrote RESULTS.md')
  for name in ('log.txt', 'config.json'):
    assert (folder / name).read_text() == f'the old {name}'


def test_what_was_not_measured_before_is_written(tmp_path):
  assert not kept.Kept(tmp_path / 'toy').is_the_same(_FOUND)


@pytest.mark.parametrize(
  'paper',
  [x for x in recipes.papers() if hasattr(recipes.load_study(x), 'GRIDS')],
)
def test_grids_name_fields_and_scalars_that_there_are(paper):
  grids = recipes.load_study(paper).GRIDS
  reports = [x for *_, x in results.reports([paper], sources.ROOT / 'results')]
  for pattern, path in grids.items():
    found = [
      report
      for report in reports
      if any(re.search(pattern, name) for name in report['scalars'])
    ]
    assert found, f'no scalar is called {pattern}'
    for report in found:
      # A misspelt field is none, of which nothing would be said.
      assert functools.reduce(
        dict.__getitem__, path.split('.'), report['config']
      )


def test_checksums_are_also_of_what_is_imported_late():
  found = sources.checksums(
    sources.ROOT / 'configs' / 'studies' / 'dp_tuning.py'
  )
  late = ('privacy/of_batch', 'privacy/clipping', 'data/sets/digits')
  assert {f'repjax/{x}.py' for x in late} <= set(found)


def test_the_introduction_explains_every_verdict():
  known = [
    *results._FIRST.values(),
    *(results.HOLDS, results.CONTRADICTED, results.UNDECIDED),
    *(results.MEASURED, results.ONE_SEED, results.NO_NUMBER),
    *(results.NOT_TESTABLE, 'first', 'theory'),
  ]
  for word in known:
    assert f'*{word}*' in ' '.join(results._HEADER.split()), word


def test_a_measurement_that_is_stopped_leaves_the_record(tmp_path):
  folder = _recorded(tmp_path)
  before = kept.Kept(folder)
  with pytest.raises(KeyboardInterrupt), before.restored_if_stopped():
    before.clear_log()
    for name in ('log.txt', 'config.json', 'events.out.tfevents.1'):
      (folder / name).write_text('the new one')
    raise KeyboardInterrupt
  for name in ('log.txt', 'config.json'):
    assert (folder / name).read_text() == f'the old {name}'
  assert not list(folder.glob('events*'))


def test_a_measurement_that_is_stopped_amid_its_plots_leaves_the_old(tmp_path):
  folder = _recorded(tmp_path)
  plot = folder / 'plots' / 'gain.png'
  plot.parent.mkdir()
  plot.write_bytes(b'the old one')
  before = kept.Kept(folder)
  with pytest.raises(KeyboardInterrupt), before.restored_if_stopped():
    plot.write_bytes(b'the new one')
    raise KeyboardInterrupt
  assert plot.read_bytes() == b'the old one'


@pytest.mark.slow
def test_several_processes_are_refused(tmp_path):
  codes, outputs = launching.finish(
    launching.start_two(
      *('reproduce', '--papers=gpm', '--preset=smoke'),
      f'--out={tmp_path / "results"}',
    )
  )
  assert codes == [1, 1], outputs
  assert all('measures in one process' in x for x in outputs)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('paper', 'name'),
  [('imprint', 'undefended_users'), ('flan', 'text_known_by_name')],
)
def test_a_section_says_which_threshold_came_later(paper, name):
  assert f'`{name}`' in recipes.load_study(paper).__doc__
