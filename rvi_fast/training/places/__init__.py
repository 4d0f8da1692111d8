"""Where the rows of a posterior lie while an epoch runs."""
