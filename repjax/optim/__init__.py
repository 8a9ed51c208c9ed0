"""Optax transformations: every optimizer paper is one link of a chain.

A link that needs more than the plain gradient takes the extra argument
`grad_fn` (`repjax.types.GradFn`) in its `update`.
"""

from repjax.optim.divided import divided as divided
from repjax.optim.dp_sgd import AdaptiveClipping as AdaptiveClipping
from repjax.optim.dp_sgd import dp_adam as dp_adam
from repjax.optim.dp_sgd import dp_sgd as dp_sgd
from repjax.optim.gradient_norms import gradient_norms as gradient_norms
from repjax.optim.gradient_projection import (
  project_gradients as project_gradients,
)
from repjax.optim.gradient_projection import update_bases as update_bases
from repjax.optim.gradient_vaccine import gradient_vaccine as gradient_vaccine
from repjax.optim.gradient_vaccine import pcgrad as pcgrad
from repjax.optim.in_turn import in_turn as in_turn
from repjax.optim.in_turn import whose_turn as whose_turn
from repjax.optim.l2_sp import L2SpState as L2SpState
from repjax.optim.l2_sp import l2_sp as l2_sp
from repjax.optim.layer_decay import layer_decay as layer_decay
from repjax.optim.over_batches import over_batches as over_batches
from repjax.optim.restarted import restarted as restarted
from repjax.optim.sam import sam as sam
from repjax.optim.schedules import drops as drops
from repjax.optim.schedules import warmup_cosine as warmup_cosine
from repjax.optim.strides import stride_cost as stride_cost
from repjax.optim.strides import stride_group as stride_group
from repjax.optim.task_cosines import task_cosines as task_cosines
from repjax.optim.weight_decay import weight_decay_mask as weight_decay_mask
