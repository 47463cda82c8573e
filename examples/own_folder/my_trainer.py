"""A training step of your own: plain gradient descent with gradient clipping and momentum."""

import torch
from torch import nn

from securefed.config import TrainingSection
from securefed.training.data import Examples


class MomentumTrainer:
    """Made with the run file's [training] section, anew for each client and each round.

    What ``train`` changes in the parameters that have ``requires_grad`` is the client's update.  It
    is clipped as a whole afterwards, whatever the steps were.  Everything else in the model must be
    left as it was found, or the run is refused; and nothing may be kept elsewhere (in a global, a
    class attribute or a file) from one call to the next: that nobody can check, and the guarantee
    for each client rests on it.
    """

    def __init__(self, section: TrainingSection) -> None:
        self.section = section

    def train(self, model: nn.Module, data: Examples, round: int) -> None:
        travelling = [p for p in model.parameters() if p.requires_grad]
        device = travelling[0].device
        optimizer = torch.optim.SGD(
            travelling, lr=self.section.local_learning_rate, momentum=0.9, nesterov=True
        )
        draw = torch.Generator().manual_seed(round)
        for _ in range(self.section.local_steps):
            order = torch.randperm(len(data), generator=draw)[: self.section.batch_size]
            batch = data.take(order.numpy())
            tokens = torch.from_numpy(batch.input_ids).to(device)
            mask = torch.from_numpy(batch.attention_mask).to(device)
            optimizer.zero_grad()
            model(input_ids=tokens, attention_mask=mask, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(travelling, 1.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
