"""A metric of your own for ``securefed evaluate``: how often the likeliest token is the next one.

Run from the repository's root, on a finished run and texts of your own::

    PYTHONPATH=examples securefed evaluate DIR --data FOLDER --metric own_metric:next_token_accuracy

A document has ``text``, ``label`` (classification) and ``messages`` (a conversation: each has
``role`` and ``content``).  No epsilon covers what a metric gives.
"""

import torch


@torch.no_grad()
def next_token_accuracy(model, tokenizer, documents):
    """One number a document, in their order; at most 128 tokens of each are looked at."""
    found = []
    for document in documents:
        ids = tokenizer(document.text, truncation=True, max_length=128, return_tensors="pt")
        ids = ids.input_ids.to(model.device)
        guessed = model(input_ids=ids).logits[0, :-1].argmax(dim=-1)
        found.append((guessed == ids[0, 1:]).float().mean().item() if ids.shape[1] > 1 else 0.0)
    return found
