"""The HTTP side: it writes rows, rings the bell, and reads what the workers wrote. It never trains."""
