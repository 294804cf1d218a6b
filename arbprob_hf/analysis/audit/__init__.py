"""The audit of a live model: inputs are disturbed, and what changes is compared with what the mask allows."""
