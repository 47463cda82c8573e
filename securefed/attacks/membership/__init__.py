"""Membership inference and memorisation: was this record trained on, and is it in the model?"""
