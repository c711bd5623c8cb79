"""Towers and heads: ids and tokens in, representations and logits out."""
