"""A real program on real input: the Python sources of a directory, indexed on two nodes."""
