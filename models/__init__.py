"""Everything that outlives a process: one file per table, and the queries over them."""
