"""How much of a teacher its students keep, on real data: a grid of cells, each measured once and then committed."""
