"""The files that travel with a checkpoint: configuration, masks, attention, loss and the network."""
