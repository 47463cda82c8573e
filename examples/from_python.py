"""A federation from Python objects: foreseen, trained, watched, measured and merged.

Texts are lists of strings by client here; anything that gives records in turn will do, such as a
dataset of the library `datasets` with the column that `data={"text_field": ...}` names.
"""

import argparse
import json
from pathlib import Path

import securefed as sf

PLANTS = Path(__file__).parent / "own_folder" / "clients"


def texts() -> dict[str, list[str]]:
    """Each plant's log lines."""
    return {
        path.stem: [json.loads(line)["text"] for line in path.read_text().splitlines()]
        for path in sorted(PLANTS.glob("*.jsonl"))
    }


def show(event: sf.RoundEvent) -> None:
    """What `on_round_end` is told; nothing of it is of a single client."""
    print(f"round {event.round} of {event.rounds}: {event.survivors} clients in the sum")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--model", default="builtin:smollm2-135m-instruct")
    options.add_argument("--out", type=Path, default=Path("runs/from-python"))
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()

    federation = sf.Federation(
        model=given.model,
        clients=texts(),
        data={"window_tokens": 16, "held_out_fraction": 0.2},
        lora={"rank": 4, "target_modules": ["v_proj"]},
        training={"rounds": given.rounds, "server_learning_rate": 0.02},
        privacy={"unit": "example", "target_epsilon": 8.0, "expected_batch": 24},
        evaluation={"window_tokens": 16},
        on_round_end=show,
    )
    for hazard in federation.forecast().hazards:  # nothing is spent yet
        print("note:", hazard.text)
    result = federation.run(given.out)
    print(result.guarantees["server"])
    for row in sf.evaluate_run(result.folder, clients=texts(), offline=True).rows:
        print(f"{row.adapter}: perplexity {row.figure.value:.1f} of {row.figure.n} tokens")
    merged = sf.merge_run(result.folder, given.out / "merged", offline=True)
    print(f"merged: {merged.folder}")


if __name__ == "__main__":
    main()
