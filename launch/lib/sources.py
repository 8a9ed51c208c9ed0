"""The source files that a result depends on, and whether they have changed."""

import ast
from collections.abc import Iterator
import functools
import pathlib
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_OURS = ('repjax', 'configs', 'launch')


@functools.cache
def imports(path: pathlib.Path, *, anywhere: bool = False) -> tuple[str, ...]:
  """Modules that importing a file imports, and what it takes from them.

  Args:
    path: The file.
    anywhere: Whether what its functions import is counted, too.
  """
  names: list[str] = []
  tree = ast.parse(path.read_text('utf-8'))
  for node in ast.walk(tree) if anywhere else nodes(tree):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  return tuple(names)


def nodes(parent: ast.AST) -> Iterator[ast.AST]:
  """The nodes of a file that run when it is imported."""
  for node in ast.iter_child_nodes(parent):
    yield node
    if not isinstance(node, ast.FunctionDef):
      yield from nodes(node)


def files_of(name: str) -> Iterator[pathlib.Path]:
  """Files of repjax that importing 'a.b' runs: also those of packages."""
  parts = name.split('.')
  for i in range(1, len(parts) + 1) if parts[0] in _OURS else ():
    place = ROOT.joinpath(*parts[:i])
    for path in (place / '__init__.py', place.with_suffix('.py')):
      if path.is_file():
        yield path


def closure(*roots: pathlib.Path, anywhere: bool = False) -> set[pathlib.Path]:
  """All files of repjax that importing `roots` runs, with themselves.

  Args:
    *roots: Files.
    anywhere: Whether what their functions import is counted, too.
  """
  found: set[pathlib.Path] = set()
  waiting = set(roots)
  while waiting:
    path = waiting.pop()
    found.add(path)
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for name in (module, *imports(path, anywhere=anywhere)):
      waiting |= set(files_of(name)) - found
  return found


def checksums(*roots: pathlib.Path) -> dict[str, str]:
  """Path below the repository -> CRC of the file, of all that may run."""
  return {
    path.relative_to(ROOT).as_posix(): f'{zlib.crc32(path.read_bytes()):08x}'
    for path in sorted(closure(*roots, anywhere=True))
  }
