"""The example of a metric of one's own, on a model that says the same token every time."""

import torch
from tiny import WORDS, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from securefed.training.folder import Document
from securefed.training.metrics import load_metric, measured


def test_it_counts_the_tokens_that_are_foreseen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("examples")
    write_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = " ".join(WORDS[place] for place in (0, 1, 2, 1, 3))
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    wanted = ids[1].item()
    with torch.no_grad():  # whatever comes in, this token comes out
        for parameter in model.get_output_embeddings().parameters():
            parameter.zero_()
    real = model.forward

    def fixed(**given):
        out = real(**given)
        out.logits[..., wanted] = 1.0
        return out

    monkeypatch.setattr(model, "forward", fixed)
    documents = [Document(text, None, "a", None), Document(text, None, "b", None)]
    found = measured(
        load_metric("own_metric:next_token_accuracy"), "mine", model, tokenizer, documents
    )
    share = (ids[1:] == wanted).float().mean().item()
    assert 0.0 < share < 1.0
    assert abs(found.value - share) < 1e-6
