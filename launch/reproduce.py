"""Measures the papers' claims and writes RESULTS.md.

    python -m launch.reproduce --papers=sam,mixup --preset=small

Each paper's study writes results/<paper>/report.json and plots; the table is
made from these files, so papers that were not run keep their rows. With
--check nothing is run: it fails if a row is missing or was measured with
another config than the present one.
"""

import json
import pathlib
import re
import time
from typing import Any

from absl import flags
from absl import logging
import numpy as np

from launch.lib import app
from repjax import types

_PAPERS = flags.DEFINE_list(
  'papers', None, 'Names of configs, for example sam,mixup; all by default.'
)
_PRESET = flags.DEFINE_string('preset', 'small', 'Preset that is measured.')
_OUT = flags.DEFINE_string(
  'out', 'results', 'Folder of the reports; RESULTS.md is written beside it.'
)
_CHECK = flags.DEFINE_bool(
  'check', False, 'Only check that the table fits the configs.'
)
_SET = flags.DEFINE_list(
  'set',
  [],
  'Fields to change, as data.name=mnist,epochs=0.1; the result is a row of its '
  'own, beside that of the config as it is. For one paper at a time.',
)
_DATA_DIR = app.define_data_dir()
app.define_devices()

_HEADER = """# Results

Every claim below was measured by `python -m launch.reproduce` on the hardware
named under the table; thresholds stand in the configs and were written before
the run. *Ours* is the mean over seeds ± its standard error (number of seeds).
*holds*: the mean meets the threshold; *does not hold*: it does not;
*measured*: a figure without a threshold. *Time* is wall time, some of it on a
busy machine. The paper's figures belong to the paper's scale, ours to the
`small` preset where the command does not name another: compare directions, not
numbers.

| paper | claim | its figure | threshold | ours | verdict | time | command |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
  """Runs the studies, or checks the table."""
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
  changes = _changes()
  if changes and len(papers) > 1:
    raise types.InputError('--set is for one paper: give one in --papers.')
  app.initialize()
  for paper in papers:
    _measure(paper, out / _folder(paper, changes), changes)
  text = _table(_all_papers(), out)
  table.write_text(text, encoding='utf-8')
  logging.info('wrote %s', table)


def _changes() -> dict[str, str]:
  """Field -> new value, from --set."""
  changes = {}
  for item in _SET.value:
    name, equals, value = item.partition('=')
    if not equals:
      raise types.InputError(f'--set={item}: write field=value.')
    changes[name] = value
  return changes


def _folder(paper: str, changes: dict[str, str]) -> str:
  """Name of a study's folder: what differs from `small` as it is follows."""
  parts = [_PRESET.value] if _PRESET.value != 'small' else []
  parts += [re.sub(r'[^A-Za-z0-9]+', '-', x) for x in changes.values()]
  return '.'.join([paper, '-'.join(parts)] if parts else [paper])


def _config(module: Any, preset: str, changes: dict[str, str]):
  """A preset with changed fields, of the types that they have."""
  config = module.get_config(preset)
  for name, value in changes.items():
    try:
      node = config
      for part in name.split('.')[:-1]:
        node = node[part]
      old = node[name.split('.')[-1]]
      if isinstance(old, str):
        new = value
      elif isinstance(old, tuple):
        new = tuple(x for x in value.split('+') if x)
        new = tuple(int(x) if x.isdigit() else x for x in new)
      else:
        new = float(value) if isinstance(old, float) else int(value)
      node[name.split('.')[-1]] = new
    except (KeyError, AttributeError, TypeError, ValueError) as error:
      raise types.InputError(
        f'--set={name}={value}: {error}; fields are those of {preset}.'
      ) from error
  return config


def _measure(paper: str, folder: pathlib.Path, changes: dict[str, str]) -> None:
  """Runs one paper's study and writes its report."""
  from repjax import report
  from repjax.metrics import averages

  module = app.load_config_module(app.find_config(f'{paper}.py'))
  config = _config(module, _PRESET.value, changes)
  identity = app.fingerprint(config)
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  run = report.Run(folder)
  run.start(
    {'file': f'configs/{paper}.py', 'preset': _PRESET.value, **identity}
  )
  logging.info('measuring the claims of %s', paper)
  started = time.monotonic()
  result = module.run(config, run)
  seconds = time.monotonic() - started
  for name, figure in result.figures.items():
    run.figure(name, figure)
  rows = [
    {'name': name, **_judge(claim, result.scalars[name])}
    for name, claim in identity['claims'].items()
    if name in result.scalars  # A changed study may leave some out.
  ]
  for row in rows:
    mean, error = averages.mean_and_error(row['values'])
    logging.info(
      '%s: %.4f +- %.4f: %s', row['name'], mean, error, row['verdict']
    )
  run.finish(
    {
      'claims': rows,
      'scalars': dict(result.scalars),
      'figures': sorted(result.figures),
      'preset': _PRESET.value,
      'changes': changes,
      'seconds': seconds,
      'config': identity,
      **report.environment(),
    }
  )


def _judge(claim: dict[str, Any], values) -> dict[str, Any]:
  """A claim with its values and its verdict."""
  from repjax.metrics import averages

  values = [float(x) for x in values]
  mean, _ = averages.mean_and_error(values)
  if 'at_least' in claim or 'at_most' in claim:
    low, high = claim.get('at_least', -np.inf), claim.get('at_most', np.inf)
    verdict = 'holds' if low <= mean <= high else 'does not hold'
  else:
    verdict = 'measured'
  return {**claim, 'values': values, 'verdict': verdict}


def _table(papers: list[str], out: pathlib.Path) -> str:
  """RESULTS.md from the reports that are there."""
  from repjax.metrics import averages

  lines, plots = [], []
  for paper, folder in _folders(papers, out):
    report = _report(folder)
    if report is None:
      module = app.load_config_module(app.find_config(f'{paper}.py'))
      lines += [
        f'| {paper} | {claim.says} | {claim.paper} | {_limit(claim)} | | '
        f'not run | | `{_command(paper)}` |'
        for claim in module.get_config('small').claims.values()
      ]
      continue
    for row in report['claims']:
      mean, error = averages.mean_and_error(row['values'])
      seeds = len(row['values'])
      spread = f' ± {error:.2g}' if seeds > 1 else ''
      ours = f'{mean:.3g}{spread} ({seeds})'
      lines.append(
        f'| {paper} | {row["says"]} | {row["paper"]} | {_limit(row)} | '
        f'{ours} | {row["verdict"]} | {report["seconds"]:.0f} s | '
        f'`{_command(paper, report)}` |'
      )
    versions = report['versions']
    plots.append(
      f'\n## {folder.name}\n\nMeasured {report["time"][:10]} on '
      f'{report["devices"][0]} with {report["cores"]} cores, '
      f'jax {versions["jax"]}, flax {versions["flax"]}, '
      f'optax {versions["optax"]}.\n'
    )
    plots += [
      f'\n![{name}]({out.name}/{folder.name}/plots/{name}.png)'
      for name in report['figures']
    ]
    plots.append('\n')
  return _HEADER + '\n'.join(lines) + '\n' + ''.join(plots)


def _folders(papers, out):
  """(paper, folder of its reports): its own, then those with changed fields."""
  for paper in papers:
    yield paper, out / paper
    for folder in sorted(out.glob(f'{paper}.*')):
      yield paper, folder


def _limit(claim) -> str:
  """A claim's threshold as the table shows it."""
  limits = (('at_least', '≥'), ('at_most', '≤'))
  return ', '.join(
    f'{sign} {claim[key]:g}' for key, sign in limits if key in claim
  )


def _check(papers, out, table) -> None:
  """Raises if the table is not what the configs and reports give."""
  stale = []
  for paper, folder in _folders(papers, out):
    report = _report(folder)
    if report is None:
      continue  # Its rows say 'not run'.
    module = app.load_config_module(app.find_config(f'{paper}.py'))
    changes = report.get('changes', {})
    current = app.fingerprint(_config(module, report['preset'], changes))
    from repjax import checkpoint

    lines = checkpoint.differing_fields(report['config'], current)
    if lines:
      stale.append(f'{folder.name} ({"; ".join(lines)})')
  if not table.exists() or table.read_text('utf-8') != _table(
    _all_papers(), out
  ):
    stale.append(f'{table} is not the table of the reports in {out}')
  if stale:
    raise types.InputError(
      f'RESULTS.md is stale: {"; ".join(stale)}. Run: '
      'python -m launch.reproduce --papers=...'
    )
  logging.info('%s fits the configs', table)


def _report(folder: pathlib.Path) -> dict[str, Any] | None:
  path = folder / 'report.json'
  return json.loads(path.read_text('utf-8')) if path.exists() else None


def _command(paper: str, report: dict[str, Any] | None = None) -> str:
  preset = 'small' if report is None else report['preset']
  command = f'python -m launch.reproduce --papers={paper} --preset={preset}'
  changes = {} if report is None else report.get('changes', {})
  if changes:
    fields = ','.join(f'{name}={value}' for name, value in changes.items())
    command += f' --set={fields} --data_dir=...'
  return command


def _all_papers() -> list[str]:
  return [path.stem for path in app.config_files()]


def _papers() -> list[str]:
  papers = _PAPERS.value or _all_papers()
  for paper in papers:
    if paper not in _all_papers():
      raise types.InputError(
        f'--papers={paper}: there is no configs/{paper}.py; there are '
        f'{", ".join(_all_papers())}.'
      )
  return papers


if __name__ == '__main__':
  app.run(main)
