"""The queries. Every function takes the session first, and none commits: the caller's block is the transaction."""
