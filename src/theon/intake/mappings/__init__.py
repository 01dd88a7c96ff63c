"""How the lines of each source become canonical events: one data file per source."""
