"""A Llama's forward pass as one compiled function over packed weights."""
