"""Working with a gpt-oss: its shape, generation, evaluation, adapters, checkpoints and publishing."""
