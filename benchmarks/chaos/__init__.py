"""Real jobs on the real stack while its processes are killed, stopped and cut off: is one lost, does one run twice?"""
