"""Host side: a page about slices: their rows, their errors and their words.

`page` collects what is known; `figure` draws it, `html` writes a file that
needs no other: images are inside of it.
"""

import base64
from collections.abc import Sequence
import html as escaping
import io
from typing import Any
from typing import NamedTuple

from matplotlib import figure as mpl_figure
from matplotlib import image as mpl_image
import numpy as np

from repjax import types
from repjax.analysis import slice_scores
from repjax.analysis import slice_words


class Shown(NamedTuple):
  """One slice of a page.

  Attributes:
    title: Its number and words.
    text: What is known of its errors.
    rows: Rows that are shown, those ranked first, [n].
    notes: What stands below each: 'label > prediction'.
    wrong: Whether each is misread, bool [n].
  """

  title: str
  text: str
  rows: np.ndarray
  notes: tuple[str, ...]
  wrong: np.ndarray


class Page(NamedTuple):
  """All slices.

  Attributes:
    heading: The error rate of all rows.
    slices: In the order of their number.
  """

  heading: str
  slices: tuple[Shown, ...]


def page(
  ranking: np.ndarray,
  labels: np.ndarray,
  probs: np.ndarray,
  *,
  class_names: Sequence[str],
  rows: np.ndarray | None = None,
  words: Sequence[slice_words.Words | None] | None = None,
  audits: Sequence[slice_scores.Audit] | None = None,
  num_images: int = 10,
  num_words: int = 3,
  level: float = 0.05,
) -> Page:
  """Collects a page.

  Args:
    ranking: Larger is more of the slice, [N, k].
    labels: [N].
    probs: [N, C].
    class_names: C names.
    rows: Numbers of the rows among the images, [N]; None if they are all.
    words: Of each slice; None for no words.
    audits: Of each slice; None if nothing was tested.
    num_images: Rows shown of each, at most N.
    num_words: Words of each title.
    level: p-value from which a slice is said to be no worse than the rest.

  Raises:
    InputError: There are not as many rows, names, words or audits as needed.
  """
  types.check_range(f'[1, {len(ranking)}]', num_images=num_images)
  count = ranking.shape[1]
  for name, given, needed in (
    ('labels', labels, len(ranking)),
    ('probs', probs, len(ranking)),
    ('class_names', class_names, probs.shape[1]),
    ('words', words, count),
    ('audits', audits, count),
    ('rows', rows, len(ranking)),
  ):
    if given is not None and len(given) != needed:
      raise types.InputError(f'{len(given)} {name} are given for {needed}.')
  if len(labels):
    ends = {
      'least label': int(labels.min()),
      'largest label': int(labels.max()),
    }
    types.check_range(f'[0, {probs.shape[1] - 1}]', **ends)
  rows = np.arange(len(ranking)) if rows is None else rows
  guess = probs.argmax(-1)
  wrong = guess != labels
  slices = []
  for number in range(count):
    first = np.argsort(
      -np.asarray(ranking[:, number], np.float64), kind='stable'
    )[:num_images]
    said = words[number] if words else None
    title = f'slice {number + 1}'
    if said:
      title += ': ' + ', '.join(said.phrases[:num_words])
    slices.append(
      Shown(
        title,
        _errors(audits[number], level) if audits else 'not tested',
        rows[first],
        tuple(
          f'{class_names[labels[i]]} > {class_names[guess[i]]}' for i in first
        ),
        wrong[first],
      )
    )
  return Page(
    f'{wrong.mean():.1%} of {len(labels):,} rows are misread', tuple(slices)
  )


def figure(page: Page, images: np.ndarray) -> mpl_figure.Figure:
  """The page as a figure, a line of images for each slice.

  Args:
    page: What is drawn.
    images: Of all rows, [N, H, W, C], uint8 or floating in [0, 1].
  """
  columns = max(len(x.rows) for x in page.slices)
  fig = mpl_figure.Figure(
    figsize=(1.0 * columns + 0.4, 1.75 * len(page.slices) + 0.35)
  )
  # A list, unless it is of one.
  made: Any = fig.subfigures(
    1 + len(page.slices), 1, height_ratios=[0.2, *[1.0] * len(page.slices)]
  )
  first, *parts = made
  first.text(0.5, 0.5, page.heading, ha='center', va='center', fontsize=10)
  for part, shown in zip(parts, page.slices, strict=True):
    part.suptitle(f'{shown.title}\n{shown.text}', fontsize=8, y=0.97)
    places = part.subplots(1, columns, squeeze=False)[0]
    part.subplots_adjust(left=0.02, right=0.98, bottom=0.14, top=0.68)
    for axes in places:
      axes.axis('off')
    for axes, row, note, wrong in zip(
      places, shown.rows, shown.notes, shown.wrong, strict=False
    ):
      image = images[row]
      grey = image.shape[-1] == 1
      highest = 255 if image.dtype == np.uint8 else 1
      axes.imshow(
        image[..., 0] if grey else image, cmap='gray', vmin=0, vmax=highest
      )
      colour = 'crimson' if wrong else 'black'
      axes.text(
        *(0.5, -0.05),
        note.replace(' > ', '\n> '),
        transform=axes.transAxes,
        ha='center',
        va='top',
        fontsize=6,
        color=colour,
      )
  return fig


def html(page: Page, images: np.ndarray) -> str:
  """The page as one file of HTML; images as in `figure`."""
  lines = [
    '<!doctype html><meta charset="utf-8"><title>Slices</title>',
    '<style>body{font:14px sans-serif;margin:2em}figure{display:inline-block;'
    'margin:.3em;text-align:center}img{width:72px;image-rendering:pixelated}'
    'figcaption{font-size:11px}.wrong{color:crimson}</style>',
    f'<h1>Slices</h1><p>{escaping.escape(page.heading)}</p>',
  ]
  for shown in page.slices:
    lines.append(
      f'<h2>{escaping.escape(shown.title)}</h2>'
      f'<p>{escaping.escape(shown.text)}</p>'
    )
    for row, note, wrong in zip(
      shown.rows, shown.notes, shown.wrong, strict=True
    ):
      kind = ' class="wrong"' if wrong else ''
      lines.append(
        f'<figure><img alt="row {row}" src="data:image/png;base64,'
        f'{_png(images[row])}"><figcaption{kind}>{escaping.escape(note)}'
        '</figcaption></figure>'
      )
  return '\n'.join(lines) + '\n'


def _errors(audit, level):
  if not audit.num_rows:
    return 'no row is in this part of the space of embeddings'
  text = (
    f'{audit.error_rate:.1%} of {audit.num_rows} rows there are misread, '
    f'{audit.elsewhere:.1%} elsewhere (p = {audit.p_value:.2g})'
  )
  return text if audit.p_value < level else f'no slice: {text}'


def _png(image):
  if np.issubdtype(image.dtype, np.floating):
    image = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
  if image.shape[-1] == 1:
    image = np.repeat(image, 3, -1)
  file = io.BytesIO()
  mpl_image.imsave(file, image, format='png')
  return base64.b64encode(file.getvalue()).decode()
