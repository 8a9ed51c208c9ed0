"""RESULTS.md: what the studies' reports say, for a reader.

First a table with one row a paper, its headline, the first of its claims. Then
a section a paper: what its study does and found, all claims, plots.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import json
import pathlib
from typing import Any
import zlib

from absl import logging
import numpy as np

from launch.lib import app
from repjax import files
from repjax.metrics import averages

_HEADER = """# Results

Every claim below was measured by `python -m launch.reproduce` on the hardware
named with it; thresholds stand in `configs/studies/` and were written before
the run. *Ours* is the mean over seeds ± its standard error (number of seeds).
*holds*: the mean meets the threshold; *does not hold*: it does not;
*measured*: a figure without a threshold. Times are wall time, some of it on a
busy machine. The paper's figures belong to the paper's scale, ours to the
`small` preset where the command does not name another: compare directions, not
numbers.

| paper | headline | its figure | ours | verdict |
|---|---|---|---|---|
"""


def judge(claim: Mapping[str, Any], values) -> dict[str, Any]:
  """A claim with its values, one a seed, and its verdict."""
  values = [float(x) for x in values]
  mean, _ = averages.mean_and_error(values)
  if 'at_least' in claim or 'at_most' in claim:
    low, high = claim.get('at_least', -np.inf), claim.get('at_most', np.inf)
    verdict = 'holds' if low <= mean <= high else 'does not hold'
  else:
    verdict = 'measured'
  return {**claim, 'values': values, 'verdict': verdict}


def measure_all(
  out: pathlib.Path,
  what: Mapping[str, Any],
  measure: Callable[[str], None],
  write: Callable[[], None],
) -> None:
  """Measures one paper after the other, and goes on where it was stopped.

  Args:
    out: Folder of the reports.
    what: Says what is measured, with 'papers', a mapping with their names:
      only the same goes on.
    measure: Takes a paper's name.
    write: Writes RESULTS.md, after each paper.
  """
  digest = zlib.crc32(json.dumps(what).encode())
  begun = out / f'.begun-{digest:08x}.json'  # There until all are measured.
  kept = (files.read_json_if_whole(begun, 'measured') or {}).get('measured', [])
  for paper in what['papers']:
    if paper in kept:
      logging.info('%s is kept; to measure it again, delete %s', paper, begun)
      continue
    measure(paper)
    kept = [*kept, paper]
    files.write_json(begun, {'measured': kept})
    write()
  begun.unlink(missing_ok=True)


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
    study = app.load_study(paper)
    own = [(folder, x) for name, folder, x in found if name == paper]
    headline = next(iter(study.CLAIMS))
    small = [x for folder, x in own if folder.name == paper]
    rows.append(_headline(paper, headline, study.CLAIMS[headline], small))
    sections.append(_section(paper, study, own, out))
  return _HEADER + '\n'.join(rows) + '\n' + ''.join(sections)


def _headline(paper, name, claim, small):
  ours, verdict = '', 'not run'
  for report in small:
    for row in report['claims']:
      if row['name'] == name:
        ours, verdict = _ours(row['values']), row['verdict']
  link = f'[{paper}](#{paper.replace("_", "-")})'
  return f'| {link} | {claim["says"]} | {claim["paper"]} | {ours} | {verdict} |'


def _section(paper, study, own, out):
  lines = [f'\n## {paper.replace("_", "-")}\n', study.__doc__.strip(), '']
  if not any(folder.name == paper for folder, _ in own):
    lines += [f'`{command(paper, "small")}` was not run.', '']
  for folder, report in own:
    lines += [f'### {report["preset"]}\n' if len(own) > 1 else '']
    versions = report['versions']
    lines += [
      f'`{command(paper, report["preset"], len(report["seeds"]), study)}`: '
      f'{report["seconds"]:.0f} s on {report["devices"][0]} with '
      f'{report["cores"]} cores, {report["time"][:10]}, jax '
      f'{versions["jax"]}, flax {versions["flax"]}, optax {versions["optax"]}.',
      '',
      '| claim | its figure | threshold | ours | verdict |',
      '|---|---|---|---|---|',
      *(_row(row) for row in in_order(report['claims'], study.CLAIMS)),
      '',
      *(
        f'![{name}]({out.name}/{folder.name}/plots/{name}.png)'
        for name in report['figures']
      ),
      '',
    ]
  return '\n'.join(x for x in lines if x is not None).rstrip() + '\n'


def in_order(rows, claims):
  """Measured claims in the order of the study."""
  by_name = {row['name']: row for row in rows}
  return [by_name[name] for name in claims if name in by_name]


def _row(row):
  limits = (('at_least', '≥'), ('at_most', '≤'))
  threshold = ', '.join(
    f'{sign} {row[key]:g}' for key, sign in limits if key in row
  )
  return (
    f'| {row["says"]} | {row["paper"]} | {threshold} | {_ours(row["values"])} '
    f'| {row["verdict"]} |'
  )


def _ours(values):
  mean, error = averages.mean_and_error(values)
  spread = f' ± {error:.2g}' if len(values) > 1 else ''
  return f'{mean:.3g}{spread} ({len(values)})'


def command(paper: str, preset: str, num_seeds: int = 0, study=None) -> str:
  """What measures a study again."""
  text = f'python -m launch.reproduce --papers={paper}'
  if preset != 'small':
    text += f' --preset={preset}'
  if study is not None and num_seeds != len(study.SEEDS):
    text += f' --seeds={num_seeds}'
  return text
