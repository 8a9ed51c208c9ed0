"""The ViT config with plain SGD, which shows gradients wrong by a factor."""

from unittest import mock

import optax

from configs import vit

get_config = vit.get_config


def build(config):
  sgd = optax.sgd(0.05, momentum=0.9)
  with mock.patch.object(optax, 'adamw', lambda *args, **kwargs: sgd):
    return vit.build(config)
