"""The model: loading, packed forward pass, log-probs.

Only this folder imports transformers' models.
"""
