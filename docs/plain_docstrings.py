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

  def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
    """Called once for each module, class, function and attribute."""
    del kwargs
    private = any(part.startswith('_') for part in obj.path.split('.'))
    if private or obj.docstring is None:
      return
    for section in obj.docstring.parsed:
      if section.kind is griffe.DocstringSectionKind.text:
        section.value = markdown(section.value)
      elif isinstance(section.value, list):
        for item in section.value:
          item.description = markdown(item.description)
