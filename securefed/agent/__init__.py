"""The data owner's long-lived process: its policy, its identity and the secrets of a round."""
