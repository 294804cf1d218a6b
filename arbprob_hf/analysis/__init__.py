"""What a mask or a network lets through: reach through layers, leaks, and the audit of a live model."""
