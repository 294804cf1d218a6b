"""Questions P(targets | given): layouts of slots, exact scores and exact samples."""
