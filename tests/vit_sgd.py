"""The ViT config with plain SGD, which shows gradients wrong by a factor."""

import optax

from configs import vit

get_config = vit.get_config


def build(config):
  sgd = optax.sgd(0.05, momentum=0.9)
  return vit.build(config, optimizer=lambda *args, **kwargs: sgd)
