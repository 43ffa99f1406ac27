"""Model folders of others, in and out: safetensors, GGUF, PEFT adapters."""
