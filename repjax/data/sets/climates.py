"""Device code: weather at made-up places before and after a change of climate.

For the question of Zhao et al., 'Comparing Distributions by Measuring
Differences that Affect Decision Making', ICLR 2022, which changes
matter to whom (https://openreview.net/forum?id=KB5onONJIAU). They have records
of weather stations and of yields; this generator, whose numbers are our own,
has places of which it is known what changed.

A year at a place has a mean temperature (degrees C, normal with deviation 1.5),
rain (mm, log-normal, 20 %) and wind (m/s, log-normal, 20 %). Places differ in
all three means. Then every place becomes warmer, drier or windier, or stays as
it is; two decisions are made for all years at once:

*crop*: which of five to plant; each has its best temperature, the width of its
tolerance, the rain that it needs, and a price.
*heating*: how much capacity to build. A unit costs 1 a year, and every degree
below 18 that is not covered costs 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CHANGES = ('none', 'warmer', 'drier', 'windier')

# Name: best temperature, tolerance (degrees C), rain needed (mm), price.
CROPS = {
  'barley': (9.0, 4.0, 350.0, 0.8),
  'wheat': (13.0, 3.5, 450.0, 1.0),
  'maize': (18.0, 3.0, 600.0, 1.2),
  'sorghum': (24.0, 4.0, 400.0, 0.9),
  'rice': (25.0, 3.0, 1100.0, 1.5),
}
CAPACITIES = tuple(range(19))  # Degrees below 18 that can be heated.


class Places(NamedTuple):
  """Weather at S places.

  Attributes:
    before: Temperature, rain and wind of n years, [S, n, 3].
    after: Those of n years after the change, [S, n, 3].
    change: Index into `CHANGES`, [S].
  """

  before: jax.Array
  after: jax.Array
  change: jax.Array


class Means(NamedTuple):
  """Climates of S places, [S, 3] before and after, and their `change` [S]."""

  before: jax.Array
  after: jax.Array
  change: jax.Array


def means(rng: jax.Array, num_places: int) -> Means:
  """Draws places: temperature, rain and wind on average."""
  rng_place, rng_change, rng_size = jax.random.split(rng, 3)
  low, high = np.array([[[6.0, 300.0, 3.0]], [[24.0, 1300.0, 7.0]]])
  place = jax.random.uniform(rng_place, (num_places, 3))
  before = low + (high - low) * place
  change = jax.random.randint(rng_change, (num_places,), 0, len(CHANGES))
  # By 1 to 4 degrees, to 80 to 40 % of the rain, to 130 to 200 % of the wind.
  size = jax.random.uniform(rng_size, (num_places,))
  after = jnp.stack(
    [
      before[:, 0] + jnp.where(change == 1, 1 + 3 * size, 0),
      before[:, 1] * jnp.where(change == 2, 0.8 - 0.4 * size, 1),
      before[:, 2] * jnp.where(change == 3, 1.3 + 0.7 * size, 1),
    ],
    -1,
  )
  return Means(before, after, change)


def years(rng: jax.Array, mean: jax.Array, num_years: int) -> jax.Array:
  """Independent years of climates [S, 3]: [S, num_years, 3]."""
  noise = jax.random.normal(rng, (mean.shape[0], num_years, 3))
  spread = jnp.exp(0.2 * noise[..., 1:] - 0.02)  # Of mean 1.
  temperature = mean[:, None, :1] + 1.5 * noise[..., :1]
  return jnp.concatenate([temperature, mean[:, None, 1:] * spread], -1)


def places(rng: jax.Array, num_places: int, num_years: int) -> Places:
  """Draws places, and years before and after."""
  rng_means, rng_before, rng_after = jax.random.split(rng, 3)
  drawn = means(rng_means, num_places)
  return Places(
    years(rng_before, drawn.before, num_years),
    years(rng_after, drawn.after, num_years),
    drawn.change,
  )


def crop_costs(weather: jax.Array) -> jax.Array:
  """Minus what each crop earns in each year, [N, 3] -> [N, 5]."""
  best, tolerance, need, price = jnp.array(list(CROPS.values())).T[:, None]
  warmth = jnp.exp(-jnp.square((weather[:, :1] - best) / tolerance) / 2)
  return -price * warmth * jnp.minimum(weather[:, 1:2] / need, 1)


def heating_costs(weather: jax.Array) -> jax.Array:
  """What each capacity costs in each year, [N, 3] -> [N, 19]."""
  capacity = jnp.array([CAPACITIES])
  cold = jnp.maximum(18 - weather[:, :1], 0)
  return capacity + 4 * jnp.maximum(cold - capacity, 0)


def standardised(weather: jax.Array) -> jax.Array:
  """Each of the three over its deviation between years; for distances."""
  logs = jnp.log(weather[..., 1:]) / 0.2
  return jnp.concatenate([weather[..., :1] / 1.5, logs], -1)
