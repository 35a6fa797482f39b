"""A fine-tuning suite for Qwen2.5 and miniqwen. This file imports nothing, so that the front door stays light."""
