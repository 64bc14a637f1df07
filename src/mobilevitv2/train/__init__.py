"""Training: recipes, batches augmented on the device, averaged weights, and what a run leaves behind."""
