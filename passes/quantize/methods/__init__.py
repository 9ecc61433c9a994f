"""Ways to round a matrix, each a function of arrays that knows nothing of graphs."""
