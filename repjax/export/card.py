"""Host side: the card of an exported model, the README.md beside its weights.

What a stranger must know of a model: how it is loaded, what it was trained on
and with which numbers, what it measures, what it promises about the privacy of
its rows, and which versions made it. The head of the file is that of the model
cards of Hugging Face (https://huggingface.co/docs/hub/model-cards).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

from repjax import files


class Facts(NamedTuple):
  """What a run says of the model that it has trained.

  Attributes:
    recipe: File and preset.
    step: Number of updates.
    config: All numbers that decide the result.
    class_names: In the order of the logits; empty where none are known.
    results: Name -> value, as measured at this step.
    privacy: The statement of a private run, or None.
    versions: Package -> version, as trained.
  """

  recipe: str
  step: int
  config: Mapping[str, Any]
  class_names: Sequence[str]
  results: Mapping[str, float]
  privacy: Mapping[str, Any] | None
  versions: Mapping[str, str]


class Use(NamedTuple):
  """How a model is loaded.

  Attributes:
    library: 'transformers', 'peft', 'timm' or 'jax'.
    code: Lines of Python.
    task: What the hub calls it, or ''.
    notes: What one must know besides, a sentence each.
  """

  library: str
  code: str
  task: str = ''
  notes: Sequence[str] = ()


def write(folder: str | os.PathLike, facts: Facts, use: Use) -> None:
  """Writes README.md."""
  files.replace(pathlib.Path(folder) / 'README.md', text(facts, use))


def text(facts: Facts, use: Use) -> str:
  """The card in Markdown."""
  name = pathlib.PurePath(facts.recipe.partition(':')[0]).stem
  head = ['---', f'library_name: {use.library}']
  if use.task:
    head.append(f'pipeline_tag: {use.task}')
  head += ['tags:', '- repjax', f'- {name}', '---']
  named = list(facts.class_names)
  about = {'classes, in the order of logits': named} if named else {}
  if 'data' in facts.config:
    about = {**_without_places(facts.config['data']), **about}
  parts = [
    '\n'.join(head),
    f'# {name}',
    f'Trained by repjax with `{facts.recipe}` for {facts.step:,} steps.',
    f'## Use\n\n```python\n{use.code.strip()}\n```',
    *use.notes,
    '## Data',
    _table(('field', 'value'), about)
    if about
    else 'The recipe has no group config.data: what it read is not told.',
    '## Results',
    _table(
      ('measure', 'value'),
      {_measure(name): x for name, x in facts.results.items()},
    )
    if facts.results
    else f'Nothing was measured at step {facts.step:,}.',
    '## Privacy',
    _privacy(facts.privacy),
    '## Training',
    f'```json\n{json.dumps(_without_places(facts.config), indent=2)}\n```',
    '## Versions',
    _table(('package', 'version'), facts.versions),
  ]
  return '\n\n'.join(parts) + '\n'


def _privacy(statement) -> str:
  if statement is None:
    return (
      'Nothing is promised: what the model says may give away rows that it was '
      'trained on.'
    )
  lines = {k: x for k, x in statement.items() if k != 'not_covered'}
  left_out = '\n'.join(f'- {x}' for x in statement['not_covered'])
  return (
    f'({statement["epsilon"]:.4g}, {statement["delta"]:.3g})-differential '
    f'privacy of {statement["unit"]}.\n\n{_table(("what", "value"), lines)}\n\n'
    f'Not covered:\n\n{left_out}'
  )


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
  lines = [f'| {head[0]} | {head[1]} |', '|---|---|']
  for name, value in rows.items():
    if isinstance(value, float):
      value = f'{value:.6g}'
    elif isinstance(value, list | dict):
      value = json.dumps(value)
    lines.append(f'| {name} | {str(value).replace("|", "/")} |')
  return '\n'.join(lines)


def _without_places(tree: Any) -> Any:
  """Fields without the folders of the machine that trained: names alone."""
  if isinstance(tree, Mapping):
    return {
      name: _without_places(x)
      for name, x in tree.items()
      if not (name == 'dir' and isinstance(x, str))
    }
  if isinstance(tree, list | tuple):
    return [_without_places(x) for x in tree]
  if isinstance(tree, str):  # Of a split, 'labelled:' stands before a folder.
    kind, colon, place = tree.rpartition(':')
    if place.startswith(('/', '~')):
      return f'{kind}{colon}{pathlib.PurePath(place).name}'
  return tree


def _measure(name: str) -> str:
  """'split/accuracy' without the folder that a split may be."""
  split, slash, measure = name.rpartition('/')
  return f'{_without_places(split)}{slash}{measure}'
