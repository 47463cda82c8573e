"""What of frameworks of law and good practice a run shows, row by row, and what it cannot.

``*.yaml`` beside this hold the rows: a place in a framework's text, what it asks in our words, and
what of a report must hold for it.  :func:`crosswalk` says of a report which rows do.
"""

from securefed.reports.crosswalk.judging import crosswalk

__all__ = ["crosswalk"]
