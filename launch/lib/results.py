"""RESULTS.md: what the studies' reports say, for a reader.

First a table with one row a paper, its headline, the first of its claims. Then
a section a paper: what its study does and found, what had to be true before,
all claims, checks of theory, all scores, plots.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from launch.lib import chosen
from launch.lib import recipes
from repjax import files
from repjax.metrics import averages

HOLDS, CONTRADICTED, UNDECIDED = 'holds', 'contradicted', 'undecided'
MEASURED, ONE_SEED, NO_NUMBER = 'measured', 'one seed', 'no number'
NOT_TESTABLE = 'not testable here'

_HEADER = """# Results

Every claim below was measured by `python -m launch.reproduce` on the hardware
named with it; thresholds stand in `configs/studies/` and were written before
the run; a section says where one was written later, or with a trial's figure in
view. *Ours* is the mean over seeds ± half of its 95 % interval (Student's t,
number of seeds in brackets); differences are those of the arms of a seed, which
share data and order where they can.

*holds*: the whole interval meets the threshold. *contradicted*: none of it
does. *undecided*: the threshold lies inside. *not testable here*: what the
claim takes for granted, a row of the table *first*, is not shown to be *so* in
this small study: it is *not so*, or *unclear*, its threshold inside of the
interval. *measured*: a figure without a threshold. *one seed*: no interval, so
no verdict, but of what a formula says exactly (the tables *theory*) one value
decides. *no number*: a seed's figure is not finite. The first table has the
preset `small`, and others where they decide otherwise.

Times are wall time, some of it on a busy machine. The paper's figures belong to
the paper's scale, ours to the `small` preset where the command does not name
another: compare directions, not numbers.

| paper | headline | its figure | ours | verdict |
|---|---|---|---|---|
"""
_FIRST = {HOLDS: 'so', CONTRADICTED: 'not so', UNDECIDED: 'unclear'}


def judge(
  claims: Mapping[str, Mapping[str, Any]], scalars: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """All claims that a run measured, with their values and verdicts.

  Args:
    claims: Name -> says, paper, and perhaps at_least, at_most; kind 'first' for
      what other claims take for granted and 'theory' for what a formula says,
      which one value decides, unless it is drawn (by_chance); needs, the names
      of such 'first' claims without which nothing can be said here.
    scalars: Name -> one value a seed. A preset may leave claims out; a claim
      that was not measured, since what it needs does not hold, has no values.

  Returns:
    Rows in the order of the claims.
  """
  rows = {
    name: {
      'name': name,
      **claim,
      'values': [float(x) for x in scalars[name]],
      'verdict': _verdict(claim, scalars[name]),
    }
    for name, claim in claims.items()
    if name in scalars
  }
  for row in rows.values():
    unmet = [
      name
      for name in row.get('needs', ())
      if name not in rows or rows[name]['verdict'] != HOLDS
    ]
    if unmet:
      row.update(verdict=NOT_TESTABLE, unmet=unmet)
    elif not row['values']:
      raise ValueError(f'no values of {row["name"]}, which could be measured')
  return list(rows.values())


def _verdict(claim, values):
  if 'at_least' not in claim and 'at_most' not in claim:
    return MEASURED
  if not len(values):
    return NOT_TESTABLE
  least, most = claim.get('at_least', -np.inf), claim.get('at_most', np.inf)
  if not np.isfinite(np.asarray(values, np.float64)).all():
    return NO_NUMBER
  mean, half = averages.interval(values)
  if len(values) < 2:
    if claim.get('kind') != 'theory' or claim.get('by_chance'):
      return ONE_SEED
    half = 0.0
  if least <= mean - half and mean + half <= most:
    return HOLDS
  if mean + half < least or mean - half > most:
    return CONTRADICTED
  return UNDECIDED


def verdicts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
  """A line a row of `judge`, such as 'gain: 0.5000 +- 0.1000: holds'."""
  for row in rows:
    if not row['values']:
      yield f'{row["name"]}: {row["verdict"]}'
      continue
    mean, half = averages.interval(row['values'])
    yield f'{row["name"]}: {mean:.4f} +- {half:.4f}: {row["verdict"]}'


def folder_of(out: pathlib.Path, paper: str, preset: str) -> pathlib.Path:
  """Where the study of a paper at a preset is written."""
  return out / (paper if preset == 'small' else f'{paper}.{preset}')


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """The report of a study, or None if it was not run or is damaged."""
  return files.read_json_if_whole(folder / 'report.json', 'claims')


def reports(
  papers: list[str], out: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path, dict[str, Any]]]:
  """(paper, folder, report) of all studies that were run, `small` first."""
  for paper in papers:
    for folder in (out / paper, *sorted(out.glob(f'{paper}.*'))):
      report = read(folder)
      if report is not None:
        yield paper, folder, report


def table(papers: list[str], out: pathlib.Path) -> str:
  """RESULTS.md from the reports that are there."""
  found = list(reports(papers, out))
  rows, sections = [], []
  for paper in papers:
    study = recipes.load_study(paper)
    own = [(folder, x) for name, folder, x in found if name == paper]
    rows.append(_headline(paper, study, own))
    sections.append(_section(paper, study, own, out))
  return _HEADER + '\n'.join(rows) + '\n' + ''.join(sections)


def headline(study) -> str:
  """The name of a study's first claim that others do not take for granted."""
  return next(
    name for name, x in study.CLAIMS.items() if x.get('kind') != 'first'
  )


def _headline(paper, study, own):
  name = headline(study)
  claim = study.CLAIMS[name]
  rows = [
    (report['preset'], row)
    for _, report in own
    for row in report['claims']
    if row['name'] == name
  ]
  # Of `small`, which is first, and of presets that decide otherwise.
  rows = rows[:1] + [
    (preset, row)
    for preset, row in rows[1:]
    if row['verdict'] in (HOLDS, CONTRADICTED)
    and row['verdict'] != rows[0][1]['verdict']
  ]
  ours = '; '.join(interval_of(row['values']) for _, row in rows)
  verdict = '; '.join(
    row['verdict'] + (f' ({preset})' if preset != 'small' else '')
    for preset, row in rows
  )
  link = f'[{paper}](#{paper.replace("_", "-")})'
  verdict = verdict or 'not run'
  return f'| {link} | {claim["says"]} | {claim["paper"]} | {ours} | {verdict} |'


def _section(paper, study, own, out):
  lines = [f'\n## {paper.replace("_", "-")}\n', study.__doc__.strip(), '']
  if not any(folder.name == paper for folder, _ in own):
    lines += [f'`{command(paper, "small")}` was not run.', '']
  gpu = folder_of(out, paper, 'gpu')
  if has_preset(study, 'gpu') and not any(folder == gpu for folder, _ in own):
    lines += [
      f'`{command(paper, "gpu")}`, for an accelerator, was not run.',
      '',
    ]
  for folder, report in own:
    if len(own) > 1:
      lines += [f'### {report["preset"]}', '']
    versions = report['versions']
    lines += [
      f'`{command(paper, report["preset"], len(report["seeds"]), study)}`: '
      f'{report["seconds"]:.0f} s on {report["devices"][0]} with '
      f'{report["cores"]} cores, {report["time"][:10]}, jax '
      f'{versions["jax"]}, flax {versions["flax"]}, optax {versions["optax"]}.',
      '',
      *_tables(in_order(report['claims'], study.CLAIMS)),
      *_chosen(study, report),
      *_scores(report['scalars'], study.CLAIMS),
      *(
        f'![{name}]({out.name}/{folder.name}/plots/{name}.png)'
        for name in report['figures']
      ),
      '',
    ]
  return '\n'.join(lines).rstrip() + '\n'


def _tables(rows):
  """What had to be true, what the paper says, what theory says."""
  for kind, title in (
    ('first', 'first'),
    (None, 'claim'),
    ('theory', 'theory'),
  ):
    own = [row for row in rows if row.get('kind') == kind]
    if own:
      yield f'| {title} | its figure | threshold | ours | verdict |'
      yield '|---|---|---|---|---|'
      yield from map(_row, own)
      yield ''


def _row(row):
  limits = (('at_least', '≥'), ('at_most', '≤'))
  threshold = ', '.join(
    f'{sign} {row[key]:g}' for key, sign in limits if key in row
  )
  verdict = row['verdict']
  if row.get('kind') == 'first':
    verdict = _FIRST.get(verdict, verdict)
  if row.get('unmet'):
    verdict += f' ({", ".join(row["unmet"])})'
  if row.get('kind') == 'first':
    says = f'`{row["name"]}`: {row["says"]}'
  else:
    says = row['says']
  return (
    f'| {says} | {row["paper"]} | {threshold} | {interval_of(row["values"])} '
    f'| {verdict} |'
  )


def _chosen(study, report):
  text = chosen.line(getattr(study, 'GRIDS', {}), report)
  if text:
    yield from (text, '')


def _scores(scalars, claims):
  """What the arms reached, which claims only compare; folded up."""
  own = {name: x for name, x in scalars.items() if name not in claims}
  if not own:
    return
  yield from ('<details><summary>All scores</summary>', '')
  yield from ('| score | ours |', '|---|---|')
  for name, values in own.items():
    yield f'| {name} | {interval_of(values)} |'
  yield from ('', '</details>', '')


def in_order(rows, claims):
  """Measured claims in the order of the study."""
  by_name = {row['name']: row for row in rows}
  return [by_name[name] for name in claims if name in by_name]


def interval_of(values) -> str:
  """Mean over seeds, half of its interval, and their number."""
  if not values:
    return 'not measured'
  if any(x is None or not np.isfinite(x) for x in values):
    return f'no number ({len(values)})'
  mean, half = averages.interval(values)
  spread = '' if np.isnan(half) else f' ± {half:.2g}'
  return f'{mean:.3g}{spread} ({len(values)})'


def has_preset(study, preset: str) -> bool:
  """Whether a study has a preset."""
  try:
    study.get_config(preset)
  except ValueError:
    return False
  return True


def command(paper: str, preset: str, num_seeds: int = 0, study=None) -> str:
  """What measures a study again."""
  text = f'python -m launch.reproduce --papers={paper}'
  if preset != 'small':
    text += f' --preset={preset}'
  if study is not None and num_seeds != len(recipes.seeds(study, preset)):
    text += f' --seeds={num_seeds}'
  return text
