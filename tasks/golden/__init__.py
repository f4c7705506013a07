"""Reference numbers: which file of a golden folder is checked how."""
