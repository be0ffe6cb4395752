"""One module for each part of the MX that is looked at."""
