"""Writes the site's pages, most from where they stand already.

    python -m docs.pages build/pages

Guides are sections of README.md and CONTRIBUTING.md; the pages of systems,
written in docs/systems/, get the docstring of their recipe and their section of
RESULTS.md with its plots; the reference has a page a module, and notebooks come
from colabs/. What leads nowhere, or is missing, is an error.
"""

import ast
import json
import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[1]
# Sections of README.md, and the pages that they are.
GUIDES = {
  'Two commands': 'guides/start.md',
  'Launching': 'guides/launching.md',
  'Your own data': 'guides/own_data.md',
  'Take a model out': 'guides/export.md',
  'Tracking': 'guides/tracking.md',
  'Private training': 'guides/private_training.md',
  'Speed': 'guides/speed.md',
  'One part in your own program': 'guides/parts.md',
  'Domains: WILDS': 'guides/domains.md',
  'Links in one chain': 'guides/links.md',
}
# Sections of README.md that the site has in another form.
ELSEWHERE = {'', 'Systems', 'The map'}
_FILES = {
  'README.md': 'index.md',
  'RESULTS.md': 'results.md',
  'CONTRIBUTING.md': 'guides/contributing.md',
}
_LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^)\s]+)\)')


class MissingError(ValueError):
  """A page, a section or a docstring that the site needs is not there."""


def sections(text: str) -> dict[str, str]:
  """Title -> text of each section of the second level, '' -> what is above."""
  found: dict[str, list[str]] = {'': []}
  title, fenced = '', False
  for line in text.splitlines():
    fenced ^= line.lstrip().startswith('```')
    if line.startswith('## ') and not fenced:
      title = line[3:].strip()
      found[title] = []
    else:
      found[title].append(line)
  return {title: '\n'.join(lines).strip() for title, lines in found.items()}


def docstring(path: pathlib.Path) -> str:
  """The docstring of a module, which is not executed."""
  text = ast.get_docstring(ast.parse(path.read_text()))
  if not text:
    raise MissingError(f'{path.relative_to(ROOT)} has no docstring')
  return text


def _target(link: str) -> str:
  """Where a link of README.md or RESULTS.md leads, from the site's top."""
  if link.startswith('#'):
    return f'systems/{link[1:].replace("-", "_")}.md'
  if link.startswith('colabs/'):
    return f'notebooks/{pathlib.PurePath(link).stem}.md'
  if link.startswith('results/'):
    return f'plots/{link.removeprefix("results/")}'
  if link not in _FILES:
    raise MissingError(f'no page of the site is what {link!r} leads to')
  return _FILES[link]


def linked(text: str, up: str = '') -> str:
  """Text of the repository's top, for a page `up` below the site's top."""

  def replaced(match: re.Match[str]) -> str:
    mark, words, link = match.groups()
    target = link if '://' in link else up + _target(link)
    return f'{mark}[{words}]({target})'

  return _LINK.sub(replaced, text)


def system(page: pathlib.Path, results: dict[str, str]) -> str:
  """The page of a system with its recipe, and what was measured."""
  text = page.read_text().rstrip()
  recipe = ROOT / 'configs' / f'{page.stem}.py'
  if not recipe.exists():  # A part that has none.
    return f'{text}\n'
  section = results.get(page.stem.replace('_', '-'))
  if section is None:
    raise MissingError(f'RESULTS.md has no section on {page.stem}')
  section = section.replace('<details>', '<details markdown="1">')
  return (
    f'{text}\n\n## Recipe\n\n`configs/{recipe.name}`: {docstring(recipe)}\n\n'
    f'## Claims\n\n{linked(section, "../")}\n'
  )


def notebook(path: pathlib.Path) -> str:
  """The cells of a notebook, without what they print."""
  cells = json.loads(path.read_text())['cells']
  text = []
  for cell in cells:
    source = ''.join(cell['source']).strip()
    if cell['cell_type'] == 'markdown':
      text.append(source)
    elif source:
      text.append(f'```python\n{source}\n```')
  return '\n\n'.join(text) + '\n'


def module(path: pathlib.Path) -> tuple[pathlib.PurePath, str]:
  """Where the page of a module stands in the reference, and its text."""
  docstring(path)
  parts = path.relative_to(ROOT).with_suffix('').parts
  if parts[-1] == '__init__':
    parts = parts[:-1]
    page = pathlib.PurePath('reference', *parts[1:], 'index.md')
  else:
    page = pathlib.PurePath('reference', *parts[1:]).with_suffix('.md')
  short = '.'.join(parts[1:]) or 'repjax'
  return page, f'# {short}\n\n::: {".".join(parts)}\n'


def pages() -> dict[pathlib.PurePath, str]:
  """The text of every page by its path."""
  readme = sections((ROOT / 'README.md').read_text())
  results = sections((ROOT / 'RESULTS.md').read_text())
  if set(readme) != set(GUIDES) | ELSEWHERE:
    raise MissingError(
      'GUIDES and ELSEWHERE of docs/pages.py do not name the sections of'
      f' README.md: {sorted(set(readme) ^ (set(GUIDES) | ELSEWHERE))}'
    )
  found = {}
  for title, page in GUIDES.items():
    found[page] = f'# {title}\n\n{linked(readme[title], "../")}\n'
  contributing = (ROOT / 'CONTRIBUTING.md').read_text()
  found['guides/contributing.md'] = linked(contributing, '../')
  found['results.md'] = linked(results[''])
  for path in sorted((ROOT / 'docs').rglob('*.md')):
    name = path.relative_to(ROOT / 'docs').as_posix()
    is_system = path.parent.name == 'systems' and path.stem != 'index'
    found[name] = system(path, results) if is_system else path.read_text()
  for path in sorted((ROOT / 'colabs').glob('*.ipynb')):
    found[f'notebooks/{path.stem}.md'] = notebook(path)
  texts = {pathlib.PurePath(name): text for name, text in found.items()}
  texts.update(map(module, sorted((ROOT / 'repjax').rglob('*.py'))))
  return texts


def write(folder: pathlib.Path) -> None:
  """Writes all pages and plots, in the place of what was there."""
  shutil.rmtree(folder, ignore_errors=True)
  for name, text in pages().items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  for plot in sorted((ROOT / 'results').glob('*/plots/*.png')):
    path = folder / 'plots' / plot.relative_to(ROOT / 'results')
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(plot, path)


if __name__ == '__main__':
  write(pathlib.Path(sys.argv[1]))
