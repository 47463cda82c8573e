"""From a small pilot to a decision: trials, what they cost, and how to read them."""
