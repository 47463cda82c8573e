"""Gradient inversion that is adapted to a defence, for the defence to be judged by."""
