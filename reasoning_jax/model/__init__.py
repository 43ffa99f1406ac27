"""The decoder language model of the Llama family, as two functions, and LoRA."""
