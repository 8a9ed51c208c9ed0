"""Docstrings as Markdown: they are plain text, whose signs mean themselves.

An extension of griffe, which reads the package for the reference: examples
become fences, and what Markdown would take for links, tags or emphasis (shapes
such as [B, D], products) is escaped outside of code.
"""

import re

import griffe

_CODE = re.compile(r'(`[^`]*`)')
_SIGNS = re.compile(r'([\[\]*<>])')


def markdown(text: str) -> str:
  """Plain text of a docstring as Markdown."""
  lines: list[str] = []
  fenced, after_blank = False, True
  for line in text.splitlines():
    example = line.lstrip().startswith('>>>')
    if example and not fenced:
      lines.append('```python')
      fenced = True
    elif fenced and not line.strip():
      lines.append('```')
      fenced = False
    indented = after_blank and line.startswith('    ')
    if fenced or indented:
      lines.append(line)
    else:
      parts = _CODE.split(line)
      parts[::2] = [_SIGNS.sub(r'\\\1', part) for part in parts[::2]]
      lines.append(''.join(parts))
    after_blank = not line.strip() or indented
  if fenced:
    lines.append('```')
  return '\n'.join(lines)


class PlainDocstrings(griffe.Extension):
  """Rewrites what stands in the sections of every docstring."""

  def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
    """Called once, when all is read: what a class takes is known by then."""
    del kwargs
    _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
  """The docstrings of an object and of what is in it."""
  if obj.docstring is not None:
    for section in obj.docstring.parsed:
      if section.kind is griffe.DocstringSectionKind.text:
        section.value = markdown(section.value)
      elif isinstance(section.value, list):
        for item in section.value:
          item.description = markdown(item.description)
  for name, member in obj.members.items():
    if not member.is_alias and not name.startswith('_'):
      _rewrite(member)
