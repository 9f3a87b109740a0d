"""``limbeck serve``: students that answer, on their own. It has no state, so that there may be many of it."""
