"""Data sets as they lie on disk or on the hub: which pictures, which answers, which splits, and what is wrong with them."""
