"""How fast students answer over HTTP, beside other servers: see ``__main__``."""
