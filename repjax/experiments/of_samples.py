"""Host side: experiments that learn to make images like those of a set."""

from collections.abc import Callable
from collections.abc import Mapping
import pathlib
from typing import Any

import jax
from matplotlib import figure as mpl_figure
import numpy as np

from repjax import files
from repjax import types
from repjax.data.reading import source
from repjax.experiments import wiring

# Images [N, H, W, C] of a state's generator, always of the same latents.
SampleFn = Callable[[types.TrainState], jax.Array]


def experiment(
  config: Any,
  data: Any,
  method: types.Method,
  sample_fn: SampleFn,
  *,
  sources: Callable[[str], source.Source],
  measures: Mapping[str, Callable[[types.TrainState], float]],
) -> types.Experiment:
  """An experiment whose run draws samples along the way.

  `plots/samples_<step>.png` show one and the same latents every
  `config.samples.every` steps; `<split>_samples.png` and `<split>_real.png`
  what `predict` makes for the rows of a split, and those rows.

  Args:
    config: With `samples.every` (steps, 0 for never), and with what
      `wiring.shuffled` and `wiring.of_sources` read.
    data: What `of_images.read(config)` gives.
    method: What is trained; `predict` gives 'score' and 'sample'.
    sample_fn: What is drawn along the way.
    sources: Split -> its rows.
    measures: Name -> what is measured of a state at each evaluation.
  """
  types.check_range(
    '[0, inf)', **{'config.samples.every': config.samples.every}
  )
  made = wiring.of_sources(
    config,
    method,
    batches=wiring.shuffled(config, data.train, data.recipe),
    sources=sources,
    steps=data.steps,
    measure=measure,
    figures=_figures,
    recipe=data.recipe,
  )
  gallery = _Gallery(sample_fn, config.samples.every)
  return made._replace(
    companion=types.Companion(
      begin=gallery.begin, follow=gallery.follow, measures=measures
    )
  )


def measure(outputs, columns) -> dict[str, float]:
  """What the discriminator says of rows that it has not seen."""
  del columns  # No label is asked for.
  score = outputs['score']
  return {
    'score': float(score.mean()),
    'taken_for_real': float((score > 0).mean()),
  }


def grid(
  images: np.ndarray, *, columns: int = 8, title: str = ''
) -> mpl_figure.Figure:
  """Images side by side in one picture.

  Args:
    images: [N, H, W, C], uint8 or in [-1, 1]; what is outside is cut off.
    columns: Images in a row.
    title: Above them.
  """
  from repjax import pictures

  images = pictures.visible(np.asarray(images))
  if images.dtype == np.uint8:
    images = images / 127.5 - 1
  images = np.clip((images + 1) / 2, 0, 1)
  count, height, width, channels = images.shape
  rows = -(-count // columns)
  page = np.ones((rows * columns, height + 1, width + 1, channels))
  page[:count, :height, :width] = images
  page = page.reshape((rows, columns, *page.shape[1:])).swapaxes(1, 2)
  page = page.reshape((rows * (height + 1), columns * (width + 1), channels))
  fig = mpl_figure.Figure(figsize=(0.7 * columns, 0.7 * rows + 0.3))
  axes = fig.subplots()
  axes.imshow(
    page[..., 0] if channels == 1 else page, cmap='gray', vmin=0, vmax=1
  )
  axes.axis('off')
  axes.set_title(title, fontsize=9)
  return fig


def _figures(rows, outputs, columns):
  """Samples of the first rows of a split, and those rows."""
  figures = {'samples': grid(outputs['sample'][:64], title='samples')}
  if rows.image_shape is not None:  # Images of one size.
    images = rows.read(columns['index'][:64])['image']
    figures['real'] = grid(images, title='real')
  return figures


class _Gallery:
  """Draws the same latents again and again."""

  def __init__(self, sample_fn, every):
    self._sample, self._every = jax.jit(sample_fn), every
    self._folder: pathlib.Path | None = None

  def begin(self, workdir, step):
    del step  # A resumed run draws the later ones.
    self._folder = None if workdir is None else workdir / 'plots'

  def follow(self, step, state):
    due = self._every and step % self._every == 0
    if not due or self._folder is None or jax.process_index():
      return
    images = self._sample(jax.device_get(state))
    path = self._folder / f'samples_{step:07d}.png'
    with files.naming(path):
      grid(images, title=f'step {step:,}').savefig(path, dpi=120)
