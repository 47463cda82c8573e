"""Clients that contribute what makes the model do as they wish."""
