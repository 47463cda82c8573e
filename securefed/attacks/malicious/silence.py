"""An adapter that cannot move: what a server gives to everybody but its victim.

With y = W x + s B A x and G the gradient of W, the gradients are dB = s G A^T and dA = s B^T G.
With A = 0 *and* B = 0 both vanish whatever the data are, in every sharing mode and at every local
step, while the model computes exactly what the base model does.  It is LoRA's dead ReLU: clients
that hold it add zeros to the sum, whose LoRA part is then the victim's alone, for any number of
clients.  What is trained whole beside it, such as a classifier's head, moves all the same.

Source: Pasquini, Francati and Ateniese 2022, "Eluding Secure Aggregation in Federated Learning via
Model Inconsistency" (2111.07380), its gradient suppression, where dead ReLUs do this to a network.
"""

from __future__ import annotations

import torch
from torch import nn

from securefed.errors import ConfigError
from securefed.lora.sharing import is_adapter_parameter


def silent_adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    """Zeros for every LoRA matrix of a model, by parameter name.

    Raises:
        ConfigError: the model has no LoRA adapter.
    """
    zeros = {
        name: torch.zeros_like(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if is_adapter_parameter(name) and ".lora_" in name
    }
    if not zeros:
        raise ConfigError("model: it has no LoRA adapter, which alone can be silenced by zeros")
    return zeros
