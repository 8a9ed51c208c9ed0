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

from launch.lib import app
from launch.lib import kept
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
  if _CHECK.value:
    _check(papers, out, table)
    return
  if not _TABLE.value:
    studies = {paper: recipes.load_study(paper) for paper in papers}
    jobs = {
      paper: (x, _config(paper, x), _seeds(x)) for paper, x in studies.items()
    }
    app.initialize()
    _measure_all(jobs, out, table)
    return
  _write_table(out, table)


def _measure_all(jobs, out: pathlib.Path, table: pathlib.Path) -> None:
  """Measures one paper after the other; goes on where it was stopped."""
  from repjax import report

  what = {
    'preset': _PRESET.value,
    'git': report.git_commit(),
    'papers': {
      paper: [_fingerprint(config), seeds]
      for paper, (_, config, seeds) in jobs.items()
    },
  }

  def measure(paper):
    folder = results.folder_of(out, paper, _PRESET.value)
    _measure(paper, *jobs[paper], folder)

  results.measure_all(out, what, measure, lambda: _write_table(out, table))


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
  paper: str, study: Any, config, seeds: tuple[int, ...], folder: pathlib.Path
) -> None:
  """Runs one paper's study and writes its report, unless it is there."""
  from repjax import report
  from repjax.metrics import averages

  before = kept.Kept(folder)
  identity = _fingerprint(config)
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  run = report.Run(folder)
  with run.held():
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
    for row in rows:
      mean, half = averages.interval(row['values'])
      logging.info(
        '%s: %.4f +- %.4f: %s', row['name'], mean, half, row['verdict']
      )
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
    lines = checkpoint.differing_fields(
      report['config'], _fingerprint(study.get_config(report['preset']))
    )
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
