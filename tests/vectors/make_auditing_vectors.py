"""Write auditing_lower_bounds.json: what jax_privacy finds for the same scores.

Run in an environment of its own, which the library does not need:

    python -m venv oracle && oracle/bin/pip install jax_privacy==2.0.0
    oracle/bin/python tests/vectors/make_auditing_vectors.py

jax_privacy stands for another reading of the same papers; nothing of it is used by the library.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jax_privacy.auditing import CanaryScoreAuditor, Explicit

CASES = (
    # mu, how many inside, outside, delta, failure, threshold in standard deviations
    (0.5, 500, 500, 1e-5, 0.05, 0.5),
    (1.0, 1000, 1000, 1e-5, 0.05, 1.5),
    (1.0, 150, 250, 1e-3, 0.10, 1.0),
    (2.0, 1000, 1000, 1e-5, 0.05, 2.5),
    (4.0, 300, 300, 1e-6, 0.05, 2.0),
    (4.0, 40, 60, 1e-2, 0.01, 2.0),
)


def main() -> None:
    cases = []
    for number, (mu, n, m, delta, failure, threshold) in enumerate(CASES):
        rng = np.random.default_rng(number)
        inside, outside = rng.normal(mu, 1.0, n), rng.normal(0.0, 1.0, m)
        scores = CanaryScoreAuditor(inside, outside)
        caught, false = int((inside >= threshold).sum()), int((outside >= threshold).sum())
        # Scores that take two values leave one test, and two that always say the same; jax_privacy
        # divides the failure by all three.
        two = CanaryScoreAuditor(inside >= threshold, outside >= threshold)
        cases.append(
            {
                "caught": caught,
                "inside": n,
                "false": false,
                "outside": m,
                "delta": delta,
                "failure": failure,
                "clopper_pearson": float(
                    scores.epsilon_clopper_pearson(
                        failure, delta, threshold_strategy=Explicit(threshold)
                    )
                ),
                "one_run": float(
                    scores.epsilon_one_run(failure, delta, threshold_strategy=Explicit(threshold))
                ),
                "gaussian_counts": float(two.epsilon_from_gdp(3.0 * failure, delta)),
            }
        )
    path = Path(__file__).with_name("auditing_lower_bounds.json")
    made = {"made_by": f"jax_privacy {version('jax_privacy')}", "cases": cases}
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
