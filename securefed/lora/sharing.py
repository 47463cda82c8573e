"""Which adapter parameters travel to the server, and which stay frozen."""

from __future__ import annotations

from torch import nn

from securefed.errors import ConfigError

SHARING_MODES = ("ffa",)
"""``ffa``: B and the modules saved in full travel; A is made once and frozen (FFA-LoRA)."""


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter name of a PEFT model belongs to the adapter, not to the base model."""
    return ".lora_" in name or ".modules_to_save." in name


def travelling_parameters(model: nn.Module, sharing: str) -> dict[str, nn.Parameter]:
    """Choose the parameters that travel, and let nothing else train.

    With A frozen and equal for all, the mean of the clients' B is exact: mean(B) A = mean(B A),
    and noise is not multiplied by noise.  This sets ``requires_grad`` itself because loading an
    adapter with ``is_trainable=True`` thaws A.

    Args:
        model: a PEFT model with a LoRA adapter.
        sharing: one of :data:`SHARING_MODES`.

    Returns:
        Name to parameter, sorted by name.

    Raises:
        ConfigError: ``sharing`` is unknown, the model has no LoRA adapter, or a parameter that
            travels is also used under the name of one that must stay.

    Guarantees:
        - Afterwards exactly the returned parameters have ``requires_grad``.

    Source: Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (2403.12313),
    section 3.
    """
    if sharing not in SHARING_MODES:
        raise ConfigError(
            f"lora.sharing = {sharing!r}; allowed: {', '.join(map(repr, SHARING_MODES))}"
        )
    # A tied weight appears under each of its names, or a frozen twin would escape the check below.
    every = dict(model.named_parameters(remove_duplicate=False))
    travelling = {
        name: every[name]
        for name in sorted(every)
        if ".lora_B." in name or ".modules_to_save." in name
    }
    if not any(".lora_B." in name for name in travelling):
        raise ConfigError(
            "model: no parameter named lora_B; it has no LoRA adapter that could train"
        )
    for parameter in every.values():
        parameter.requires_grad_(False)
    for parameter in travelling.values():
        parameter.requires_grad_(True)
    thawed = sorted(n for n, p in every.items() if p.requires_grad and n not in travelling)
    if thawed:
        for parameter in travelling.values():
            parameter.requires_grad_(False)
        raise ConfigError(
            f"model: {', '.join(thawed)} shares its storage with a parameter that travels, and "
            f"must stay frozen under lora.sharing = {sharing!r}"
        )
    return travelling
