"""One command for each figure of the docs, on networks of real size with random weights: nothing is downloaded."""
