"""Networks with a differentiable matrix square root."""
