"""What surrounds a site: satellite tiles, points of interest, and text that describes both."""
