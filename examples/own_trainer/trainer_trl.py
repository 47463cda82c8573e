"""trl's SFTTrainer with settings of your own."""

from typing import Any

from securefed.training.trl_trainer import SftTrainer


class ChatSteps(SftTrainer):
    """Supervised fine-tuning on the assistant's words, which the run file chooses."""

    def arguments(self) -> dict[str, Any]:
        return {"weight_decay": 0.01, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0}
