"""Reports of a stored run: terminal, HTML, markdown, and the comparison of two runs. Nothing here measures."""
