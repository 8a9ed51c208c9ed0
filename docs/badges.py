"""Points the notebooks at the published repository: badge, and first cell.

    python -m docs.badges

The address stands in pyproject.toml alone:

    [project.urls]
    Repository = 'https://github.com/OWNER/NAME'

With it, every notebook has a badge that opens it in Colab, and installs repjax
from there where it is not in a checkout. Without it, as long as repjax is
published nowhere, there is no badge, and a notebook installs the checkout that
it is in, or asks where there is one.
"""

import json
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
_COLAB = 'https://colab.research.google.com'
_GITHUB = re.compile(r'https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?')
_BADGE = '[![Open in Colab]('
# Of a first cell, what decides where repjax comes from; the rest is its own.
_SOURCE = re.compile(
  r'(  # No upgrade of JAX, no pins: what Colab has will do\.\n).*?'
  r'(  %pip install -q \{SOURCE\}\n)',
  re.DOTALL,
)
_CHECKOUT = """\
  # The checkout that this notebook is in. Elsewhere, say where repjax is: a
  # folder, or 'git+https://...'.
  import pathlib
  SOURCE = '..'
  if SOURCE == '..' and not pathlib.Path('../pyproject.toml').exists():
    raise SystemExit('Not in a checkout of repjax: change SOURCE in this cell.')
"""
_PUBLISHED = """\
  # The checkout that this notebook is in, else what is published.
  import pathlib
  SOURCE = '..' if pathlib.Path('../pyproject.toml').exists() else 'git+{}'
"""


class AddressError(ValueError):
  """The repository's address is not one that Colab opens."""


def address(pyproject: str) -> str | None:
  """https://github.com/OWNER/NAME, from the text of pyproject.toml, or None.

  Raises:
    AddressError: If there is one that is none of a repository on GitHub.
  """
  urls = tomllib.loads(pyproject)['project'].get('urls', {})
  found = urls.get('Repository')
  if found is None:
    return None
  match = _GITHUB.fullmatch(found)
  if match is None:
    raise AddressError(
      f'[project.urls] Repository of pyproject.toml is {found!r}, but Colab '
      'opens https://github.com/OWNER/NAME alone'
    )
  return f'https://github.com/{match[1]}'


def pointed(text: str, name: str, to: str | None) -> str:
  """The text of a notebook of colabs/, with badge and first cell for `to`.

  Args:
    text: The .ipynb file's.
    name: The file's name.
    to: What `address` returns.

  Raises:
    ValueError: If its first two cells are not a title and what installs repjax.
  """
  notebook = json.loads(text)
  title, first = notebook['cells'][:2]
  words = ''.join(title['source'])
  if not words.startswith('# '):
    raise ValueError(f'colabs/{name}: the first cell begins with no title')
  lines = [x for x in words.splitlines() if not x.startswith(_BADGE)]
  if lines[1:3] == ['', '']:  # What stood around a badge.
    del lines[1]
  if to is not None:
    path = f'{to.removeprefix("https://")}/blob/main/colabs/{name}'
    opens = f'{_COLAB}/{path.replace("github.com", "github", 1)}'
    badge = f'{_BADGE}{_COLAB}/assets/colab-badge.svg)]({opens})'
    lines[1:1] = ['', badge]
  title['source'] = '\n'.join(lines).splitlines(keepends=True)

  source = _CHECKOUT if to is None else _PUBLISHED.format(to)
  code, count = _SOURCE.subn(
    lambda match: match[1] + source + match[2], ''.join(first['source'])
  )
  if count != 1:
    raise ValueError(f'colabs/{name}: the second cell does not install repjax')
  first['source'] = code.splitlines(keepends=True)
  return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


def main() -> None:
  """Writes the notebooks of this checkout."""
  try:
    to = address((ROOT / 'pyproject.toml').read_text('utf-8'))
  except AddressError as error:
    sys.exit(str(error))
  for path in sorted((ROOT / 'colabs').glob('*.ipynb')):
    path.write_text(pointed(path.read_text('utf-8'), path.name, to), 'utf-8')
  if to is None:
    print(
      'No badges: pyproject.toml names no Repository under [project.urls], '
      "such as 'https://github.com/OWNER/NAME'."
    )
  else:
    print(f'All notebooks open in Colab from {to}.')


if __name__ == '__main__':
  main()
