"""The private config with plain SGD, which shows wrong factors."""

from unittest import mock

import optax

from configs import dp_finetuning

get_config = dp_finetuning.get_config


def build(config):
  sgd = optax.sgd(0.5, momentum=0.9)
  with mock.patch.object(optax, 'adamw', lambda *args, **kwargs: sgd):
    return dp_finetuning.build(config)
