"""Preference alignment of models that solve problems: answer sets, contrast, critical tokens."""
