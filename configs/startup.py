"""STARTUP (Phoo & Hariharan, ICLR 2021): self-training across extreme tasks.

    python -m launch.reproduce --papers=startup

measures the claims (`configs/studies/startup.py`). `launch.train` trains a
student; with --config.stage=teacher a teacher, which --config.teacher=WORKDIR
names (of an equal seed, which draws the classes). `launch.evaluate` judges
features, with --episodes=5x1 --split=target.
https://arxiv.org/abs/2010.07734

paper: ResNet-10 at 224 pixels on 64 classes of ImageNet, in place of
  miniImageNet, and EuroSAT, a fifth of it without labels. The rate falls as a
  cosine, not where the loss stays, and the last state counts; teachers learn by
  SGD, where the authors' learn by Adam at a constant rate.
small: 40 classes of drawn characters, and `digits` in noise.
omniglot: 40 classes of Omniglot, and MNIST in noise.
"""

import functools

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import teachers
from configs.parts import two_domains
from repjax import types
from repjax.data.images import views
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.methods import startup
from repjax.protocols import self_training

PRESETS = dict(
  paper=dict(
    batch_size=256,
    epochs=1000.0,
    stage='student',
    # A run of the stage 'teacher'; '' trains one for teaching.steps.
    teacher='',
    teaching=dict(epochs=400.0, steps=0, learning_rate=0.1),
    views=dict(
      **dict(area=(0.08, 1.0), flip=True),
      **dict(brightness=0.4, contrast=0.4, saturation=0.4),
    ),
    # take: what a student has of its teacher: 'backbone', 'all' or 'nothing'.
    student=dict(take='backbone', statistics='mixed', projection_dim=128),
    objective=dict(
      **dict(supervised=1.0, distillation=1.0),
      **dict(self_supervision=1.0, temperature=1.0),
    ),
    labels=dict(normalized=True),
    tx=dict(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
    # Of which the study chooses, as the authors' code does.
    rates=(0.1, 0.05, 0.03, 0.01, 0.005, 0.003, 0.001),
    episodes=dict(ways=5, queries=15, count=600),
  ),
  small=dict(
    batch_size=64,
    epochs=0.0,
    min_steps=400,
    teaching=dict(epochs=0.0, steps=600),
    views=dict(area=(0.3, 1.0), flip=False),
    tx=dict(learning_rate=0.03),
    rates=(0.1, 0.03, 0.01),
    run=dict(log_every=100, eval_every=400, save_every=400),
  ),
  smoke=dict(
    **dict(min_steps=8, teaching=dict(steps=4)),
    **dict(rates=(0.03,), episodes=dict(count=5)),
  ),
)

# No metric chooses a checkpoint: labels of the target are not there.
_RUN = dict(paper=dict(run=dict(best='')))


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(
    preset, presets.IMAGES, two_domains.DOMAINS, PRESETS, _RUN
  )


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One run: of a teacher, or of a student that starts from one."""
  load = functools.partial(two_domains.load, config)
  types.check_choice('config.stage', config.stage, ('student', 'teacher'))
  if config.stage == 'teacher':
    return teachers.run(config, optimizer)
  data = of_images.data(config, load('base'))
  teach = teachers.taught(config)
  rows = teachers.labelled(config, teach, load('unlabelled'))
  base = wiring.shuffled(config, data.train, data.recipe)
  steps = wiring.steps_of(config, len(rows))
  tx = teachers.links(config, config.tx.learning_rate, steps, optimizer)
  return of_images.classifier(
    config,
    data._replace(steps=steps),
    method(config, tx, startup.Objective(**config.objective)),
    batches=teachers.beside_base(config, base, rows),
    sources=load,
    warm_start=lambda state: self_training.begin(
      state, teach(), take=config.student.take
    ),
  )


def method(config, tx, objective: startup.Objective) -> types.Method:
  """The student, and what it learns."""
  return startup.make(
    two_domains.network(config),
    tx,
    views=views.random_views(**config.views),
    objective=objective,
    statistics=config.student.statistics,
    projection_dim=config.student.projection_dim,
    **config.step,
  )
