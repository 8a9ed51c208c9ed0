"""Learning rates that fall from the head to the first layer, as one link.

As BEiT is fine-tuned (Bao et al., ICLR 2022, https://arxiv.org/abs/2106.08254,
and the authors' code), after ELECTRA (Clark et al., 2020,
https://arxiv.org/abs/2003.10555).
"""

from collections.abc import Callable

import jax
import optax

from repjax import trees
from repjax.optim import link


def layer_decay(
  decay: float,
  layer_of: Callable[[trees.Path], int],
  *,
  num_layers: int,
) -> optax.GradientTransformation:
  """Scales the update of layer i by decay ** (num_layers + 1 - i).

  Put it last in the chain, behind the learning rate: decoupled weight decay is
  then scaled too, as by a rate of each group in PyTorch.

  Args:
    decay: In (0, 1]; 1 scales nothing. The authors take 0.65 to 0.9.
    layer_of: Path of a parameter -> i: 0 for what comes before the first
      block, 1 to `num_layers` for the blocks, `num_layers` + 1 for the head
      (`repjax.models.beit.layer_of`).
    num_layers: Number of blocks.

  Returns:
    A transformation without state.

  Raises:
    ValueError: If an argument is out of range or, at `update`, if `layer_of`
      gives something else.
  """
  link.check_fixed('layer_decay', num_layers=num_layers)
  if num_layers < 1 or (link.is_known(decay) and not 0 < decay <= 1):
    raise ValueError(
      f'Need 0 < decay <= 1 and num_layers >= 1; got {decay=}, {num_layers=}'
    )

  def scale(path):
    layer = layer_of(path)
    if not 0 <= layer <= num_layers + 1:
      raise ValueError(
        f'{"/".join(path)} is in layer {layer}, which is not in '
        f'[0, {num_layers + 1}]'
      )
    return decay ** (num_layers + 1 - layer)

  def update_fn(updates, params=None):
    del params
    scaled = [x * scale(path) for path, x in trees.flatten(updates).items()]
    return jax.tree.unflatten(jax.tree.structure(updates), scaled)

  return optax.stateless(update_fn)
