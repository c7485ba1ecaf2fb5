"""The sections of a lookalike campaign's report; each draws one piece of markup from a `LookalikeSummary`."""
