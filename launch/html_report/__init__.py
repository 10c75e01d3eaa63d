"""``fastserve report``: a run, or several compared, as one HTML file."""
