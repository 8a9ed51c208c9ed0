"""Lists the recipes: what each is, its presets, what they need and cost.

    python -m launch.configs
    python -m launch.configs --names=sam,vit

A set behind 'needs' is read from --data_dir, where launch.prepare puts it, or
as the recipe's docstring says (--config=configs/NAME.py --help of any
launcher); others come with repjax or are made on the spot. Times and verdicts
are those of the studies under results/ (launch.reproduce), on the hardware
named there; what one training run takes, launch.train --dry_run measures here.
"""

from collections.abc import Iterator
import pathlib

from absl import flags

from configs import presets
from launch.lib import app
from launch.lib import manual
from launch.lib import recipes
from launch.lib import results
from launch.lib import sources
from repjax import trees
from repjax import types
from repjax.data.sets import tables

_NAMES = flags.DEFINE_list(
  'names', None, 'Recipes, for example sam,vit; all by default.'
)
_OUT = flags.DEFINE_string(
  'out', str(sources.ROOT / 'results'), 'Folder of the reports of studies.'
)


# What a kind of data needs whose config names no set.
_OF_KINDS = {
  'jsonl': '--config.data.file, lines of JSON',
  'proteins': '--config.data.path, a FASTA file',
  'text': 'glue/sst2, clinc_oos, e2e_nlg',
}


def main() -> None:
  """Prints a paragraph a recipe."""
  known = recipes.papers()
  for name in _NAMES.value or known:
    if name not in known:
      raise types.InputError(
        f'--names={name}: there is no configs/{name}.py.'
        f'{trees.nearest(name, known)} There are {", ".join(known)}.'
      )
  found = {
    name: recipes.load_config_module(str(recipes.path_of(name)))
    for name in known
  }
  free = _without_fetching(found.values())
  manual.show(
    '\n'.join(
      line
      for name in _NAMES.value or known
      for line in _about(name, found[name], pathlib.Path(_OUT.value), free)
    )
  )


def _without_fetching(modules) -> set[str]:
  """Sets of the presets `smoke...`, which run wherever repjax does."""
  return set(tables.EMBEDDED) | {
    name
    for recipe in modules
    for preset in presets.names(recipe.PRESETS)
    if preset.startswith('smoke')
    for name in _sets(presets.fields(recipe.get_config(preset)))
  }


def _about(name: str, recipe, out: pathlib.Path, free: set[str]) -> list[str]:
  study = recipes.load_study(name)
  lines = [f'configs/{name}.py  {recipe.__doc__.partition(chr(10))[0]}']
  own = presets.names(recipe.PRESETS)
  others = [x.name.partition('.')[2] for x in sorted(out.glob(f'{name}.*'))]
  more = [x for x in others if x not in own and results.has_preset(study, x)]
  width = max(len(preset) for preset in (*own, *more))
  for preset in (*own, *more):
    config = (study if preset in more else recipe).get_config(preset)
    needs = '; '.join(_needs(preset, presets.fields(config), free))
    if preset in more:
      needs = f'of launch.reproduce alone; {needs}'
    lines.append(f'  {preset:{width}}  {needs}')
    report = results.read(results.folder_of(out, name, preset))
    if report is not None:
      lines.append(f'  {"":{width}}  {_measured(study, report)}')
  return [*lines, '']


def _needs(preset: str, fields, free: set[str]) -> Iterator[str]:
  """Data, weights and device of a preset, as far as its numbers say."""
  files = [fields.get(x, '') for x in ('data.file', 'data.path')]
  needed = [x for x in _sets(fields) if x not in free]
  if any(files):
    yield f'needs {", ".join(x for x in files if x)}'
  elif needed:
    yield f'needs {", ".join(needed)}'
  elif not _sets(fields) and fields.get('data.kind') in _OF_KINDS:
    yield f'needs {_OF_KINDS[fields["data.kind"]]}'
  else:
    yield f'{", ".join(_sets(fields)) or "data made on the spot"}'
  weights = fields.get('weights')
  if weights:
    yield f'needs {weights}'
  elif weights is not None:
    yield '--config.weights: published weights to start from'
  if preset == 'gpu':
    yield 'an accelerator'


def _sets(fields) -> list[str]:
  """Names of the sets that a preset reads."""
  found: list[str] = []
  for name in ('data.base', 'data.names', 'data.name'):
    value = fields.get(name) or ()
    found += [value] if isinstance(value, str) else [*value]
  found += [x.partition(':')[0] for x in fields.get('data.public', ())]
  return list(dict.fromkeys(found))


def _measured(study, report) -> str:
  """Time and headline of a report."""
  name = results.headline(study)
  seconds = f'study: {report["seconds"]:.0f} s, {report["devices"][0]}'
  for row in report['claims']:
    if row['name'] == name:
      ours = results.interval_of(row['values'])
      return f'{seconds}; {row["says"]}: {ours}, {row["verdict"]}'
  return seconds


if __name__ == '__main__':
  app.run(main)
