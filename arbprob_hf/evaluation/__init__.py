"""What a live model really does, measured from outside."""
