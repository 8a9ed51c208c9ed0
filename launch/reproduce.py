"""Measures the papers' claims and writes RESULTS.md.

    python -m launch.reproduce --papers=sam,mixup --preset=small

Each paper's study (`configs/studies/`) writes results/<paper>/report.json and
plots; RESULTS.md is made from these files, so papers that were not run keep
their sections. Other presets of a study write folders of their own, such as
results/gpm.mnist. A folder whose numbers and code are the same again stays as
it is. What was measured before a command was stopped is kept when
it is run again. With --check nothing is run: it fails if a report was measured
with another config or other claims than the present ones, and says which were
measured with older code.
"""

import json
import pathlib
import time
from typing import Any

from absl import flags
from absl import logging
import numpy as np

from launch.lib import app
from launch.lib import executors
from launch.lib import kept
from launch.lib import measuring
from launch.lib import recipes
from launch.lib import results
from launch.lib import sources
from repjax import files
from repjax import types

_PAPERS = flags.DEFINE_list(
  'papers', None, 'Names of studies, for example sam,mixup; all by default.'
)
_PRESET = flags.DEFINE_string('preset', 'small', 'Preset that is measured.')
_SEEDS = flags.DEFINE_integer(
  'seeds',
  0,
  "How many of the study's seeds, the first ones; 0 means all (two at smoke).",
)
_OUT = flags.DEFINE_string(
  'out', 'results', 'Folder of the reports; RESULTS.md is written beside it.'
)
_CHECK = flags.DEFINE_bool(
  'check', False, 'Only check that reports and RESULTS.md fit the studies.'
)
_TABLE = flags.DEFINE_bool(
  'table', False, 'Only write RESULTS.md from the reports that are there.'
)
_JOBS = flags.DEFINE_integer(
  'jobs',
  1,
  'Studies at the same time, each in a process of its own, those that took '
  'longest first. All use all devices: for cores, not for one GPU.',
)
_WRITE_TABLE = flags.DEFINE_bool(
  'write_table', True, 'Write RESULTS.md once the reports are there.'
)
_DATA_DIR = app.define_data_dir()
app.define_devices()


def main() -> None:
  """Runs the studies, or checks what they left."""
  papers = _papers()
  out = pathlib.Path(_OUT.value)
  table = out.parent / 'RESULTS.md'
  if out.suffix == '.md' or table.is_dir():
    raise types.InputError(
      f'--out={out} names a folder of reports, beside which RESULTS.md is '
      'written: give a folder such as results.'
    )
  for flag in (_PRESET, _SEEDS, _JOBS):
    if flag.present and (_CHECK.value or _TABLE.value):
      raise types.InputError(
        f'--{flag.name} is of measuring, and --check and --table measure '
        'nothing: leave it out.'
      )
  if _CHECK.value:
    _check(papers, out, table)
    return
  if not _TABLE.value:
    studies = {paper: recipes.load_study(paper) for paper in papers}
    measured = {
      paper: (x, _config(paper, x), _seeds(x)) for paper, x in studies.items()
    }
    _measure_all(measured, out, table)
    return
  _write_table(out, table)


def _measure_all(studies, out: pathlib.Path, table: pathlib.Path) -> None:
  """Measures all papers; goes on where it was stopped."""
  from repjax import report

  what = {
    'preset': _PRESET.value,
    'git': report.git_commit(),
    'papers': {
      paper: [_fingerprint(config), seeds]
      for paper, (_, config, seeds) in studies.items()
    },
  }
  folders = {
    paper: results.folder_of(out, paper, _PRESET.value) for paper in studies
  }

  def write():
    if _WRITE_TABLE.value:
      _write_table(out, table)

  if _JOBS.value != 1:
    measuring.side_by_side(
      measuring.Begun(out, what),
      {paper: folder.absolute() for paper, folder in folders.items()},
      _flags_of_each(out),
      write,
      num_parallel=_JOBS.value,
      stop=executors.stop_on_signals(),
    )
    return
  app.initialize()
  import jax

  if jax.process_count() > 1:
    raise types.InputError(
      'launch.reproduce measures in one process: leave out --num_processes, or '
      'give --distributed=off.'
    )
  measuring.one_by_one(
    measuring.Begun(out, what),
    lambda paper: _measure(paper, *studies[paper], folder=folders[paper]),
    write,
  )


def _flags_of_each(out: pathlib.Path) -> list[str]:
  """Flags of a process that measures one paper, in the repository's folder."""
  values = flags.FLAGS
  if values.distributed == 'on' or values.num_processes is not None:
    raise types.InputError(
      f'--jobs={_JOBS.value}: studies run side by side on one machine, and not '
      'in a job of several processes: leave --jobs out, or the processes.'
    )
  here = pathlib.Path.cwd() == sources.ROOT

  def place(path):
    return path if here else str(pathlib.Path(path).expanduser().absolute())

  given = dict(
    preset=_PRESET.value,
    out=place(out),
    # Files of one name are written by one process alone.
    write_table='false',
    distributed='off',
  )
  if _SEEDS.value:
    given['seeds'] = _SEEDS.value
  if _DATA_DIR.value:
    given['data_dir'] = place(_DATA_DIR.value)
  if values.platform:
    given['platform'] = values.platform
  if not values.compilation_cache:
    given['compilation_cache'] = 'false'
  return [f'--{name}={value}' for name, value in given.items()]


def _write_table(out, table):
  out.mkdir(parents=True, exist_ok=True)
  files.replace(table, results.table(recipes.papers(), out))
  logging.info('wrote %s', table)


def _config(paper: str, study: Any):
  try:
    return study.get_config(_PRESET.value)
  except ValueError as error:
    raise types.InputError(f'--preset: {paper}: {error}') from error


def _seeds(study: Any) -> tuple[int, ...]:
  seeds = recipes.seeds(study, _PRESET.value)
  count = _SEEDS.value or (2 if _PRESET.value == 'smoke' else len(seeds))
  if not 1 <= count <= len(seeds):
    raise types.InputError(
      f'--seeds={count}: the study has {len(seeds)} seeds.'
    )
  return seeds[:count]


def _measure(
  paper: str,
  study: Any,
  config,
  seeds: tuple[int, ...],
  *,
  folder: pathlib.Path,
) -> None:
  """Runs one paper's study and writes its report, unless it is there."""
  from repjax import report

  before = kept.Kept(folder)
  identity = _fingerprint(config)
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  run = report.Run(folder)
  with run.held(), before.restored_if_stopped():
    before.clear_log()
    run.log()
    run.start(
      {'file': f'configs/{paper}.py', 'preset': _PRESET.value, **identity}
    )
    logging.info('measuring the claims of %s', paper)
    started = time.monotonic()
    result = study.run(config, seeds)
    seconds = time.monotonic() - started
    rows = results.judge(study.CLAIMS, result.scalars)
    for line in results.verdicts(rows):
      logging.info('%s', line)
    found = {
      'claims': rows,
      'scalars': dict(result.scalars),
      'figures': sorted(result.figures),
      'preset': _PRESET.value,
      'seeds': seeds,
      'seconds': seconds,
      'config': identity,
      'sources': sources.checksums(_study_file(paper)),
      **report.environment(),
    }
    if before.is_the_same(found):
      logging.info('the numbers and the code are those of %s: kept', folder)
      before.restore()
      return
    for name, figure in result.figures.items():
      run.figure(name, figure)
    run.finish(found)


def _study_file(paper: str) -> pathlib.Path:
  return sources.ROOT / 'configs' / 'studies' / f'{paper}.py'


def _fingerprint(config) -> dict[str, Any]:
  """What decides a study's result: all but where and how often to write.

  As it comes back from a JSON file, so that both can be compared.
  """
  fields = _as_json(config.to_dict())
  fields.pop('run', None)
  fields.get('data', {}).pop('dir', None)
  return fields


def _as_json(fields: Any) -> Any:
  return json.loads(json.dumps(fields))


def _check(papers: list[str], out: pathlib.Path, table: pathlib.Path) -> None:
  """Raises if the reports are not those of the present studies."""
  from repjax import checkpoint

  stale = []
  for paper, folder, report in results.reports(papers, out):
    study = recipes.load_study(paper)
    if not results.has_preset(study, report['preset']):
      stale.append(f'{folder.name} (there is no such preset)')
      continue
    lines = checkpoint.differing_fields(
      report['config'], _fingerprint(study.get_config(report['preset']))
    )
    if _said(report['claims']) != _said(_judged(study, report)):
      lines.append('its claims are not what its scores give')
    for row in report['claims']:
      said = {
        k: x
        for k, x in row.items()
        if k not in ('name', 'values', 'verdict', 'unmet')
      }
      lines += checkpoint.differing_fields(
        {row['name']: said},
        {row['name']: _as_json(study.CLAIMS.get(row['name'], {}))},
      )
    seeds = list(recipes.seeds(study, report['preset']))[: len(report['seeds'])]
    if [*report['seeds']] != seeds:
      lines.append(f'seeds: {report["seeds"]} -> {seeds}')
    now = sources.checksums(_study_file(paper))
    then = report.get('sources', {})  # Older reports do not say.
    older = [name for name in now if then.get(name) != now[name]]
    if older:
      logging.info(
        '%s: older code, %d of %d files have changed since, such as %s',
        folder.name,
        len(older),
        len(now),
        older[0],
      )
    if lines:
      stale.append(f'{folder.name} ({"; ".join(lines)})')
  if not table.exists() or table.read_text('utf-8') != results.table(
    recipes.papers(), out
  ):
    stale.append(f'{table} is not what the reports in {out} give (--table)')
  if stale:
    raise types.InputError(
      f'RESULTS.md is stale: {"; ".join(stale)}. Run: '
      'python -m launch.reproduce --papers=...'
    )
  logging.info('%s fits the studies', table)


def _judged(study, report):
  """The claims of a report, by its scores: null is what is no number."""
  scores = report['scalars'].items()
  return results.judge(
    study.CLAIMS,
    {k: [np.nan if x is None else x for x in values] for k, values in scores},
  )


def _said(rows):
  """What claims say, in some order, so that both can be compared."""
  return sorted(
    (
      row['name'],
      row['verdict'],
      row.get('unmet', []),
      [x for x in row['values'] if x is not None and np.isfinite(x)],
    )
    for row in rows
  )


def _papers() -> list[str]:
  papers = _PAPERS.value or recipes.papers()
  for paper in papers:
    if paper not in recipes.papers():
      raise types.InputError(
        f'--papers={paper}: there is no configs/{paper}.py; there are '
        f'{", ".join(recipes.papers())}.'
      )
  return papers


if __name__ == '__main__':
  app.run(main)
