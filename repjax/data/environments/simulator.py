"""Host side: one world of the DeepMind Control suite, by `dm_control`.

Tassa et al., 'DeepMind Control Suite', 2018. https://arxiv.org/abs/1801.00690
"""

import numpy as np

from repjax import types


class Simulator:
  """One world of a task."""

  def __init__(self, task: str):
    """Loads it.

    Args:
      task: Domain and task, such as 'walker-walk'.

    Raises:
      InputError: If dm_control is not there, or has no such task.
    """
    suite = _suite()
    domain, _, name = task.partition('-')
    # Episodes of that domain end by themselves.
    known = [f'{x}-{y}' for x, y in suite.ALL_TASKS if x != 'lqr']
    if task not in known:
      raise types.InputError(
        f'{task!r} is no task of the DeepMind Control suite; there are '
        f'{", ".join(known[:8])} ... (config.data.name).'
      )
    self._random = np.random.RandomState(0)
    self._env = suite.load(
      domain,
      name,
      task_kwargs=dict(random=self._random, time_limit=float('inf')),
    )
    spec = self._env.action_spec()
    self.low, self._high = spec.minimum, spec.maximum
    self._seen = self._env.reset().observation
    self._colours = self._materials().copy(), self._textures().copy()

  def reset(self, seed: int) -> None:
    """Begins an episode, which the seed decides."""
    self._random.seed(seed)
    self._seen = self._env.reset().observation

  def step(self, action: np.ndarray, repeat: int) -> float:
    """Does the same a number of times; the sum of rewards."""
    action = self.low + (np.clip(action, -1, 1) + 1) / 2 * (
      self._high - self.low
    )
    total = 0.0
    for _ in range(repeat):
      step = self._env.step(action)
      total += step.reward
    self._seen = step.observation
    return total

  def features(self) -> np.ndarray:
    """What the suite observes, in one vector [D]."""
    parts = [np.ravel(x) for x in self._seen.values()]
    return np.concatenate(parts).astype(np.float32)

  def render(self, size: int) -> np.ndarray:
    """A picture [size, size, 3], uint8."""
    return self._env.physics.render(size, size, camera_id=0)

  def background(self, size: int) -> np.ndarray:
    """Where there is nothing but the sky, [size, size]."""
    seen = self._env.physics.render(size, size, camera_id=0, segmentation=True)
    return seen[..., 0] < 0

  def physics_state(self) -> np.ndarray:
    """All that what comes next depends on, but for actions."""
    import mujoco

    model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state

  def go_to(self, state: np.ndarray) -> None:
    """Puts the world, in an episode that has begun, where it was."""
    import mujoco

    model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(model, data, state, kind)
    self._env.physics.forward()
    # What a solver starts from has been moved by that.
    mujoco.mj_setState(model, data, state, kind)

  def paint(self, rng: np.random.Generator, amount: float) -> None:
    """Materials and both ends of each texture, on the way to random colours."""
    materials, textures = self._colours
    drawn = rng.uniform(size=(len(materials), 3))
    self._materials()[:] = materials + amount * (drawn - materials)
    model = self._env.physics.model
    for index in range(model.ntex):
      start = int(model.tex_adr[index])
      stop = start + 3 * int(model.tex_height[index] * model.tex_width[index])
      old = textures[start:stop].reshape(-1, 3) / 255
      light = old.mean(1, keepdims=True)
      light = (light - light.min()) / max(np.ptp(light), 1e-6)
      dark, bright = rng.uniform(size=(2, 3))
      new = dark + light * (bright - dark)
      mixed = old + amount * (new - old)
      self._textures()[start:stop] = np.round(255 * mixed).ravel()
    self._upload()

  def _materials(self):
    return self._env.physics.model.mat_rgba[:, :3]

  def _textures(self):
    return self._env.physics.model.tex_data

  def _upload(self):
    """Tells the renderer of textures, which it keeps copies of."""
    import mujoco

    physics = self._env.physics
    with physics.contexts.gl.make_current() as context:
      for index in range(physics.model.ntex):
        context.call(
          mujoco.mjr_uploadTexture,
          physics.model.ptr,
          physics.contexts.mujoco.ptr,
          index,
        )


def _suite():
  try:
    from dm_control import suite
  except Exception as error:  # Renderers fail in ways of their own.
    raise types.InputError(
      f'The DeepMind Control suite cannot be loaded ({_line(error)}): pip '
      "install 'repjax[dmcontrol]' and set MUJOCO_GL=egl (or osmesa, glfw), "
      'or run --preset=small.'
    ) from error
  return suite


def check_renderer(world: Simulator, size: int) -> None:
  """Raises an InputError if nothing can be rendered here."""
  try:
    world.render(size)
  except Exception as error:  # As above.
    raise types.InputError(
      f'MuJoCo cannot render here ({_line(error)}): set MUJOCO_GL=egl on a '
      'machine with a GPU or Mesa, MUJOCO_GL=osmesa without, or run '
      '--preset=small.'
    ) from error


def _line(error):
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
