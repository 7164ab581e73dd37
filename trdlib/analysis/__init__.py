"""Looking at results: tables, figures, diagnosis, map, audit, explorer, the paper's numbers."""
