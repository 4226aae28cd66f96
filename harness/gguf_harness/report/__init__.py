"""Reports of stored runs: terminal, HTML, markdown, and the comparison of two runs. Nothing is measured here."""
