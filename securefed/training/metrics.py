"""Metrics of a user's own, by ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from securefed.errors import ConfigError
from securefed.training.folder import Document
from securefed.training.scores import Measured, ratio

Metric = Callable[[nn.Module, Any, Sequence[Document]], Sequence[float]]
"""``metric(model, tokenizer, documents)``: one finite figure for each document, in their order.

It runs where the documents are, for whoever holds them; nothing of it is sent.  The model is in
evaluation mode; what a metric changes in it is its own fault.
"""

_CALLED = "metric(model, tokenizer, documents)"


def load_metric(path: str) -> Metric:
    """A metric by its name.

    Args:
        path: ``module:function``; the module must be importable (installed, or on ``PYTHONPATH``).

    Raises:
        ConfigError: it has another form, or is not there.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name.isidentifier()):
        raise ConfigError(f"metric {path!r}: must have the form module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"metric {path!r}: {error} (is the module installed, or its folder on PYTHONPATH?)"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"metric {path!r}: {module_name} has no function {name}")
    metric: Metric = found
    check_metric(metric, path)
    return metric


def check_metric(metric: Metric, name: str) -> None:
    """Refuse a metric that cannot be called, before any model is loaded.

    Raises:
        ConfigError: it does not take three arguments.
    """
    try:
        inspect.signature(metric).bind(None, None, None)
    except ValueError:  # compiled, and does not say what it takes
        return
    except TypeError as error:
        raise ConfigError(
            f"metric {name}: is called as {_CALLED} and cannot be ({error}); it is now "
            f"{getattr(metric, '__name__', type(metric).__name__)}{inspect.signature(metric)}"
        ) from None


def measured(
    metric: Metric, name: str, found: nn.Module, tokenizer: Any, documents: Sequence[Document]
) -> Measured:
    """The mean of a metric over documents, with an interval over their owners.

    Args:
        metric: the function.
        name: of it, for messages.
        found: the model.
        tokenizer: of the model.
        documents: at least one.

    Raises:
        ConfigError: it does not give one finite figure a document.
    """
    given = metric(found, tokenizer, documents)
    try:
        figures = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(
            f"metric {name}: must give one finite figure for each of the {len(documents)} "
            f"documents; it gave a {type(given).__name__} that is no sequence of numbers"
        ) from None
    if figures.shape != (len(documents),) or not all(map(math.isfinite, figures)):
        raise ConfigError(
            f"metric {name}: must give one finite figure for each of the {len(documents)} "
            f"documents; it gave an array of shape {list(figures.shape)}"
            + " with NaN or infinity in it"
            * (figures.shape == (len(documents),))
        )
    owners = [document.owner for document in documents]
    clusters = np.unique(owners, return_inverse=True)[1]
    return ratio(figures, np.ones(len(documents), dtype=np.int64), clusters)
