"""Steps in a ball, against loops in NumPy where the gradient is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.attacks import ascent
from repjax.attacks import fgsm
from repjax.attacks import input_diversity
from repjax.attacks import losses
from repjax.attacks import smoothing

RNG = np.random.default_rng(1)
ROWS, SIDE, CHANNELS, CLASSES = 3, 8, 2, 4
IMAGE = RNG.uniform(0.2, 0.8, (ROWS, SIDE, SIDE, CHANNELS)).astype(np.float32)
WEIGHT = RNG.normal(size=(SIDE * SIDE * CHANNELS, CLASSES)).astype(np.float32)
LABEL = np.array([0, 3, 1])
MEAN, STD = np.float32([0.3, 0.6]), np.float32([0.2, 0.25])


def logits(image):
  flat = image.reshape(len(image), -1)
  return jnp.tanh(flat) @ WEIGHT


LOSS = losses.cross_entropy(logits, jnp.asarray(LABEL))


def gradient(image):
  """Of the loss, by hand."""
  flat = image.reshape(len(image), -1).astype(np.float64)
  scores = np.tanh(flat) @ WEIGHT
  chances = np.exp(scores - scores.max(1, keepdims=True))
  chances /= chances.sum(1, keepdims=True)
  chances[np.arange(len(image)), LABEL] -= 1
  back = chances @ WEIGHT.T * (1 - np.tanh(flat) ** 2)
  return back.reshape(image.shape)


def loop(
  *, epsilon, step_size, num_steps, decay=0.0, kernel=None, norm='linf', scale=1
):
  """The attack as its papers write it, one image and step at a time."""
  image = IMAGE.astype(np.float64)
  x, momentum = image.copy(), np.zeros_like(image)
  for _ in range(num_steps):
    g = scale * gradient(x)
    if kernel is not None:
      g = np.stack([convolved(row, kernel) for row in g])
    if decay:
      g = g / abs(g).mean((1, 2, 3), keepdims=True)
      g = momentum = decay * momentum + g
    for row in range(len(x)):
      if norm == 'linf':
        x[row] += step_size * np.sign(g[row])
        x[row] = np.clip(x[row], image[row] - epsilon, image[row] + epsilon)
      else:
        x[row] += step_size * g[row] / np.linalg.norm(g[row])
        delta = x[row] - image[row]
        x[row] = image[row] + delta * min(1, epsilon / np.linalg.norm(delta))
    x = np.clip(x, 0, 1)
  return x


def convolved(image, kernel):
  """[H, W, C] with zeros around it, pixel by pixel."""
  half, out = len(kernel) // 2, np.zeros_like(image)
  for y in range(SIDE):
    for x in range(SIDE):
      for dy in range(-half, half + 1):
        for dx in range(-half, half + 1):
          if 0 <= y + dy < SIDE and 0 <= x + dx < SIDE:
            weight = kernel[half + dy] * kernel[half + dx]
            out[y, x] += weight * image[y + dy, x + dx]
  return out


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('decay', [0.0, 0.7, 1.0])
def test_steps_are_those_of_the_papers(norm, decay):
  settings = dict(epsilon=0.3, step_size=0.07, num_steps=6, decay=decay)
  attack = functools.partial(
    ascent.ascend, LOSS, rng=None, norm=norm, **settings
  )
  found = jax.jit(attack)(IMAGE)
  expected = loop(norm=norm, **settings)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_smoothed_gradients_are_those_of_shifted_images():
  settings = dict(epsilon=0.2, num_steps=4, decay=1.0)
  attack = functools.partial(fgsm.ti_fgsm, LOSS, size=5, **settings)
  found = jax.jit(attack)(IMAGE)
  kernel = smoothing.gaussian(5, 3.0)
  expected = loop(step_size=0.05, kernel=kernel, **settings)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_kernel_is_a_gaussian():
  kernel = smoothing.gaussian(15, 3.0)
  np.testing.assert_allclose(kernel.sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(kernel[0] / kernel[7], np.exp(-4.5), rtol=1e-5)
  np.testing.assert_array_equal(kernel, kernel[::-1])
  image = jnp.asarray(IMAGE)
  only = smoothing.smooth(image, smoothing.gaussian(1, 3.0))
  np.testing.assert_allclose(only, IMAGE, rtol=1e-6)


def test_momentum_does_not_depend_on_the_scale_of_a_loss():
  attack = functools.partial(fgsm.mi_fgsm, epsilon=0.2)
  plain = jax.jit(functools.partial(attack, LOSS))(IMAGE)
  scaled = jax.jit(functools.partial(attack, lambda x: 1000 * LOSS(x)))(IMAGE)
  np.testing.assert_allclose(plain, scaled, atol=1e-6)
  other = loop(epsilon=0.2, step_size=0.02, num_steps=10, decay=1.0, scale=1e-3)
  np.testing.assert_allclose(plain, other, atol=2e-5)


def test_a_row_without_a_gradient_stays_as_it_is():
  flat = lambda x: 0 * x.sum((1, 2, 3))  # noqa: E731
  for norm in ('linf', 'l2'):
    attack = functools.partial(fgsm.mi_fgsm, flat, epsilon=0.1, norm=norm)
    found = jax.jit(attack)(IMAGE)
    np.testing.assert_array_equal(found, IMAGE)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_half_precision_is_attacked_in_float32(dtype):
  image = jnp.asarray(IMAGE, dtype)
  flat = lambda x: 0 * x.sum((1, 2, 3))  # noqa: E731
  each = jnp.full(image.shape[-1], 0.1)
  for norm, epsilon in (('linf', each), ('l2', 0.1)):
    found = fgsm.mi_fgsm(flat, image, epsilon=epsilon, norm=norm)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


def test_a_targeted_attack_makes_its_class_likelier():
  aim = jnp.asarray((LABEL + 1) % CLASSES)
  loss = losses.cross_entropy(logits, aim, targeted=True)
  settings = dict(epsilon=0.3, step_size=0.05, num_steps=10)
  found = jax.jit(lambda x: fgsm.pgd(loss, x, None, **settings))(IMAGE)
  np.testing.assert_array_equal(logits(found).argmax(-1), aim)


def test_the_losses_of_heads_are_added():
  heads = lambda x: jnp.stack([logits(x), 2 * logits(x)], 1)  # noqa: E731
  label, image = jnp.asarray(LABEL), jnp.asarray(IMAGE)
  both = jax.jit(losses.cross_entropy(heads, label))(image)
  twice = losses.cross_entropy(lambda x: 2 * logits(x), label)
  first, second = jax.jit(LOSS)(image), jax.jit(twice)(image)
  np.testing.assert_allclose(both, first + second, rtol=1e-5)
  weights = jnp.array([0.5, 0.0])
  half = jax.jit(losses.cross_entropy(heads, label, weights=weights))(image)
  np.testing.assert_allclose(half, first / 2, rtol=1e-5)
  with pytest.raises(types.InputError, match='2 heads'):
    losses.cross_entropy(heads, label, weights=jnp.ones(3))(image)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_random_starts_fill_the_ball(norm):
  image = np.full((400, 2, 2, 1), 0.5, np.float32)
  attack = functools.partial(
    ascent.ascend,
    lambda x: 0 * x.sum((1, 2, 3)),
    epsilon=0.4,
    step_size=0.1,
    num_steps=1,
    norm=norm,
    random_start=True,
  )
  found = jax.jit(attack)(image, jax.random.key(0))
  delta = (np.asarray(found) - image).reshape(400, 4)
  radius = {
    'linf': abs(delta).max(1),
    'l2': np.linalg.norm(delta, axis=1),
  }[norm]
  assert radius.max() <= 0.4 + 1e-6
  # Of a uniform point of a ball in 4 dimensions, (radius / epsilon)^4 is
  # uniform.
  np.testing.assert_allclose(((radius / 0.4) ** 4).mean(), 0.5, atol=0.05)
  np.testing.assert_allclose(delta.mean(0), 0, atol=0.03)


@pytest.mark.parametrize('kind', ['fgsm', 'mi_fgsm', 'di_fgsm', 'ti_fgsm'])
def test_attacks_in_the_euclidean_ball_step_along_gradients(kind):
  rng = np.random.default_rng(0)
  image = rng.uniform(0.4, 0.6, (3, 8, 8, 1)).astype(np.float32)
  slope = rng.normal(size=(8, 8, 1)).astype(np.float32)

  def attack(**settings):
    loss = lambda x: (x * slope[None]).sum((1, 2, 3))  # noqa: E731
    if kind == 'di_fgsm':
      still = input_diversity.InputDiversity(probability=0.0)
      args, settings = (jax.random.key(0),), dict(settings, diversity=still)
    else:
      args = ()
    if kind == 'ti_fgsm':
      settings = dict(settings, size=1)
    if kind == 'fgsm':
      settings.pop('num_steps')
    moves = functools.partial(getattr(fgsm, kind), loss, **settings)
    return np.asarray(jax.jit(moves)(image, *args))

  moved = attack(epsilon=0.3, num_steps=4, norm='l2') - image
  wanted = 0.3 * slope / np.linalg.norm(slope)
  np.testing.assert_allclose(moved, np.stack([wanted] * 3), atol=1e-5)
  signs = attack(epsilon=0.1, num_steps=4) - image
  np.testing.assert_allclose(abs(signs), 0.1, atol=1e-5)


def test_a_random_step_takes_its_part_of_epsilon():
  attack = functools.partial(fgsm.r_fgsm, LOSS, epsilon=0.1, random_step=0.04)
  found = jax.jit(attack)(IMAGE, jax.random.key(0))
  image = jnp.asarray(IMAGE)
  delta = abs(np.asarray(found) - IMAGE)
  assert delta.max() <= 0.1 + 1e-6
  # Both steps agree in a pixel, or not.
  assert np.isclose(delta, 0.1, atol=1e-6).any()
  assert np.isclose(delta, 0.02, atol=1e-6).any()
  for step in (0.2, -0.05, float('nan')):
    with pytest.raises(types.InputError, match='random_step'):
      fgsm.r_fgsm(LOSS, image, jax.random.key(0), epsilon=0.1, random_step=step)


# Input diversity.


@pytest.mark.parametrize('interpolation', ['linear', 'nearest'])
def test_nothing_is_resized_at_the_full_size(interpolation):
  same = input_diversity.InputDiversity(
    largest=1.0, canvas=1.0, interpolation=interpolation
  )
  resized = jax.jit(same)(jax.random.key(0), IMAGE)
  np.testing.assert_allclose(resized, IMAGE, atol=1e-6)
  attack = functools.partial(fgsm.di_fgsm, LOSS, epsilon=0.2, diversity=same)
  found = jax.jit(attack)(IMAGE, jax.random.key(1))
  plain = jax.jit(functools.partial(fgsm.mi_fgsm, LOSS, epsilon=0.2))(IMAGE)
  np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize('interpolation', ['linear', 'nearest'])
def test_a_resized_image_lies_somewhere_on_its_canvas(interpolation):
  half = input_diversity.InputDiversity(
    smallest=0.5, largest=0.5, canvas=1.0, interpolation=interpolation
  )
  constant = np.ones((1, SIDE, SIDE, 1), np.float32)
  places, resized = set(), jax.jit(half)
  for seed in range(40):
    seen = np.asarray(resized(jax.random.key(seed), constant))[0, ..., 0]
    np.testing.assert_allclose(seen.sum(), (SIDE // 2) ** 2, rtol=1e-5)
    rows, columns = np.nonzero(seen)
    assert rows.max() - rows.min() == columns.max() - columns.min() == 3
    places.add((rows.min(), columns.min()))
  assert len(places) > 10


def test_resizing_is_that_of_other_libraries():
  # Twice the side: linear weights of 1/4 and 3/4 with edges held.
  line = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
  placed = jax.jit(input_diversity._placed, static_argnums=(0, 2, 4))
  weights = placed(4, 8, 8, 0, 'linear')
  one = np.ones((1, 1), np.float32)
  found = np.asarray(jax.jit(smoothing.both_sides)(line, one, weights))
  expected = jax.image.resize(line, (1, 1, 8, 1), 'linear')
  np.testing.assert_allclose(found, expected, atol=1e-6)
  weights = placed(4, 7, 7, 0, 'nearest')
  found = np.asarray(weights).argmax(1)
  np.testing.assert_array_equal(found, np.arange(7) * 4 // 7)


def test_a_batch_may_stay_as_it_is():
  never = input_diversity.InputDiversity(probability=0.0)
  found = jax.jit(never)(jax.random.key(0), IMAGE)
  np.testing.assert_array_equal(found, IMAGE)


@pytest.mark.parametrize(
  ('settings', 'tells'),
  [
    (dict(largest=1.5, canvas=1.2), 'canvas=1.2'),
    (dict(smallest=0.0), 'smallest=0.0'),
    (dict(probability=1.5), 'probability'),
    (dict(interpolation='cubic'), 'interpolation'),
  ],
)
def test_a_wrong_diversity_is_refused(settings, tells):
  with pytest.raises(types.InputError, match=tells):
    input_diversity.InputDiversity(**settings)


def test_what_cannot_be_attacked_so_is_refused():
  image = jnp.asarray(IMAGE)
  for settings, tells in (
    (dict(epsilon=-0.1), 'epsilon'),
    (dict(epsilon=float('nan')), 'epsilon'),
    (dict(step_size=-1.0), 'step_size'),
    (dict(num_steps=0), 'num_steps'),
    (dict(decay=-1.0), 'decay'),
    (dict(norm='l1'), 'norm'),
    (dict(norm='l2', epsilon=jnp.ones(2)), 'epsilon'),
    (dict(random_start=True), 'rng'),
  ):
    settings = dict(epsilon=0.1, step_size=0.1, num_steps=1) | settings
    with pytest.raises(types.InputError, match=tells):
      ascent.ascend(LOSS, image, None, **settings)
  with pytest.raises(types.InputError, match='odd'):
    smoothing.gaussian(4, 3.0)
  with pytest.raises(types.InputError, match='square'):
    input_diversity.InputDiversity().check((1, 4, 5, 3))


ATTACKS = {
  'fgsm': lambda x, **box: fgsm.fgsm(LOSS, x, epsilon=0.1, **box),
  'r_fgsm': lambda x, **box: fgsm.r_fgsm(
    LOSS, x, jax.random.key(0), epsilon=0.1, random_step=0.02, **box
  ),
  'pgd': lambda x, **box: fgsm.pgd(
    LOSS, x, None, epsilon=0.1, step_size=0.05, num_steps=2, **box
  ),
  'mi_fgsm': lambda x, **box: fgsm.mi_fgsm(LOSS, x, epsilon=0.1, **box),
}


@pytest.mark.parametrize('kind', ATTACKS)
def test_images_outside_of_their_box_are_refused(kind):
  attack, image = ATTACKS[kind], jnp.asarray(IMAGE)
  units = "in the image's units"
  for wrong in (255 * image, image - 0.5, image.at[0, 0].set(jnp.nan)):
    with pytest.raises(types.InputError, match=units):
      attack(wrong)
    with pytest.raises(types.InputError, match=units):
      jax.jit(lambda x=wrong: attack(x))()  # Known while this is traced.
  with pytest.raises(types.InputError, match=f'low <= high: .*{units}'):
    attack(image, low=1.0, high=0.0)
  # The same attack of what is measured in other units, a channel at a time.
  box = dict(low=-MEAN / STD, high=(1 - MEAN) / STD)
  edges = np.stack([np.zeros_like(IMAGE[0]), np.ones_like(IMAGE[0]), IMAGE[0]])
  attack(jnp.asarray((edges - MEAN) / STD), **box)
  standardised = jnp.asarray((IMAGE - MEAN) / STD)
  with pytest.raises(types.InputError, match=units):
    attack(standardised)
  box['high'] = box['high'] * np.float32([1, 0.1])
  with pytest.raises(types.InputError, match=units):
    attack(standardised, **box)


def test_a_box_by_channel_is_that_of_pixels():
  pixels = jax.jit(functools.partial(fgsm.fgsm, LOSS, epsilon=0.3))(IMAGE)
  mean, std = MEAN[None, None, None], STD[None, None, None]
  attack = functools.partial(
    fgsm.fgsm,
    lambda x: LOSS(x * std + mean),
    epsilon=0.3 / STD,
    low=-MEAN / STD,
    high=(1 - MEAN) / STD,
  )
  found = np.asarray(jax.jit(attack)((IMAGE - MEAN) / STD))
  np.testing.assert_allclose(found * std + mean, pixels, atol=1e-5)
  assert found.min() < 0 and found.max() > 1


@pytest.mark.parametrize('strange', [-1, 2])
def test_a_label_that_is_no_class_is_refused(strange):
  loss_fn = losses.cross_entropy(
    lambda x: jnp.zeros((len(x), 2)), jnp.array([0, strange])
  )
  with pytest.raises(types.InputError, match=f'class {strange}, and there are'):
    loss_fn(jnp.zeros((2, 3)))


def test_what_is_seen_is_drawn_anew_in_each_step():
  def see(rng, x):
    return x * jax.random.rademacher(rng, x.shape, x.dtype)

  image = np.full((2, 6, 6, 1), 0.5, np.float32)
  attack = functools.partial(
    ascent.ascend,
    lambda x: x.sum((1, 2, 3)),
    epsilon=0.4,
    step_size=0.1,
    num_steps=4,
    see=see,
  )
  found = jax.jit(attack)(image, jax.random.key(0))
  # Four steps up or down: by one draw for all, each pixel would go all the way.
  moved = np.rint(abs(np.asarray(found) - image) / 0.1)
  assert set(moved.ravel().tolist()) == {0, 2, 4}


def test_sides_are_drawn_from_the_smallest_to_the_largest():
  some = input_diversity.InputDiversity(smallest=0.5, largest=1.0, canvas=1.0)
  constant = jnp.ones((1, SIDE, SIDE, 1))
  keys = jax.random.split(jax.random.key(0), 200)
  draw = jax.jit(jax.vmap(lambda key: some(key, constant)))
  seen = np.asarray(draw(keys))
  rows = (seen[:, 0, :, :, 0] > 0.5).any(2).sum(1)
  assert set(rows.tolist()) == set(range(SIDE // 2, SIDE + 1))


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize('kind', ATTACKS)
def test_half_precision_at_the_edges_of_a_box(kind, dtype):
  low, high = -1.99, 2.8215  # Neither is a number of half precision.
  image = jnp.asarray(np.where(IMAGE < 0.5, low, high), dtype)
  for box in ((low, high), (np.float32([low] * 2), np.float32([high] * 2))):
    found = ATTACKS[kind](image, low=box[0], high=box[1])
    assert found.dtype == dtype
    assert jnp.isfinite(found).all()


def test_a_random_step_of_whole_numbers_is_refused():
  image = jnp.zeros((ROWS, SIDE, SIDE, CHANNELS), jnp.uint8)
  with pytest.raises(types.InputError, match='floating-point'):
    fgsm.r_fgsm(
      LOSS, image, jax.random.key(0), epsilon=8.0, random_step=2.0, high=255.0
    )


def test_a_ball_that_a_jitted_function_closes_over_is_known():
  def attack(epsilon):
    return jax.jit(
      lambda image: ascent.ascend(
        LOSS, image, None, epsilon=epsilon, step_size=0.05, num_steps=3
      )
    )

  sizes = np.full((CHANNELS,), 0.1, np.float32)
  found = attack(jnp.asarray(sizes))(IMAGE)
  np.testing.assert_allclose(found, attack(sizes)(IMAGE), atol=1e-7)
  with pytest.raises(types.InputError, match='epsilon must be >= 0'):
    attack(jnp.asarray(-sizes))(IMAGE)
