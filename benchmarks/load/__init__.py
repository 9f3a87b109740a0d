"""How the API answers while it has other work: see ``__main__``."""
