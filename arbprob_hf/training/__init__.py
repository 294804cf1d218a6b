"""Durable training: sealed checkpoints, a locked run folder, exact resume, and the trainer that holds them."""
