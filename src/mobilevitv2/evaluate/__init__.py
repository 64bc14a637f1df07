"""How good a model, or an exported file, is on a data set."""
