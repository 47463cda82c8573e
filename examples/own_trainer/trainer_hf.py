"""transformers' Trainer with settings of your own."""

from typing import Any

from securefed.training.hf_trainer import HfTrainer


class CosineSteps(HfTrainer):
    """AdamW with weight decay, warm-up and a cosine, within each round.

    Steps, batch size and learning rate are in the run file.  ``arguments`` may set what
    ``HfTrainer.allowed`` lists; to use a subclass of ``Trainer``, replace ``build`` too.
    """

    def arguments(self) -> dict[str, Any]:
        return {
            "optim": "adamw_torch",
            "weight_decay": 0.01,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 1,
            "max_grad_norm": 1.0,
        }
