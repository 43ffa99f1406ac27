"""Tokenizers, chat templates, and prompts tokenised together with responses."""
