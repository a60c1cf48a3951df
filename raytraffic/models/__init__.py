"""The published systems: one folder a paper, siblings that do not import each other."""
