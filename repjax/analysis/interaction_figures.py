"""Host side: pictures of interactions.

The directed graphs of Masoomi et al., ICLR 2022
(https://arxiv.org/abs/2304.07670), on a circle.
"""

from collections.abc import Sequence

from matplotlib import figure as mpl_figure
import numpy as np

from repjax import types
from repjax.analysis import shapley


def graph(
  weights: np.ndarray,
  names: Sequence[str],
  *,
  values: np.ndarray | None = None,
  most: int = 40,
  title: str = '',
) -> mpl_figure.Figure:
  """Players on a circle, and arrows from the given one to the measured one.

  Args:
    weights: Of arrows from row to column, [d, d]: the explanation map, or a
      redundancy graph. The largest are the widest; negative ones are red.
    names: Of the players.
    values: Shapley values, by which circles are large or small, red if
      negative, [d].
    most: Arrows, the largest weights first.
    title: Above them.

  Raises:
    InputError: There are not as many names as players.
  """
  weights = np.asarray(weights, float)
  dim = len(weights)
  if len(names) != dim:
    raise types.InputError(f'{dim} players need so many names: {len(names)}.')
  values = np.ones(dim) if values is None else np.asarray(values)
  angle = np.pi / 2 - 2 * np.pi * np.arange(dim) / dim
  place = np.stack([np.cos(angle), np.sin(angle)], 1)
  fig = mpl_figure.Figure(figsize=(4.2, 4.2))
  axes = fig.subplots()
  size = np.abs(weights) * ~np.eye(dim, dtype=bool)
  chosen = np.argsort(-size, axis=None, kind='stable')[:most]
  for given, measured in zip(
    *np.unravel_index(chosen, size.shape), strict=True
  ):
    if not size[given, measured]:
      break
    share = size[given, measured] / size.max()
    axes.annotate(
      '',
      place[measured],
      place[given],
      arrowprops=dict(
        arrowstyle='-|>',
        color='tab:red' if weights[given, measured] < 0 else 'tab:blue',
        alpha=0.15 + 0.75 * share,
        linewidth=0.3 + 2 * share,
        shrinkA=9,
        shrinkB=9,
        # Both directions of a pair are seen.
        connectionstyle='arc3,rad=0.12',
      ),
    )
  scale = np.abs(values).max() or 1.0
  axes.scatter(
    place[:, 0],
    place[:, 1],
    s=20 + 200 * np.abs(values) / scale,
    color=np.where(values < 0, 'tab:red', 'tab:blue'),
    zorder=3,
  )
  for name, at in zip(names, place, strict=True):
    axes.text(
      1.17 * at[0], 1.17 * at[1], name, ha='center', va='center', fontsize=8
    )
  axes.set(xlim=(-1.45, 1.45), ylim=(-1.35, 1.35))
  axes.axis('off')
  axes.set_title(title, fontsize=9)
  return fig


def ranking(
  told: shapley.Explanation, names: Sequence[str], *, most: int = 15
) -> mpl_figure.Figure:
  """Shapley values from the largest size down, with their standard errors.

  Args:
    told: An explanation.
    names: Of the players.
    most: Bars.
  """
  order = np.argsort(-np.abs(told.values))[:most][::-1]
  fig = mpl_figure.Figure(figsize=(4.8, 0.6 + 0.22 * len(order)))
  axes = fig.subplots()
  # Names may be equal, as tokens of a text are.
  axes.set_yticks(range(len(order)), [names[i] for i in order])
  axes.barh(
    range(len(order)),
    told.values[order],
    xerr=told.values_error[order],
    color=np.where(told.values[order] < 0, 'tab:red', 'tab:blue'),
  )
  axes.set_xlabel(f'Shapley value, of {told.full:.3f} - {told.empty:.3f}')
  axes.tick_params(labelsize=8)
  axes.grid(alpha=0.3, axis='x')
  return fig
