"""Leaves out what is no test: programs of their own, which import the reference where it is."""

collect_ignore = ["hf_tokenizers.py", "hf_transformers.py", "trl_dpo.py", "trl_preference.py"]
