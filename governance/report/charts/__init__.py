"""Drawings as inline SVG, by hand: positions are computed here, colours come from the page's style sheet."""
