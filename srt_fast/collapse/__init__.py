"""Sees a collapse and acts: monitor (signals), probe (held-out prompts), actions."""
