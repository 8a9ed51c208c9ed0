"""The private recipe with plain SGD, which shows wrong factors."""

import optax

from configs import dp_finetuning

get_config = dp_finetuning.get_config


def build(config):
  return dp_finetuning.build(
    config, optimizer=lambda *args, **kwargs: optax.sgd(0.5, momentum=0.9)
  )
