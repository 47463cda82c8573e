"""Threat models as data: loaded and checked, judged against a run, claim by claim."""
